"""The short path may not be told from the standard's judge: the same bytes give the same messages, replies and close code."""

from __future__ import annotations

import itertools
import logging
import struct
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from voiceserver.framing import FRAMES_PER_TURN, MAX_FRAGMENTS, TEXT_BYTES_PER_FRAME, Framing

LIMIT = 300
_log = logging.getLogger("tests.judge")
_log.setLevel(logging.CRITICAL)


@dataclass
class Heard:
    """All that a peer and an application can observe."""

    messages: list[tuple[str, bytes]] = field(default_factory=list)
    written: bytes = b""
    is_ended: bool = False
    close: tuple[str, int] | None = None


class Recorder(Framing):
    __slots__ = ("heard", "is_waiting")

    def __init__(self) -> None:
        super().__init__(LIMIT)
        self.heard = Heard()
        self.is_waiting = False

    def receive_binary(self, payload: bytes) -> None:
        assert type(payload) is bytes
        self.heard.messages.append(("binary", payload))

    def receive_text(self, payload: bytes) -> None:
        assert type(payload) is bytes
        self.heard.messages.append(("text", payload))

    def receive_close(self, code: int, reason: str) -> None:
        assert self.heard.close is None
        self.heard.close = ("peer", code)

    def receive_violation(self, code: int, reason: str) -> None:
        assert self.heard.close is None
        self.heard.close = ("violation", code)

    def write(self, data: bytes) -> None:
        assert not self.heard.is_ended
        self.heard.written += data

    def end_stream(self) -> None:
        self.heard.is_ended = True

    def wait_for_turn(self) -> None:
        self.is_waiting = True

    def feed_all(self, pieces: list[bytes]) -> Heard:
        for piece in pieces:
            assert self.feed(piece) <= FRAMES_PER_TURN + LIMIT * 16
            while self.is_waiting:
                self.is_waiting = False
                self.feed(b"")
        return self.heard


def judged(stream: bytes) -> Heard:
    """What plain ServerProtocol makes of it, one byte at a time, with the fragments put together by hand."""
    protocol = ServerProtocol(state=State.OPEN, max_size=LIMIT, logger=_log)
    heard = Heard()
    kind, parts = "", b""
    for index in range(len(stream)):
        protocol.receive_data(stream[index : index + 1])
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode is Opcode.TEXT or frame.opcode is Opcode.BINARY:
                kind, parts = frame.opcode.name.lower(), b""
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                parts += frame.data
                if frame.fin and not _is_text(kind, parts):
                    error = _decode_error(parts)
                    protocol.fail(CloseCode.INVALID_DATA, f"{error.reason} at position {error.start}")
                elif frame.fin:
                    heard.messages.append((kind, parts))
        for data in protocol.data_to_send():
            heard.written += data
            heard.is_ended |= not data
        if protocol.close_sent is not None and heard.close is None:
            is_peers = protocol.close_rcvd is not None and protocol.parser_exc is None
            heard.close = ("peer" if is_peers else "violation", protocol.close_sent.code)
    return heard


