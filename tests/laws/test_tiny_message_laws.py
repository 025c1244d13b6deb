"""However a caller cuts its audio into messages: stt gets each sample once and in order, also after a crash, and what is
kept of it is in few pieces."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from voiceserver.events.events import TurnDetection
from voiceserver.session.audio_input import AudioInput
from voiceserver.session.outbox import ENTRY_BYTES
from voiceserver_workers.ipc.messages import RequestKind

RATE_HZ = 8_000
SMALL = RATE_HZ // 50  # 20 ms
DETECTION = TurnDetection(prefix_padding_ms=0, min_speech_ms=0)

message = st.one_of(st.just(1), st.integers(1, SMALL), st.integers(1, 6 * SMALL))
step = st.one_of(
    st.tuples(st.just("hear"), st.lists(message, min_size=1, max_size=40)),
    st.tuples(st.just("take"), st.integers(0, 60)),
    st.tuples(st.just("crash"), st.none()),
    st.tuples(st.just("pause"), st.none()),
    st.tuples(st.just("end"), st.none()),
)


class Caller:
    """A caller, a vad that takes everything at once (or none), and an stt that lags and dies."""

    def __init__(self, detection: TurnDetection | None) -> None:
        self.audio_input = AudioInput(RATE_HZ, detection, 1e9)
        self.has_vad = detection is not None
        self.said = bytearray()
        self.turn = 0
        self.begun = 0
        self.sent: list[tuple[RequestKind, int, int, bytes]] = []
        self.taken = 0
        self.has_marks = False
        self.begin()

    def begin(self) -> None:
        self.turn += 1
        self.begun = self.audio_input.received_seq
        at_ms = self.audio_input.ms(self.begun)
        self.audio_input.begin(self.turn, at_ms, at_ms, 0.0)

    def hear(self, sizes: list[int]) -> None:
        audio_input = self.audio_input
        for size in sizes:
            at = len(self.said)
            pcm = b"".join((at // 2 + i).to_bytes(4, "little")[:2] for i in range(size))
            self.said += pcm
            audio_input.receive(pcm, 0.0)
            if self.has_vad:
                audio_input.outbox.send_to(lambda *_: True)
            audio_input.consume(audio_input.received_seq)
            if size % 3:
                self.send()

    def send(self) -> None:
        def give(kind: RequestKind, turn: int, seq: int, payload: bytes) -> bool:
            self.sent.append((kind, turn, seq, payload))
            return True

        self.audio_input.capture.send_to(give)

    def take(self, count: int) -> None:
        self.send()
        for _, turn, seq, _ in self.sent[self.taken : self.taken + count]:
            assert turn == self.turn
            self.audio_input.capture.consume(seq)
            self.audio_input.check()
        self.taken = min(self.taken + count, len(self.sent))

    def crash(self) -> None:
        self.audio_input.capture.rewind()
        self.sent, self.taken = [], 0

    def pause(self) -> None:
        if not self.audio_input.is_paused:
            self.audio_input.pause(self.audio_input.ms(self.audio_input.received_seq), 0.0)
            self.audio_input.resume(self.audio_input.ms(self.audio_input.received_seq), 0.0)
            self.has_marks = True

    def end(self) -> None:
        """The transcript is of all that was said, to the sample."""
        self.audio_input.end(self.audio_input.ms(self.audio_input.received_seq), 0.0)
        self.take(10**9)  # all there is
        heard = b"".join(payload for kind, _, _, payload in self.sent if kind is RequestKind.DATA)
        assert heard == bytes(self.said[self.begun * 2 :])
        assert self.sent[-1][0] is RequestKind.FLUSH
        self.check()
        assert self.audio_input.capture.backlog == 0
        self.audio_input.capture.commit_turn(self.turn)
        self.sent, self.taken, self.has_marks = [], 0, False
        self.begin()

    def check(self) -> None:
        audio_input = self.audio_input
        audio_input.check()
        assert audio_input.outbox.received == len(self.said) // 2
        if not self.has_marks:
            in_flight = len(self.sent) - self.taken
            audio = 2 * (audio_input.received_seq - self.begun)
            kept = (audio_input.capture.memory_bytes - audio) // ENTRY_BYTES
            assert kept <= (audio_input.received_seq - self.begun) // SMALL + in_flight + 3


@pytest.mark.parametrize("detection", [None, DETECTION], ids=["by hand", "vad"])
@settings(max_examples=150, deadline=None)
@given(steps=st.lists(step, max_size=25))
def test_any_cut_of_the_audio_gives_the_same_turns(
    detection: TurnDetection | None, steps: list[tuple[str, object]]
) -> None:
    caller = Caller(detection)
    for name, argument in steps:
        if argument is None:
            getattr(caller, name)()
        else:
            getattr(caller, name)(argument)
        caller.check()
    caller.crash()
    caller.end()
