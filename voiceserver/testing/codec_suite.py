"""``CodecSuite``: what every codec promises, as tests. A new wire passes it before it has tests of its own.

A codec promises its callers: audio arrives whole, as PCM16 at the rate that the codec states, however it was cut; reply audio
leaves as it came; an invalid message is a ``ProtocolError`` and changes nothing; busy is announced in every state; any event
can be encoded, in any order. Subclass the suite and say in a ``CodecCase`` how a client of the wire speaks::

    class TestMyCodec(CodecSuite):
        @pytest.fixture
        def case(self) -> CodecCase:
            return CodecCase("mine", MyCodec, 16_000, audio_message=bytes, reply_audio=b"".join)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.wire import Audio, Codec, Frame

EXACT = 0.0
# G.711 keeps about 12 bits: the error of a sample grows with it.
COMPANDED = 1 / 16


@dataclass(frozen=True)
class CodecCase:
    """How a client of one codec speaks and listens.

    name: what the test's id shows.
    make: a new codec, as for a new connection.
    rate_hz: of the audio that clients send.
    audio_message: one client message that carries these bytes of audio.
    reply_audio: the PCM16 that some server messages carry.
    encode_audio: PCM16 as bytes of the wire's audio format.
    unit_bytes: the smallest piece of audio that a client may send.
    tolerance: the largest relative error of a sample; ``EXACT`` or ``COMPANDED``.
    hello: the client's messages at the start.
    goodbye: the client's messages at the end of its audio.
    has_reply_audio: False for a wire without.
    sends_first: False for a wire whose server has to wait for the client's hello.
    valid_messages: client messages, which the tests then damage.
    """

    name: str
    make: Callable[[], Codec]
    rate_hz: int
    audio_message: Callable[[bytes], Frame]
    reply_audio: Callable[[Iterable[Frame]], bytes]
    encode_audio: Callable[[bytes], bytes] = bytes
    unit_bytes: int = 2
    tolerance: float = EXACT
    hello: Sequence[Frame] = ()
    goodbye: Sequence[Frame] = ()
    has_reply_audio: bool = True
    sends_first: bool = True
    valid_messages: Sequence[Frame] = ()

    def __str__(self) -> str:
        return self.name

    def open(self) -> Codec:
        """A codec whose client has sent hello."""
        codec = self.make()
        frames = codec.encode(ev.SessionReady("s", codec.input_rate_hz, codec.output_rate_hz))
        assert all(isinstance(frame, (str, bytes)) for frame in frames)
        for frame in self.hello:
            receive(codec, frame)
        return codec

    def receive_all(self, codec: Codec, pcm: bytes, rng: random.Random) -> Iterable[bytes]:
        """What the codec makes of ``pcm``, piece by piece, when the client sends it in pieces of random length."""
        for piece in cut(self.encode_audio(pcm), self.unit_bytes, rng):
            yield audio_of(receive(codec, self.audio_message(piece)))
        for frame in self.goodbye:
            yield audio_of(receive(codec, frame))


def receive(codec: Codec, frame: Frame) -> list[ev.ClientEvent | Audio]:
    """Give a codec one client message, as the server does."""
    received = codec.receive_text(frame.encode()) if isinstance(frame, str) else codec.receive_binary(frame)
    codec.frames_to_send()
    return received


def audio_of(received: Iterable[ev.ClientEvent | Audio]) -> bytes:
    """The PCM16 among what a codec received."""
    pieces = [one.pcm for one in received if isinstance(one, Audio)]
    assert all(len(pcm) % 2 == 0 for pcm in pieces), "audio is whole samples"
    return b"".join(pieces)


fuzz = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.differing_executors,
        # A case does not change.
        HealthCheck.function_scoped_fixture,
    ],
)

BUSY = ev.ServerBusy(
    stage="stt",
    reason="slow",
    lag_ms=412.0,
    credit_ms=900.0,
    retry_after_ms=250.0,
    dropped_ms=20.0,
    position=0,
    turn=1,
)


def tone(rate_hz: int, hz: float, ms: int) -> bytes:
    """A sine wave as PCM16."""
    samples = rate_hz * ms // 1000
    return struct.pack(
        f"<{samples}h", *(int(12_000 * math.sin(2 * math.pi * hz * i / rate_hz)) for i in range(samples))
    )


def samples_of(pcm: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(pcm) // 2}h", pcm)


def assert_same_audio(received: bytes, sent: bytes, tolerance: float) -> None:
    assert len(received) == len(sent), f"{len(sent) // 2} samples went in, {len(received) // 2} came out"
    if tolerance == EXACT:
        assert received == sent
        return
    for got, wanted in zip(samples_of(received), samples_of(sent), strict=True):
        assert abs(got - wanted) <= 16 + tolerance * abs(wanted)


def cut(data: bytes, unit: int, rng: random.Random) -> list[bytes]:
    """``data`` in pieces of random length, each a whole number of units but the last."""
    pieces, at = [], 0
    while at < len(data):
        size = unit * rng.choice((1, 3, 160, 481))
        pieces.append(data[at : at + size])
        at += size
    return pieces


def server_events() -> st.SearchStrategy[list[ev.ServerEvent]]:
    """Any events in any order."""
    turn = st.integers(1, 3)
    text = st.text(max_size=12)
    reason = st.sampled_from(("completed", "interrupted", "cancelled", "failed", "limited", "filtered"))
    ms = st.floats(0, 1e6)
    one = st.one_of(
        st.builds(ev.SessionUpdated),
        st.builds(ev.SpeechStarted, turn=turn, at_ms=ms),
        st.builds(ev.SpeechStopped, turn=turn, at_ms=ms),
        st.builds(ev.InputCommitted, turn=turn, audio_ms=ms),
        st.builds(ev.InputCleared),
        st.builds(ev.InputIdle, from_ms=ms, to_ms=ms),
        st.builds(ev.TranscriptPartial, turn=turn, text=text),
        st.builds(ev.TranscriptFinal, turn=turn, text=text),
        st.builds(ev.TranscriptFailed, turn=turn, code=st.just("engine_failed"), message=text),
        st.builds(ev.ReplyStarted, turn=turn, speaks=st.booleans(), is_out_of_band=st.booleans()),
        st.builds(ev.ReplyText, turn=turn, text=text),
        st.builds(ev.ReplyFiller, turn=turn, text=text, audio_ms=ms),
        st.builds(
            ev.ReplyToolCall,
            turn=turn,
            index=st.integers(0, 1),
            call_id=st.just("c1"),
            name=st.just("f"),
            arguments=text,
            is_done=st.booleans(),
        ),
        st.builds(ev.ReplyAudio, turn=turn, pcm=st.sampled_from((bytes(320), b"\x01\x7f" * 160))),
        st.builds(ev.ReplyDone, turn=turn, reason=reason, text=text),
        st.builds(ev.PlaybackStop, turn=turn, played_ms=ms),
        st.builds(ev.DigitHeard, digit=st.sampled_from("0123456789*#")),
        st.just(BUSY),
        st.builds(ev.ServerReady),
        st.builds(ev.ServerDraining, deadline_ms=ms),
        st.builds(ev.ErrorEvent, code=st.just("engine_failed"), message=text),
        st.just(ev.SessionClosing("client", ev.Accounting(1.0, 1.0, 0.0, 0.0))),
    )
    return st.lists(one, max_size=24)


def damaged(frame: Frame, rng: random.Random) -> Frame:
    """``frame`` with a few bytes changed, cut or doubled; still UTF-8 if it was text, because the server checks that."""
    data = bytearray(frame.encode() if isinstance(frame, str) else frame)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(3)
        if kind == 0 and data:
            data[at] = rng.choice(b'"{}[]:,0-9ntf\\u\x00 ')
        elif kind == 1:
            del data[at : at + rng.randint(1, 5)]
        else:
            data[at:at] = data[at : at + 9]
    return data.decode(errors="replace") if isinstance(frame, str) else bytes(data)


class CodecSuite:
    """Its tests ask for a fixture ``case``, a ``CodecCase``."""

    def test_states_the_rates_of_its_audio(self, case: CodecCase) -> None:
        codec = case.open()
        assert codec.input_rate_hz == case.rate_hz
        assert codec.output_rate_hz > 0
        assert codec.traits.name

    @pytest.mark.parametrize("seed", range(3))
    def test_no_sample_is_lost_or_changed_however_audio_is_cut_until_the_client_has_ended(
        self, case: CodecCase, seed: int
    ) -> None:
        rng = random.Random(seed)
        sent = tone(case.rate_hz, 330.0, 700)
        codec = case.open()
        received = b"".join(case.receive_all(codec, sent, rng))
        assert_same_audio(received, sent, case.tolerance)

    def test_audio_has_its_pitch_at_the_stated_rate(self, case: CodecCase) -> None:
        codec = case.open()
        pcm = audio_of(receive(codec, case.audio_message(case.encode_audio(tone(case.rate_hz, 440.0, 1000)))))
        samples = samples_of(pcm)
        assert len(samples) == codec.input_rate_hz
        rising = sum(1 for a, b in itertools.pairwise(samples) if a < 0 <= b)
        assert abs(rising - 440) <= 2

    def test_a_reply_comes_out_as_it_went_in(self, case: CodecCase) -> None:
        if not case.has_reply_audio:
            pytest.skip("a wire without replies")
        codec = case.open()
        sent = tone(codec.output_rate_hz, 220.0, 300)
        frames = codec.encode(ev.ReplyStarted(turn=1))
        for piece in cut(sent, 2, random.Random(7)):
            frames += codec.encode(ev.ReplyAudio(turn=1, pcm=piece))
        frames += codec.encode(ev.ReplyDone(turn=1, reason="completed"))
        assert_same_audio(case.reply_audio(frames), sent, case.tolerance)

    def test_busy_is_announced_in_every_state(self, case: CodecCase) -> None:
        fresh = case.make()
        sent = fresh.encode(BUSY)
        if not case.sends_first:
            assert not sent
            assert isinstance(case.hello[0], str)
            fresh.receive_text(case.hello[0].encode())
            sent = fresh.frames_to_send()
        assert sent
        codec = case.open()
        for event in (
            ev.SpeechStarted(turn=1, at_ms=0.0),
            ev.SpeechStopped(turn=1, at_ms=500.0),
            ev.InputCommitted(turn=1, audio_ms=500.0),
            ev.TranscriptFinal(turn=1, text="yes"),
            ev.ReplyStarted(turn=1),
            ev.ReplyText(turn=1, text="Yes."),
            ev.ReplyAudio(turn=1, pcm=bytes(320)),
            ev.ReplyDone(turn=1, reason="completed"),
            ev.ServerDraining(deadline_ms=1000.0),
        ):
            codec.encode(event)
            assert codec.encode(BUSY), f"busy is silent after {event}"
            assert codec.encode(BUSY), "busy is announced again when it goes on"

    @fuzz
    @given(events=server_events())
    def test_any_event_in_any_order_can_be_encoded(
        self, case: CodecCase, events: list[ev.ServerEvent]
    ) -> None:
        codec = case.open()
        for event in events:
            for frame in codec.encode(event):
                if isinstance(frame, str):
                    assert isinstance(json.loads(frame), dict)

    @fuzz
    @given(text=st.text(max_size=200), data=st.binary(max_size=200))
    def test_arbitrary_messages_give_only_a_protocol_error(
        self, case: CodecCase, text: str, data: bytes
    ) -> None:
        codec = case.open()
        for frame in (text, data, data.decode(errors="replace")):
            expect_events_or_protocol_error(codec, frame)

    @pytest.mark.parametrize("seed", range(10))
    def test_a_damaged_message_gives_only_a_protocol_error(self, case: CodecCase, seed: int) -> None:
        rng = random.Random(seed)
        codec = case.open()
        for _ in range(20):
            for frame in (*case.valid_messages, case.audio_message(case.encode_audio(bytes(64)))):
                expect_events_or_protocol_error(codec, damaged(frame, rng))

    @pytest.mark.parametrize("seed", range(10))
    def test_bytes_that_are_not_utf8_give_only_a_protocol_error(self, case: CodecCase, seed: int) -> None:
        """The server refuses such messages before; a codec does not rely on it."""
        rng = random.Random(seed)
        codec = case.open()
        for frame in (one.encode() for one in case.valid_messages if isinstance(one, str)):
            for _ in range(20):
                data = bytearray(frame)
                data[rng.randrange(len(data))] = rng.randrange(0x80, 0x100)
                with contextlib.suppress(ProtocolError):
                    codec.receive_text(bytes(data))
                codec.encode(ev.SessionUpdated())

    def test_deep_nesting_gives_a_protocol_error(self, case: CodecCase) -> None:
        codec = case.open()
        with pytest.raises(ProtocolError):
            codec.receive_text(b'{"type":' + b"[" * 100_000)

    def test_nonsense_in_between_changes_nothing_of_the_audio(self, case: CodecCase) -> None:
        sent = tone(case.rate_hz, 500.0, 200)
        codec = case.open()
        received = b""
        for piece in case.receive_all(codec, sent, random.Random(3)):
            received += piece
            for nonsense in ("{", '{"type":"no.such.event"}', "[]"):
                with pytest.raises(ProtocolError) as refused:
                    codec.receive_text(nonsense.encode())
                assert refused.value.code
                codec.encode_protocol_error(refused.value)
        assert_same_audio(received, sent, case.tolerance)


def expect_events_or_protocol_error(codec: Codec, frame: Frame) -> None:
    """Any other exception fails the test."""
    try:
        received = receive(codec, frame)
    except ProtocolError as error:
        for answer in codec.encode_protocol_error(error):
            assert answer
    else:
        audio_of(received)