def _is_text(kind: str, payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return kind != "text"
    return True


def _decode_error(payload: bytes) -> UnicodeDecodeError:
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError("valid UTF-8")


def frame_bytes(
    opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, masked: bool = True, width: int = 0
) -> bytes:
    """A client's frame, as wrong as asked for. ``width`` 2 or 8 forces a longer length field than needed."""
    length = len(payload)
    head = bytes([fin << 7 | rsv << 4 | opcode])
    flag = masked << 7
    if length < 126 and not width:
        head += bytes([flag | length])
    elif length < 65_536 and width != 8:
        head += bytes([flag | 126]) + struct.pack("!H", length)
    else:
        head += bytes([flag | 127]) + struct.pack("!Q", length)
    if not masked:
        return head + payload
    mask = b"\x11\xa2\x03\xf4"
    return head + mask + bytes(byte ^ mask[i & 3] for i, byte in enumerate(payload))


texts = st.text(max_size=40).map(str.encode) | st.sampled_from(
    [b"\xc3", b"\xa9", b"\xff", b"a\xed\xa0\x80", b""]
)
payloads = (
    st.binary(max_size=140) | st.sampled_from([b"", b"x" * LIMIT, b"y" * (LIMIT + 1), b"z" * 126]) | texts
)
close_payloads = st.sampled_from(
    [b"", b"\x03", b"\x03\xe8", b"\x03\xe8bye", b"\x03\xed", b"\x03\xe8\xff", b"\x0f\xa0"]
)


def good(opcode: int, data: st.SearchStrategy[bytes], fin: bool = True) -> st.SearchStrategy[bytes]:
    return data.map(lambda payload: frame_bytes(opcode, payload, fin=fin))


ordinary = (
    good(1, texts) | good(2, payloads) | good(9, st.binary(max_size=125)) | good(10, st.binary(max_size=9))
)
odd = (
    good(1, texts, fin=False)
    | good(2, payloads, fin=False)
    | good(0, texts, fin=False)
    | good(0, payloads)
    | good(0, texts)
    | good(8, close_payloads)
    | good(9, st.binary(min_size=120, max_size=140))
    | st.builds(
        frame_bytes,
        st.integers(0, 15),
        payloads,
        fin=st.booleans(),
        rsv=st.sampled_from([0, 0, 0, 1, 2, 4, 7]),
        masked=st.sampled_from([True, True, True, False]),
        width=st.sampled_from([0, 0, 2, 8]),
    )
    | st.binary(max_size=12)
)
fragmented = st.lists(st.binary(max_size=30), min_size=2, max_size=6).flatmap(
    lambda parts: st.lists(
        st.just(b"") | good(9, st.binary(max_size=5)), min_size=len(parts), max_size=len(parts)
    ).map(
        lambda between: b"".join(
            frame_bytes(2 if i == 0 else 0, part, fin=i == len(parts) - 1) + between[i] * (i < len(parts) - 1)
            for i, part in enumerate(parts)
        )
    )
)
streams = st.lists(ordinary | ordinary | fragmented | odd, max_size=12).map(b"".join)


@st.composite
def split_streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    stream = draw(streams)
    cuts = sorted(draw(st.sets(st.integers(0, len(stream)), max_size=12)))
    edges = [0, *cuts, len(stream)]
    return stream, [stream[a:b] for a, b in itertools.pairwise(edges)]


_BAD_TEXT_THEN_PING = frame_bytes(1, b"\xff") + frame_bytes(9, b"later")


@settings(max_examples=1_500, deadline=None)
@given(split_streams())
@example((b"\x83", [b"\x83"]))
@example((b"\x83\x80", [b"\x83\x80"]))
@example((_BAD_TEXT_THEN_PING, [_BAD_TEXT_THEN_PING]))
def test_short_path_and_judge_agree(split: tuple[bytes, list[bytes]]) -> None:
    stream, pieces = split
    assert Recorder().feed_all(pieces) == judged(stream)


@settings(max_examples=300, deadline=None)
@given(streams)
def test_one_byte_at_a_time_and_all_at_once_agree(stream: bytes) -> None:
    slowly = Recorder().feed_all([stream[i : i + 1] for i in range(len(stream))])
    assert slowly == Recorder().feed_all([stream])


def test_the_judge_leaves_at_the_next_message_boundary() -> None:
    recorder = Recorder()
    recorder.feed_all([frame_bytes(2, b"ab", fin=False), frame_bytes(9, b"hi")])
    assert recorder.has_partial_message
    recorder.feed_all([frame_bytes(0, b"cd")])
    assert recorder.heard.messages == [("binary", b"abcd")]
    assert not recorder.has_partial_message


def test_a_flood_of_tiny_messages_takes_turns() -> None:
    class Patient(Recorder):
        __slots__ = ()

        def feed_all(self, pieces: list[bytes]) -> Heard:
            for piece in pieces:
                self.feed(piece)
            return self.heard

    flood = Patient()
    flood.feed_all([frame_bytes(2, b"") * 10_000])
    assert len(flood.heard.messages) == FRAMES_PER_TURN
    assert flood.is_waiting
    assert len(Recorder().feed_all([frame_bytes(2, b"") * 10_000]).messages) == 10_000


def is_waiting_after(stream: bytes, *, limit: int = 2_000_000) -> tuple[bool, int]:
    """Whether the turn was given away, and how many messages came in it."""
    recorder = Recorder()
    recorder.max_message_bytes = limit
    recorder.feed(stream)
    return recorder.is_waiting, len(recorder.heard.messages)


def test_a_long_text_has_a_turn_of_its_own() -> None:
    long, short = frame_bytes(1, b"x" * 700_000), frame_bytes(1, b"x" * 100)
    assert is_waiting_after(long) == (True, 1), "even where the read ended with it"
    assert is_waiting_after(long + long) == (True, 1)
    assert is_waiting_after(short * 10) == (False, 10)
    in_parts = frame_bytes(1, b"x" * 350_000, fin=False) + frame_bytes(0, b"x" * 350_000)
    assert is_waiting_after(in_parts) == (True, 1)
    assert is_waiting_after(in_parts + long) == (True, 1)


def test_text_counts_by_its_size() -> None:
    middling = frame_bytes(1, b"x" * (3 * TEXT_BYTES_PER_FRAME))
    assert is_waiting_after(middling * 63) == (False, 63)
    assert is_waiting_after(middling * 200) == (True, FRAMES_PER_TURN // 4)


def test_audio_counts_by_the_frame() -> None:
    assert is_waiting_after(frame_bytes(2, bytes(60_000)) * 100) == (False, 100)


def test_fragments_without_end_are_refused() -> None:
    endless = frame_bytes(2, b"", fin=False) + frame_bytes(0, b"", fin=False) * (MAX_FRAGMENTS + 1)
    heard = Recorder().feed_all([endless])
    assert heard.close == ("violation", 1009)
    assert heard.is_ended
    assert heard.messages == []


def test_frames_after_our_own_close_are_discarded() -> None:
    recorder = Recorder()
    recorder.feed(frame_bytes(2, b"first")[:5])
    recorder.close(1012, "bye")
    recorder.feed_all([frame_bytes(2, b"first")[5:], frame_bytes(1, b"second"), frame_bytes(8, b"\x03\xf4")])
    assert recorder.heard.messages == []
    assert recorder.heard.is_ended
    assert recorder.heard.close is None
    assert recorder.heard.written == b"\x88\x05\x03\xf4bye"
