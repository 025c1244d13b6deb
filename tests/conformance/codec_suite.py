"""The one suite that every codec passes. A new codec is one more ``Wire`` in ``WIRES``; the tests are ``CodecSuite``.

What every wire owes its callers: audio arrives whole, as PCM16 at the rate the codec states, however it was cut; a
reply comes out as it went in; nonsense gives a ``ProtocolError`` and changes nothing; busy is said in every state; any
event, in any order, can be encoded.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import math
import random
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.wire import Audio, Codec, Frame, mulaw
from voiceserver.wire.native import NativeCodec
from voiceserver.wire.openai import Dialect, OpenAICodec
from voiceserver.wire.openai.audio import AudioFormat
from voiceserver.wire.twilio import TwilioCodec
from voiceserver.wire.whisperlive import WhisperLiveCodec

EXACT = 0.0
COMPANDED = 1 / 16  # G.711 keeps about 12 bits: the error of a sample grows with it

Bytes = bytes


@dataclass(frozen=True)
class Wire:
    """How a client of one codec speaks and listens.

    ``encode``: PCM16 as this wire's audio bytes; ``say``: one client frame that carries audio bytes; ``hear``: the PCM16
    in server frames; ``unit``: bytes of the smallest piece that a client may send; ``error``: largest relative error.
    ``replies``: False for a wire without reply audio. ``speaks_first``: False for one that can say nothing before the
    client's hello, and says it then. ``valid``: client frames that the nonsense tests start from.
    """

    name: str
    make: Callable[[], Codec]
    rate_hz: int
    say: Callable[[Bytes], Frame]
    hear: Callable[[Iterable[Frame]], Bytes]
    encode: Callable[[Bytes], Bytes] = bytes
    unit: int = 2
    error: float = EXACT
    hello: Sequence[Frame] = ()
    goodbye: Sequence[Frame] = ()
    replies: bool = True
    speaks_first: bool = True
    valid: Sequence[Frame] = field(default_factory=tuple)

    def __str__(self) -> str:
        return self.name

    def open(self) -> Codec:
        """A codec whose client has said hello."""
        codec = self.make()
        frames = codec.encode(ev.SessionReady("s", codec.input_rate_hz, codec.output_rate_hz))
        assert all(isinstance(frame, (str, bytes)) for frame in frames)
        for frame in self.hello:
            receive(codec, frame)
        return codec


def receive(codec: Codec, frame: Frame) -> list[ev.ClientEvent | Audio]:
    """One client frame, as the shell hands it over."""
    received = codec.receive_text(frame.encode()) if isinstance(frame, str) else codec.receive_binary(frame)
    codec.frames_to_send()
    return received


def audio_of(received: Iterable[ev.ClientEvent | Audio]) -> bytes:
    pieces = [one.pcm for one in received if isinstance(one, Audio)]
    assert all(len(pcm) % 2 == 0 for pcm in pieces), "audio is whole samples"
    return b"".join(pieces)


# ------------------------------------------------------------------------------------------------------------- wires


def native_wire(rate_hz: int) -> Wire:
    return Wire(
        name=f"native-{rate_hz}",
        make=lambda: NativeCodec(rate_hz, rate_hz),
        rate_hz=rate_hz,
        say=bytes,
        hear=lambda frames: b"".join(frame for frame in frames if isinstance(frame, bytes)),
        goodbye=('{"type":"session.close"}',),
        valid=(
            '{"type":"session.update","instructions":"x"}',
            '{"type":"input.commit"}',
            '{"type":"reply.cancel"}',
        ),
    )


def openai_wire(dialect: Dialect, audio_format: AudioFormat) -> Wire:
    is_pcm = audio_format is AudioFormat.PCM
    named: object = audio_format.describe() if dialect is Dialect.GA else audio_format.beta_name
    both = {"input": {"format": named}, "output": {"format": named}}
    flat = {"input_audio_format": named, "output_audio_format": named}
    update = {"type": "session.update", "session": {"audio": both} if dialect is Dialect.GA else flat}
    delta = "response.output_audio.delta" if dialect is Dialect.GA else "response.audio.delta"

    def say(data: bytes) -> str:
        return json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()})

    def hear(frames: Iterable[Frame]) -> bytes:
        events = [json.loads(frame) for frame in frames]
        return b"".join(
            audio_format.to_pcm(base64.b64decode(one["delta"])) for one in events if one["type"] == delta
        )

    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    return Wire(
        name=f"openai-{dialect.value}-{audio_format.beta_name}",
        make=lambda: OpenAICodec("s", dialect),
        rate_hz=audio_format.rate_hz,
        say=say,
        hear=hear,
        encode=audio_format.from_pcm,
        unit=1,
        error=EXACT if is_pcm else COMPANDED,
        hello=(json.dumps(update),),
        goodbye=('{"type":"input_audio_buffer.commit"}',),
        valid=(
            json.dumps(update),
            json.dumps({"type": "conversation.item.create", "event_id": "e", "item": item}),
            '{"type":"conversation.item.truncate","item_id":"i","content_index":0,"audio_end_ms":5}',
            '{"type":"response.create","response":{"conversation":"none","input":[],"metadata":{"a":"b"}}}',
            '{"type":"response.cancel"}',
            '{"type":"input_audio_buffer.append","audio":"AAAA"}',
        ),
    )


def twilio_wire() -> Wire:
    start = {
        "streamSid": "MZ1",
        "callSid": "CA1",
        "accountSid": "AC1",
        "customParameters": {"language": "en"},
    }

    def message(event: str, **fields: object) -> str:
        return json.dumps({"event": event, "sequenceNumber": "2", "streamSid": "MZ1", **fields})

    def say(data: bytes) -> str:
        payload = base64.b64encode(data).decode()
        return message(
            "media", media={"track": "inbound", "chunk": "1", "timestamp": "20", "payload": payload}
        )

    def hear(frames: Iterable[Frame]) -> bytes:
        events = [json.loads(frame) for frame in frames]
        payloads = [one["media"]["payload"] for one in events if one["event"] == "media"]
        return mulaw.to_pcm(b"".join(base64.b64decode(payload) for payload in payloads))

    return Wire(
        name="twilio",
        make=TwilioCodec,
        rate_hz=8_000,
        say=say,
        hear=hear,
        encode=mulaw.from_pcm,
        unit=1,
        error=COMPANDED,
        hello=(message("start", start=start),),
        goodbye=(message("stop", stop={"accountSid": "AC1", "callSid": "CA1"}),),
        speaks_first=False,
        valid=(
            '{"event":"connected","protocol":"Call","version":"1.0.0"}',
            message("dtmf", dtmf={"track": "inbound_track", "digit": "5"}),
            message("mark", mark={"name": "1.1"}),
        ),
    )


def whisperlive_wire(audio_format: str) -> Wire:
    def floats(pcm: bytes) -> bytes:
        return struct.pack(f"<{len(pcm) // 2}f", *(sample / 32768.0 for sample in samples_of(pcm)))

    is_float = audio_format == "float32"
    options = {"uid": "u", "language": "en", "task": "transcribe", "model": "small", "use_vad": True}
    if not is_float:
        options["audio_format"] = audio_format
    return Wire(
        name=f"whisperlive-{audio_format}",
        make=WhisperLiveCodec,
        rate_hz=16_000,
        say=bytes,
        hear=lambda frames: b"",
        encode=floats if is_float else bytes,
        unit=4 if is_float else 2,
        hello=(json.dumps(options),),
        goodbye=(b"END_OF_AUDIO",),
        replies=False,
        speaks_first=False,
        valid=(b"\0" * 64,),
    )


WIRES: list[Wire] = [
    native_wire(16_000),
    native_wire(8_000),
    *(openai_wire(dialect, audio_format) for dialect in Dialect for audio_format in AudioFormat),
    twilio_wire(),
    whisperlive_wire("float32"),
    whisperlive_wire("int16"),
]


# ------------------------------------------------------------------------------------------------------------- tools

fuzz = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
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
    samples = rate_hz * ms // 1000
    return struct.pack(
        f"<{samples}h", *(int(12_000 * math.sin(2 * math.pi * hz * i / rate_hz)) for i in range(samples))
    )


def samples_of(pcm: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(pcm) // 2}h", pcm)


def assert_same_audio(heard: bytes, said: bytes, error: float) -> None:
    assert len(heard) == len(said), f"{len(said) // 2} samples went in, {len(heard) // 2} came out"
    if error == EXACT:
        assert heard == said
        return
    for got, wanted in zip(samples_of(heard), samples_of(said), strict=True):
        assert abs(got - wanted) <= 16 + error * abs(wanted)


def cut(data: bytes, unit: int, rng: random.Random) -> list[bytes]:
    """``data`` in pieces of random length, each a whole number of units but the last."""
    pieces, at = [], 0
    while at < len(data):
        size = unit * rng.choice((1, 3, 160, 481))
        pieces.append(data[at : at + size])
        at += size
    return pieces


def server_events() -> st.SearchStrategy[list[ev.ServerEvent]]:
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


def spoil(frame: Frame, rng: random.Random) -> Frame:
    """``frame`` with a few bytes changed, cut or doubled; still UTF-8 if it was text, as the transport sees to that."""
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


# ------------------------------------------------------------------------------------------------------------- suite


class CodecSuite:
    """Parametrized over ``wire`` by ``test_codecs``."""

    def test_states_the_rates_of_its_audio(self, wire: Wire) -> None:
        codec = wire.open()
        assert codec.input_rate_hz == wire.rate_hz
        assert codec.output_rate_hz > 0
        assert codec.traits.name

    @pytest.mark.parametrize("seed", range(3))
    def test_no_sample_is_lost_or_changed_however_audio_is_cut_until_the_client_has_ended(
        self, wire: Wire, seed: int
    ) -> None:
        rng = random.Random(seed)
        said = tone(wire.rate_hz, 330.0, 700)
        codec = wire.open()
        heard = b""
        for piece in cut(wire.encode(said), wire.unit, rng):
            heard += audio_of(receive(codec, wire.say(piece)))
        for frame in wire.goodbye:
            heard += audio_of(receive(codec, frame))
        assert_same_audio(heard, said, wire.error)

    def test_audio_has_its_pitch_at_the_stated_rate(self, wire: Wire) -> None:
        codec = wire.open()
        pcm = audio_of(receive(codec, wire.say(wire.encode(tone(wire.rate_hz, 440.0, 1000)))))
        samples = samples_of(pcm)
        assert len(samples) == codec.input_rate_hz
        rising = sum(1 for a, b in itertools.pairwise(samples) if a < 0 <= b)
        assert abs(rising - 440) <= 2

    def test_a_reply_comes_out_as_it_went_in(self, wire: Wire) -> None:
        if not wire.replies:
            pytest.skip("a wire without replies")
        codec = wire.open()
        said = tone(codec.output_rate_hz, 220.0, 300)
        frames = codec.encode(ev.ReplyStarted(turn=1))
        for piece in cut(said, 2, random.Random(7)):
            frames += codec.encode(ev.ReplyAudio(turn=1, pcm=piece))
        frames += codec.encode(ev.ReplyDone(turn=1, reason="completed"))
        assert_same_audio(wire.hear(frames), said, wire.error)

    def test_busy_is_said_in_every_state(self, wire: Wire) -> None:
        fresh = wire.make()
        said = fresh.encode(BUSY)
        if not wire.speaks_first:
            assert not said
            assert isinstance(wire.hello[0], str)
            fresh.receive_text(wire.hello[0].encode())
            said = fresh.frames_to_send()
        assert said
        codec = wire.open()
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
            assert codec.encode(BUSY), "busy is said again when it goes on"

    @fuzz
    @given(events=server_events())
    def test_any_event_in_any_order_can_be_said(self, wire: Wire, events: list[ev.ServerEvent]) -> None:
        codec = wire.open()
        for event in events:
            for frame in codec.encode(event):
                if isinstance(frame, str):
                    assert isinstance(json.loads(frame), dict)

    @fuzz
    @given(text=st.text(max_size=200), data=st.binary(max_size=200))
    def test_arbitrary_messages_give_only_a_protocol_error(self, wire: Wire, text: str, data: bytes) -> None:
        codec = wire.open()
        for frame in (text, data, data.decode(errors="replace")):
            expect_events_or_protocol_error(codec, frame)

    @pytest.mark.parametrize("seed", range(10))
    def test_a_spoiled_message_gives_only_a_protocol_error(self, wire: Wire, seed: int) -> None:
        rng = random.Random(seed)
        codec = wire.open()
        for _ in range(20):
            for frame in (*wire.valid, wire.say(wire.encode(bytes(64)))):
                expect_events_or_protocol_error(codec, spoil(frame, rng))

    @pytest.mark.parametrize("seed", range(10))
    def test_bytes_that_are_not_utf8_give_only_a_protocol_error(self, wire: Wire, seed: int) -> None:
        """The transport lets none through; a codec does not rely on it."""
        rng = random.Random(seed)
        codec = wire.open()
        for frame in (one.encode() for one in wire.valid if isinstance(one, str)):
            for _ in range(20):
                data = bytearray(frame)
                data[rng.randrange(len(data))] = rng.randrange(0x80, 0x100)
                with contextlib.suppress(ProtocolError):
                    codec.receive_text(bytes(data))
                codec.encode(ev.SessionUpdated())

    def test_deep_nesting_gives_a_protocol_error(self, wire: Wire) -> None:
        codec = wire.open()
        with pytest.raises(ProtocolError):
            codec.receive_text(b'{"type":' + b"[" * 100_000)

    def test_nonsense_in_between_changes_nothing_of_the_audio(self, wire: Wire) -> None:
        said = tone(wire.rate_hz, 500.0, 200)
        codec = wire.open()
        heard = b""
        for piece in cut(wire.encode(said), wire.unit, random.Random(3)):
            for nonsense in ("{", '{"type":"no.such.event"}', "[]"):
                with pytest.raises(ProtocolError) as refused:
                    codec.receive_text(nonsense.encode())
                assert refused.value.code
                codec.encode_protocol_error(refused.value)
            heard += audio_of(receive(codec, wire.say(piece)))
        for frame in wire.goodbye:
            heard += audio_of(receive(codec, frame))
        assert_same_audio(heard, said, wire.error)


def expect_events_or_protocol_error(codec: Codec, frame: Frame) -> None:
    try:
        received = receive(codec, frame)
    except ProtocolError as error:
        for answer in codec.encode_protocol_error(error):
            assert answer
    else:
        audio_of(received)
