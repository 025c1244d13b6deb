"""A turn ends on the wall clock too, on all wires: when audio stops to come, and never for audio that is late by the grace."""

from __future__ import annotations

import math
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from websockets.frames import Opcode

from tests.conformance import wires
from tests.voiceserver.shell import AnsweredStream, Line, Shell, masked, upgrade
from voiceserver.config.schema import SessionConfig
from voiceserver.testing.codec_suite import CodecCase
from voiceserver.wire.openai import Dialect
from voiceserver.wire.openai.audio import AudioFormat
from voiceserver_workers.ipc.messages import RequestKind, ResultKind, pack_speech

SESSION = SessionConfig()
GRACE_MS, SILENCE_MS = SESSION.audio_grace_ms, SESSION.silence_duration_ms
WINDOW_MS = 20
TICK_MS = 2  # of the deadlines' wheel
CALLERS = {
    "native": ("/v1/stream", wires.native_wire(16_000)),
    "realtime": ("/v1/realtime", wires.openai_wire(Dialect.GA, AudioFormat.PCM)),
    "realtime-g711": ("/v1/realtime", wires.openai_wire(Dialect.BETA, AudioFormat.ULAW)),
    "twilio": ("/v1/twilio", wires.twilio_wire()),
    "whisperlive": ("/", wires.whisperlive_wire("float32")),
}
# Milliseconds of silence and speech, in turn: two turns, the first with a pause in it.
TALK = (300, 900, 240, 400, 700, 800, 700)
SPEECH = b"\x00\x20"


class Arrival(NamedTuple):
    at_ms: int
    pcm: bytes


class Talker:
    """One caller of a wire. vad hears exactly which audio is speech; stt takes everything at once."""

    def __init__(self, wire: str) -> None:
        path, self.case = CALLERS[wire]
        self.shell = Shell("vad", "stt", session=SESSION, ping_interval_ms=0)
        self.began_ms = self.shell.loop.now_ms
        self.line: Line = self.shell.call(upgrade(path))
        for message in self.case.hello:
            self.send(message)
        self.heard: dict[str, int] = {"vad": 0, "stt": 0}
        self.heard_ms = 0.0

    @property
    def now_ms(self) -> float:
        return self.shell.loop.now_ms - self.began_ms

    def send(self, message: str | bytes) -> None:
        is_text = isinstance(message, str)
        data = message.encode() if isinstance(message, str) else message
        self.line.receive(masked(Opcode.TEXT if is_text else Opcode.BINARY, data))

    def talk(self, arrivals: list[Arrival]) -> None:
        for at_ms, pcm in arrivals:
            self.shell.loop.advance(max(at_ms - self.now_ms, 0))
            self.send(self.case.audio_message(self.case.encode_audio(pcm)))
            self.hear()

    def hear(self) -> None:
        for stage in ("vad", "stt"):
            for stream in self.shell.pools[stage].streams:
                for request in stream.sent[self.heard[stage] :]:
                    self._take(stage, stream, *request)
                self.heard[stage] = len(stream.sent)

    def _take(
        self, stage: str, stream: AnsweredStream, kind: RequestKind, turn: int, seq: int, payload: bytes
    ) -> None:
        if stage == "stt":
            stream.answer(ResultKind.CONSUMED, turn, seq)
            return
        end_ms = seq * 1000.0 / stream.params.rate_hz
        window = stream.params.rate_hz * WINDOW_MS // 1000 * 2
        windows = [payload[at : at + window] for at in range(0, len(payload), window)]
        probabilities = [0.9 if any(one) else 0.0 for one in windows]
        stream.answer(ResultKind.SPEECH, 0, seq, pack_speech(self.heard_ms, WINDOW_MS, probabilities))
        self.heard_ms = end_ms

    @property
    def turns(self) -> list[tuple[int, int]]:
        """Each turn that has ended, and where in the audio."""
        sent = [request for stream in self.shell.pools["stt"].streams for request in stream.sent]
        return [(turn, seq) for kind, turn, seq, _ in sent if kind is RequestKind.FLUSH]


def audio_of(case: CodecCase, parts: tuple[int, ...]) -> bytes:
    """PCM16 of silence and speech in turn, in ms."""
    samples = case.rate_hz // 1000
    return b"".join((SPEECH if index % 2 else bytes(2)) * (ms * samples) for index, ms in enumerate(parts))


