"""The short path may not be told from the standard's judge: the same bytes give the same messages, replies and close code."""

from __future__ import annotations

import itertools
import logging
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from voiceserver.transport.websocket import FRAMES_PER_TURN, MAX_FRAGMENTS, TEXT_BYTES_PER_FRAME, FrameReader

LIMIT = 300
# Whoever gets a message that begins with this closes at once, from within the hook.
FAREWELL = b"farewell"
OWN_CLOSE = (1012, "enough")
_log = logging.getLogger("tests.judge")
_log.setLevel(logging.CRITICAL)


@dataclass
class Heard:
    """All that a peer and an application can observe."""

    messages: list[tuple[str, bytes]] = field(default_factory=list)
    written: bytes = b""
    is_ended: bool = False
    close: tuple[str, int] | None = None


class Recorder:
    """All that a ``FrameReader`` tells: its receiver, its sink and its clock."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.reader = FrameReader(self, self, self, limit)
        self.heard = Heard()
        self.is_waiting = False

    @property
    def flow(self) -> Recorder:
        return self

    def is_turn_long(self) -> bool:
        return False

    def receive_run(self, payloads: list[bytes]) -> bool:
        return False

    def receive_binary(self, payload: bytes) -> None:
        assert type(payload) is bytes
        self.hear("binary", payload)

    def receive_text(self, payload: bytes) -> None:
        assert type(payload) is bytes
        self.hear("text", payload)

    def receive_pong(self, payload: bytes) -> None:
        assert type(payload) is bytes
        self.hear("pong", payload)

    def hear(self, kind: str, payload: bytes) -> None:
        self.heard.messages.append((kind, payload))
        if payload.startswith(FAREWELL):
            self.reader.close(*OWN_CLOSE)

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
            assert self.reader.feed(piece) <= FRAMES_PER_TURN + LIMIT * 16
            while self.is_waiting:
                self.is_waiting = False
                self.reader.feed(b"")
        return self.heard


def judged(stream: bytes) -> Heard:
    """What plain ServerProtocol makes of it, one byte at a time, with the fragments put together by hand."""
    protocol = ServerProtocol(state=State.OPEN, max_size=LIMIT, logger=_log)
    heard = Heard()
    kind, parts = "", b""
    is_own_close = False
    for index in range(len(stream)):
        is_open = protocol.state is State.OPEN
        protocol.receive_data(stream[index : index + 1])
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            if not is_open:  # what comes after our own close is discarded, whatever it says
                continue
            message = None
            if frame.opcode is Opcode.PONG:
                message = ("pong", bytes(frame.data))
            elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                if frame.opcode is not Opcode.CONT:
                    kind, parts = frame.opcode.name.lower(), b""
                parts += frame.data
                if frame.fin and not _is_text(kind, parts):
                    error = _decode_error(parts)
                    protocol.fail(CloseCode.INVALID_DATA, f"{error.reason} at position {error.start}")
                elif frame.fin:
                    message = (kind, parts)
            if message is not None:
                heard.messages.append(message)
                if message[1].startswith(FAREWELL):
                    protocol.send_close(*OWN_CLOSE)
                    is_own_close = True
        for data in protocol.data_to_send():
            heard.written += data
            heard.is_ended |= not data
        if protocol.close_sent is not None and heard.close is None and not is_own_close:
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


_MASK = b"\x11\xa2\x03\xf4"


def frame_bytes(
    opcode: int,
    payload: bytes,
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes = _MASK,
    width: int = 0,
    claimed: int | None = None,
) -> bytes:
    """A client's frame, as wrong as asked for.

    ``width`` 2 or 8 forces a longer length field than needed; ``claimed`` is the length it says instead of the true one;
    no ``mask``: an unmasked frame.
    """
    length = len(payload) if claimed is None else claimed
    head = bytes([fin << 7 | rsv << 4 | opcode])
    flag = 0x80 if mask else 0
    if length < 126 and not width:
        head += bytes([flag | length])
    elif length < 65_536 and width != 8:
        head += bytes([flag | 126]) + struct.pack("!H", length)
    else:
        head += bytes([flag | 127]) + struct.pack("!Q", length)
    if not mask:
        return head + payload
    return head + mask + bytes(byte ^ mask[i & 3] for i, byte in enumerate(payload))


# A reader that takes a mask for a length finds a likely one in those that begin with zeros.
masks = (
    st.just(_MASK)
    | st.sampled_from([b"\0\0\0\0", b"\x00\x7e\x00\x05", b"\x00\x05\x82\x85", b"\xff\xff\xff\xff"])
    | st.binary(min_size=2, max_size=2).map(b"\0\x03".__add__)
    | st.binary(min_size=4, max_size=4)
)
widths = st.sampled_from([0, 2, 8])
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
    return st.builds(frame_bytes, st.just(opcode), data, fin=st.just(fin), mask=masks)


plain = st.sampled_from([b"", b"a", b"hello", b"x" * 126, b"y" * 256]) | st.binary(max_size=20)
# As audio comes: with a length of 16 bits, many in one read.
audio = st.builds(frame_bytes, st.just(2), plain, width=st.just(2), mask=masks)
ordinary = (
    audio
    | good(1, texts)
    | good(2, payloads)
    | good(9, st.binary(max_size=125))
    | good(10, st.binary(max_size=9))
)

# What is wrong or odd about a frame of one of the four kinds that the short path reads: one strategy for each defect.
short_path_opcodes = st.sampled_from([1, 2, 2, 9, 10])


def flawed(
    payload: st.SearchStrategy[bytes] = plain,
    mask: st.SearchStrategy[bytes] = masks,
    **flaw: st.SearchStrategy[int],
) -> st.SearchStrategy[bytes]:
    return st.builds(frame_bytes, short_path_opcodes, payload, mask=mask, **flaw)


sizes_64 = st.integers(LIMIT + 1, 2**63 - 1) | st.integers(0, 62).map((1).__lshift__).filter(LIMIT.__lt__)
FLAWS = {
    "unmasked": flawed(mask=st.just(b""), width=widths),
    "reserved bits": flawed(rsv=st.sampled_from([1, 2, 4, 1, 2, 4, 3, 5, 6, 7]), width=widths),
    "length not minimal": flawed(plain | st.binary(max_size=2), width=st.sampled_from([2, 8])),
    "over the limit": flawed(st.binary(min_size=LIMIT - 1, max_size=LIMIT + 2), width=widths),
    "claims to be over the limit": flawed(width=st.just(2), claimed=st.integers(LIMIT + 1, 65_535))
    | flawed(width=st.just(8), claimed=sizes_64),
    "top bit of the length": flawed(
        width=st.just(8), claimed=(st.integers(0, LIMIT) | st.integers(0, 2**63 - 1)).map((1 << 63).__or__)
    ),
}

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
        mask=masks | masks | st.just(b""),
        width=st.sampled_from([0, 0, 2, 8]),
    )
    | st.binary(max_size=12)
)


def in_fragments(opcode: int, parts: list[bytes], between: list[bytes] | None = None) -> bytes:
    """A message in so many frames; ``between``: what comes before the second, the third and so on."""
    frames = [frame_bytes(opcode, parts[0], fin=len(parts) == 1)]
    for number, part in enumerate(parts[1:], 2):
        frames += [between[number - 2] if between else b"", frame_bytes(0, part, fin=number == len(parts))]
    return b"".join(frames)


fragmented = st.lists(st.binary(max_size=30), min_size=2, max_size=6).flatmap(
    lambda parts: st.lists(
        st.just(b"") | good(9, st.binary(max_size=5)) | good(10, st.binary(max_size=5)),
        min_size=len(parts),
        max_size=len(parts),
    ).map(lambda between: in_fragments(2, parts, between))
)
_last_words = st.sampled_from([FAREWELL, FAREWELL + b"." * 130])
farewells = (
    st.builds(frame_bytes, st.sampled_from([1, 2, 2]), _last_words, mask=masks, width=widths)
    | good(10, st.just(FAREWELL))
    | st.builds(in_fragments, st.sampled_from([1, 2]), st.sampled_from([[FAREWELL[:3], FAREWELL[3:]]]))
    | st.builds(in_fragments, st.just(2), st.just([b"a", b"b"]), st.just([frame_bytes(10, FAREWELL)]))
)
streams = st.lists(ordinary | ordinary | fragmented | odd | farewells, max_size=12).map(b"".join)


def amid_good_frames(
    thing: st.SearchStrategy[bytes], *, after: st.SearchStrategy[bytes] = ordinary | fragmented
) -> st.SearchStrategy[bytes]:
    """It, with something before it and after it: a frame misread shows in what is read next."""
    before = st.lists(ordinary | fragmented, max_size=2).map(b"".join)
    return st.tuples(before, thing, st.lists(after, min_size=1, max_size=4).map(b"".join)).map(b"".join)


@st.composite
def split(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """A stream, and the same in pieces: often one, as the short path sees the most of what came in one."""
    stream = draw(whole)
    most_cuts = draw(st.sampled_from([0, 0, 1, 12]))
    cuts = sorted(draw(st.sets(st.integers(0, len(stream)), max_size=most_cuts)))
    edges = [0, *cuts, len(stream)]
    return stream, [stream[a:b] for a, b in itertools.pairwise(edges)]


def at_once(*frames: bytes) -> tuple[bytes, list[bytes]]:
    stream = b"".join(frames)
    return stream, [stream]


_PING = frame_bytes(9, b"later")
_AUDIO = frame_bytes(2, b"a" * 130)
_HI = frame_bytes(1, b"hi")
_SHORT_FAREWELL = frame_bytes(2, FAREWELL)
_AUDIO_FAREWELL = frame_bytes(2, FAREWELL, width=2)
_FAREWELL_IN_FRAGMENTS = in_fragments(1, [FAREWELL[:3], FAREWELL[3:]])
_FAREWELL_WITHIN = in_fragments(2, [b"a", b"b"], [frame_bytes(10, FAREWELL)])


@settings(max_examples=300, deadline=None)
@given(split(streams))
@example((b"\x83", [b"\x83"]))
@example((b"\x83\x80", [b"\x83\x80"]))
@example(at_once(frame_bytes(1, b"\xff"), _PING))
# Unmasked.
@example(at_once(frame_bytes(1, b"hello", mask=b""), _PING))
@example(at_once(frame_bytes(2, b"hello", mask=b""), _PING))
@example(at_once(frame_bytes(2, b"a" * 130, mask=b""), _AUDIO))
@example(at_once(_AUDIO, frame_bytes(2, b"hello", mask=b"", width=2), _AUDIO))
@example(at_once(frame_bytes(2, b"hello", mask=b"", width=8), _AUDIO))
@example(at_once(frame_bytes(9, b"hello", mask=b""), _PING))
@example(at_once(frame_bytes(10, b"hello", mask=b""), _PING))
# Each of the reserved bits, by both ways in.
@example(at_once(frame_bytes(1, b"hello", rsv=1), _PING))
@example(at_once(frame_bytes(1, b"hello", rsv=2), _PING))
@example(at_once(frame_bytes(1, b"hello", rsv=4), _PING))
@example(at_once(frame_bytes(2, b"a" * 130, rsv=1), _AUDIO))
@example(at_once(frame_bytes(2, b"a" * 130, rsv=2), _AUDIO))
@example(at_once(_AUDIO, frame_bytes(2, b"a" * 130, rsv=4), _AUDIO))
@example(at_once(frame_bytes(9, b"hello", rsv=1), _PING))
@example(at_once(frame_bytes(10, b"hello", rsv=4), _PING))
# The three widths of a length, with masks that could be taken for one.
@example(at_once(frame_bytes(2, b"hello", mask=b"\x00\x05\x82\x85"), _AUDIO))
@example(at_once(frame_bytes(2, b"a" * 130, mask=b"\x00\x7e\x00\x05"), _AUDIO))
@example(at_once(frame_bytes(2, b"hello", mask=b"\x00\x7e\x00\x05", width=2), _AUDIO))
@example(at_once(frame_bytes(2, b"hello", mask=b"\x00\x7e\x00\x05", width=8), _AUDIO))
@example(at_once(frame_bytes(1, b"a" * 256), _PING))
@example(at_once(frame_bytes(2, b"a" * 130, fin=False), frame_bytes(0, b"a" * 130)))
@example(at_once(frame_bytes(9, b"a" * 126), _PING))
@example(at_once(frame_bytes(9, b"hello", width=2), _PING))
@example(at_once(frame_bytes(10, b"hello", width=8), _PING))
# Lengths over the limit, and a length that is small from the wrong end.
@example(at_once(frame_bytes(2, b"a" * LIMIT), _AUDIO))
@example(at_once(frame_bytes(2, b"a" * (LIMIT + 1)), _AUDIO))
@example(at_once(frame_bytes(1, b"a" * (LIMIT + 1), width=8), _AUDIO))
@example(at_once(frame_bytes(2, b"hello", claimed=5 << 56), _PING))
@example(at_once(frame_bytes(2, b"hello", claimed=1 << 63 | 5), _PING))
@example(at_once(frame_bytes(1, b"hello", claimed=1 << 63), _AUDIO))
# Pongs, by themselves and between fragments.
@example(at_once(frame_bytes(10, b"by themselves")))
@example(at_once(in_fragments(2, [b"a", b"b"], [frame_bytes(10, b"between")])))
# Our own close, from a hook, with more in the same read.
@example(at_once(_SHORT_FAREWELL, _HI))
@example(at_once(_AUDIO_FAREWELL, _AUDIO, _AUDIO))
@example(at_once(frame_bytes(1, FAREWELL), _AUDIO, _PING))
@example(at_once(frame_bytes(10, FAREWELL), frame_bytes(1, b"\xff"), frame_bytes(8, b"\x03\xe8")))
@example(at_once(_FAREWELL_IN_FRAGMENTS, _HI, _AUDIO))
@example(at_once(_FAREWELL_IN_FRAGMENTS, _PING))
@example(at_once(_FAREWELL_IN_FRAGMENTS, _HI, frame_bytes(8, b"\x03\xe8")))
@example(at_once(_FAREWELL_IN_FRAGMENTS, _HI, frame_bytes(1, b"\xff")))
@example(at_once(_FAREWELL_IN_FRAGMENTS, _HI, frame_bytes(1, b"hello", mask=b"")))
@example(at_once(_FAREWELL_IN_FRAGMENTS, _FAREWELL_IN_FRAGMENTS, _SHORT_FAREWELL))
@example(at_once(_FAREWELL_WITHIN, _HI))
def test_short_path_and_judge_agree(case: tuple[bytes, list[bytes]]) -> None:
    stream, pieces = case
    assert Recorder().feed_all(pieces) == judged(stream)


@pytest.mark.parametrize("flaw", FLAWS)
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_short_path_and_judge_agree_on_a_frame_that_is(flaw: str, data: st.DataObject) -> None:
    stream, pieces = data.draw(split(amid_good_frames(FLAWS[flaw])))
    assert Recorder().feed_all(pieces) == judged(stream)


@settings(max_examples=200, deadline=None)
@given(split(amid_good_frames(farewells, after=audio | ordinary | fragmented | odd | farewells)))
def test_short_path_and_judge_agree_on_what_follows_our_own_close(case: tuple[bytes, list[bytes]]) -> None:
    stream, pieces = case
    assert Recorder().feed_all(pieces) == judged(stream)


@settings(max_examples=300, deadline=None)
@given(streams)
def test_one_byte_at_a_time_and_all_at_once_agree(stream: bytes) -> None:
    slowly = Recorder().feed_all([stream[i : i + 1] for i in range(len(stream))])
    assert slowly == Recorder().feed_all([stream])


def test_the_judge_leaves_at_the_next_message_boundary() -> None:
    recorder = Recorder()
    recorder.feed_all([frame_bytes(2, b"ab", fin=False), frame_bytes(9, b"hi")])
    assert recorder.reader.has_partial_message
    recorder.feed_all([frame_bytes(0, b"cd")])
    assert recorder.heard.messages == [("binary", b"abcd")]
    assert not recorder.reader.has_partial_message


def test_a_flood_of_tiny_messages_takes_turns() -> None:
    class Patient(Recorder):
        __slots__ = ()

        def feed_all(self, pieces: list[bytes]) -> Heard:
            for piece in pieces:
                self.reader.feed(piece)
            return self.heard

    flood = Patient()
    flood.feed_all([frame_bytes(2, b"") * 10_000])
    assert len(flood.heard.messages) == FRAMES_PER_TURN
    assert flood.is_waiting
    assert len(Recorder().feed_all([frame_bytes(2, b"") * 10_000]).messages) == 10_000


def is_waiting_after(stream: bytes, *, limit: int = 2_000_000) -> tuple[bool, int]:
    """Whether the turn was given away, and how many messages came in it."""
    recorder = Recorder(limit)
    recorder.reader.feed(stream)
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
    recorder.reader.feed(frame_bytes(2, b"first")[:5])
    recorder.reader.close(1012, "bye")
    recorder.feed_all([frame_bytes(2, b"first")[5:], frame_bytes(1, b"second"), frame_bytes(8, b"\x03\xf4")])
    assert recorder.heard.messages == []
    assert recorder.heard.is_ended
    assert recorder.heard.close is None
    assert recorder.heard.written == b"\x88\x05\x03\xf4bye"