def messages_of(case: CodecCase, pcm: bytes, chunk_ms: int) -> list[Arrival]:
    """As a live client sends them: each when its audio is over."""
    size = case.rate_hz * chunk_ms // 1000 * 2
    return [
        Arrival((index + 1) * chunk_ms, pcm[at : at + size])
        for index, at in enumerate(range(0, len(pcm), size))
    ]


def late(arrivals: list[Arrival], delays: list[int]) -> list[Arrival]:
    """Each message is late by its delay; none overtakes another."""
    at_ms, found = 0, []
    for index, one in enumerate(arrivals):
        at_ms = max(at_ms, one.at_ms + delays[index % len(delays)])
        found.append(Arrival(at_ms, one.pcm))
    return found


def spoken(wire: str, chunk_ms: int, delays: list[int]) -> list[tuple[int, int]]:
    talker = Talker(wire)
    talker.talk(late(messages_of(talker.case, audio_of(talker.case, TALK), chunk_ms), delays))
    return talker.turns


@pytest.mark.parametrize("wire", CALLERS)
@settings(max_examples=8, deadline=None)
@given(
    chunk_ms=st.sampled_from([20, 100, 260, 1_000]),
    delays=st.lists(st.integers(0, GRACE_MS) | st.sampled_from([0, GRACE_MS]), min_size=1, max_size=40),
)
def test_audio_that_is_late_by_the_grace_cuts_nobody_off(wire: str, chunk_ms: int, delays: list[int]) -> None:
    on_time = spoken(wire, chunk_ms, [0])
    assert len(on_time) == 2
    assert spoken(wire, chunk_ms, delays) == on_time


@pytest.mark.parametrize("wire", CALLERS)
@settings(max_examples=8, deadline=None)
@given(
    chunk_ms=st.sampled_from([20, 100, 260]),
    trailing_ms=st.integers(0, SILENCE_MS // 2),
    delay_ms=st.integers(2_000, 9_000),
    stall_ms=st.sampled_from([0, 0, 3_000]),
)
def test_a_turn_ends_when_no_audio_comes_and_late_audio_is_the_next(
    wire: str, chunk_ms: int, trailing_ms: int, delay_ms: int, stall_ms: int
) -> None:
    talker = Talker(wire)
    arrivals = messages_of(talker.case, audio_of(talker.case, (200, 800, trailing_ms)), chunk_ms)
    talker.talk(arrivals)
    assert talker.turns == []
    last_ms, ends_ms = talker.now_ms, chunk_ms + SILENCE_MS + GRACE_MS
    message_ms = math.ceil(len(arrivals[-1].pcm) * 500 / talker.case.rate_hz)
    if stall_ms:  # the server stood still: nobody knows what waits in the socket
        talker.shell.loop.now_ms += stall_ms
        ends_ms = stall_ms + GRACE_MS
        talker.shell.loop.advance(GRACE_MS - TICK_MS)
        assert talker.turns == [], "a new grace has begun"
    else:
        talker.shell.loop.advance(message_ms + SILENCE_MS + GRACE_MS - TICK_MS)
        assert talker.turns == [], "the grace is not over"
    talker.shell.loop.advance(max(last_ms + ends_ms + 2 * TICK_MS - talker.now_ms, 0))
    assert [turn for turn, _ in talker.turns] == [1]
    talker.hear()
    talker.shell.loop.advance(delay_ms)
    assert len(talker.turns) == 1
    again_ms = round(talker.now_ms)
    more = messages_of(talker.case, audio_of(talker.case, (0, 800, 700)), chunk_ms)
    talker.talk([Arrival(again_ms + at_ms, pcm) for at_ms, pcm in more])
    assert [turn for turn, _ in talker.turns] == [1, 2]
    call = talker.line.connection.call
    assert call is not None
    session = call.session
    session.disconnect(talker.shell.loop.now_ms)
    books = session.accounting()
    received_ms = 1_000.0 + trailing_ms + 1_500.0
    assert math.isclose(books.received_ms, received_ms, abs_tol=0.01)
    assert books.received_ms == pytest.approx(books.consumed_ms + books.dropped_ms + books.discarded_ms)
    assert books.dropped_ms == 0.0


@pytest.mark.parametrize("wire", CALLERS)
def test_a_grace_of_zero_leaves_the_end_to_the_audio(wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.SESSION", SessionConfig(audio_grace_ms=0))
    talker = Talker(wire)
    talker.talk(messages_of(talker.case, audio_of(talker.case, (200, 800)), 20))
    talker.shell.loop.advance(60_000)
    assert talker.turns == []
