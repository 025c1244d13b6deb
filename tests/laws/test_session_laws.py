"""The session under any interleaving of callers, stages, losses and time.

The stages here are honest but arbitrary: they answer what they were sent, in order, whenever they like, or die. Laws, after
every step: the books balance to the sample; a started reply ends once; transcripts do not retract; audio of a reply is said
once and in order; nothing follows the close; and whoever waits longer than ``busy_after_ms`` has been told.
"""

from __future__ import annotations

import json

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.voiceserver.audit import Audit
from tests.voiceserver.session_bench import settings_of
from voiceserver.config.schema import BackpressureConfig
from voiceserver.errors import ProtocolError, Refusal
from voiceserver.events import events as ev
from voiceserver.session.session import Session
from voiceserver.session.settings import ServerSnapshot
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind, pack_speech

RATE_HZ = 8_000
OUT_HZ = 8_000
STAGES = ("vad", "stt", "reply", "tts")
Request = tuple[RequestKind, int, int, bytes]


def sentence_of(turn: int, index: int) -> str:
    return f"{turn} {index} words."


def audio_of(text: bytes) -> bytes:
    return (text + b" ") * 40


class SessionUnderAnything(RuleBasedStateMachine):
    @initialize(
        resumes=st.booleans(),
        max_backlog_ms=st.sampled_from([400, 10_000]),
        speaks=st.booleans(),
        preemptive=st.booleans(),
    )
    def open(self, resumes: bool, max_backlog_ms: int, speaks: bool, preemptive: bool) -> None:
        options = settings_of(
            backpressure=BackpressureConfig(max_backlog_ms=max_backlog_ms),
            false_interruption_ms=800.0 if resumes else 0.0,
            reply_timeout_ms=3_000.0,
            close_timeout_ms=4_000.0,
            preemptive=preemptive,
        )
        self.now_ms = 100.0
        self.session = Session("s", options, ServerSnapshot(), input_rate_hz=RATE_HZ, output_rate_hz=OUT_HZ)
        self.said = Audit(lambda text: audio_of(text.encode()))
        self.streams: dict[str, list[Request]] = {}
        self.spoken: dict[tuple[int, int], int] = {}
        self.answered: dict[int, int] = {}
        self.refusing: set[str] = set()
        self.vad_ms = 0.0
        self.samples = 0
        self.session.open(self.now_ms)
        if not speaks:
            self.session.receive_event(ev.SessionUpdate(speaks=False), self.now_ms)
        self.pump()

    # ---- the shell

    def pump(self) -> None:
        session = self.session
        if session.is_settled:
            assert session.streams_to_change() == ([], []), "settled, and wants other streams"
        session.is_settled = True
        for _ in range(30):
            unwanted, wanted = session.streams_to_change()
            if not unwanted and not wanted:
                break
            for stage in unwanted:
                del self.streams[stage]
                self._forget_stage(stage, 0)
                session.stream_closed(stage)
            for stage in wanted:
                if stage in self.refusing:
                    session.stream_refused(stage, Refusal("full", 200.0, stage), self.now_ms)
                    continue
                params = session.stream_params(stage)
                self.streams[stage] = []
                self._forget_stage(stage, params.start_seq)
                session.stream_opened(stage, self.now_ms)
        else:
            raise AssertionError("the pump does not come to rest")
        for stage in session.stages_with_requests():
            outbox = session.outbox_of(stage)
            assert outbox is not None
            sent = self.streams[stage]
            outbox.send_to(lambda *request: sent.append(request) is None)  # noqa: B023
        self.hear_events()

    def hear_events(self) -> None:
        for event in self.session.events_to_send():
            self.said.take(event)

    def _forget_stage(self, stage: str, start_seq: int) -> None:
        """A new worker knows nothing."""
        if stage == "vad":
            self.vad_ms = start_seq * 1000.0 / RATE_HZ
        elif stage == "reply":
            self.answered = {}
        elif stage == "tts":
            self.spoken = {}

    def result(self, stage: str, kind: ResultKind, turn: int, seq: int, payload: bytes = b"") -> None:
        self.session.receive_result(stage, Record(kind, 1, turn, seq, payload), self.now_ms)
        self.pump()

    def take(self, stage: str, count: int) -> list[Request]:
        requests = self.streams.get(stage, [])
        taken, requests[:] = requests[:count], requests[count:]
        return taken

    # ---- the caller

    @rule(ms=st.integers(1, 100), times=st.integers(1, 8), beside=st.integers(0, 3))
    def speak(self, ms: int, times: int, beside: int) -> None:
        for _ in range(times):
            samples = ms * RATE_HZ // 1000 + beside
            if not self.session.is_closed:
                self.samples += samples
            self.session.receive_audio(b"\1\0" * samples, self.now_ms)
            self.pump()

    @rule(
        event=st.sampled_from(
            [
                ev.InputCommit(),
                ev.InputCommit(creates_reply=False),
                ev.InputClear(),
                ev.ReplyCreate(),
                ev.ReplyCreate(is_out_of_band=True, speaks=False),
                ev.ReplyCancel(),
                ev.ReplyPlayed(turn=1, played_ms=50.0, is_final=True),
                ev.ItemAppend(item=ev.HistoryItem(role="user", text="x")),
                ev.SessionUpdate(turn_detection=None),
                ev.SessionUpdate(turn_detection=ev.TurnDetection(idle_timeout_ms=500)),
                ev.SessionUpdate(turn_detection=ev.TurnDetection(interrupts_reply=False, max_turn_ms=500)),
                ev.SessionUpdate(audible_busy=True),
            ]
        )
    )
    def ask(self, event: ev.ClientEvent) -> None:
        try:
            self.session.receive_event(event, self.now_ms)
        except ProtocolError:
            assert not self.session.events_to_send(), "what is refused says nothing"
        self.pump()

    # ---- the stages

    @precondition(lambda self: self.streams.get("vad"))
    @rule(count=st.integers(1, 30), probability=st.sampled_from([0.0, 0.3, 0.4, 0.9, 0.9]))
    def vad(self, count: int, probability: float) -> None:
        for _, turn, seq, _ in self.take("vad", count):
            end_ms = seq * 1000.0 / RATE_HZ
            payload = pack_speech(self.vad_ms, end_ms - self.vad_ms, [probability])
            self.vad_ms = end_ms
            self.result("vad", ResultKind.SPEECH, turn, seq, payload)

    @precondition(lambda self: self.streams.get("stt"))
    @rule(
        count=st.integers(1, 40), text=st.sampled_from(["", "words", "more words"]), fails=st.integers(0, 9)
    )
    def stt(self, count: int, text: str, fails: int) -> None:
        for kind, turn, seq, _ in self.take("stt", count):
            if kind == RequestKind.FLUSH:
                if fails:
                    self.result("stt", ResultKind.FINAL, turn, seq, text.encode())
                else:
                    self.result("stt", ResultKind.FAILED, turn, seq, b"{}")
            elif kind == RequestKind.PAUSE:
                self.result("stt", ResultKind.TEXT, turn, seq, text.encode())
            elif text and seq % 3 == 0:
                self.result("stt", ResultKind.TEXT, turn, seq, text[: seq % 5].encode())
            else:
                self.result("stt", ResultKind.CONSUMED, turn, seq)

    @precondition(lambda self: self.streams.get("reply") or self.answered)
    @rule(pieces=st.integers(1, 4), fails=st.integers(0, 9))
    def reply(self, pieces: int, fails: int) -> None:
        for _, turn, _, _ in self.take("reply", 1):
            self.answered[turn] = 0
        for turn in list(self.answered):
            for _ in range(pieces):
                if turn not in self.answered:
                    break
                index = self.answered[turn]
                self.answered[turn] = index + 1
                if not fails:
                    self.result("reply", ResultKind.FAILED, turn, 1, b"{}")
                    self.answered.pop(turn, None)
                elif index == 3:
                    self.answered.pop(turn, None)
                    self.result("reply", ResultKind.DONE, turn, 1)
                else:
                    self.result("reply", ResultKind.TEXT, turn, 1, sentence_of(turn, index).encode())

    @precondition(lambda self: self.streams.get("tts"))
    @rule(samples=st.integers(1, 300), is_done=st.booleans())
    def tts(self, samples: int, is_done: bool) -> None:
        _, turn, seq, payload = self.streams["tts"][0]
        begun = self.spoken.get((turn, seq), 0)
        pcm = audio_of(payload)
        end = len(pcm) if is_done else min(begun + samples * 2, len(pcm))
        self.spoken[turn, seq] = end
        if end == len(pcm):
            self.take("tts", 1)
        stream = self.streams["tts"]
        if end > begun:
            self.result("tts", ResultKind.AUDIO, turn, seq, pcm[begun:end])
        if end == len(pcm) and self.streams.get("tts") is stream:
            self.result("tts", ResultKind.DONE, turn, seq)

    @rule(
        depth=st.integers(1, 6),
        text=st.sampled_from(["words", "words", ""]),
        tail=st.integers(1, 6),
        crashes=st.lists(st.tuples(st.sampled_from(STAGES), st.integers(0, 30)), max_size=3),
    )
    def converse(self, depth: int, text: str, tail: int, crashes: list[tuple[str, int]]) -> None:
        """Walk a turn down to where faults are interesting, as random steps alone seldom do."""
        for step in range(18 + tail):
            if step < 18:
                self.speak(ms=80, times=1, beside=0)
                if self.streams.get("vad"):
                    self.vad(count=99, probability=0.9 if step < 9 else 0.0)
                if self.streams.get("stt"):
                    self.stt(count=99, text=text, fails=1)
            elif depth > 3:
                if self.streams.get("reply") or self.answered:
                    self.reply(pieces=1 if depth == 4 else 2, fails=1)
                if depth > 4 and self.streams.get("tts"):
                    self.tts(samples=120, is_done=depth == 6)
            for stage, when in crashes:
                if when == step:
                    self.lose(stage, "worker_lost")
            if depth == 1 and step == 9:
                return

    # ---- faults and time

    @rule(stage=st.sampled_from(STAGES), reason=st.sampled_from(["worker_lost", "worker_hung"]))
    def lose(self, stage: str, reason: str) -> None:
        if stage in self.streams:
            del self.streams[stage]
            self._forget_stage(stage, 0)
            signals = self.said.signals
            was_needed = self.session.demand().get(stage, False)
            self.session.lose_stream(stage, reason, self.now_ms)
            self.hear_events()
            assert self.said.signals > signals or not was_needed, "a loss is told at once"
            self.pump()

    @rule(stage=st.sampled_from(STAGES), is_full=st.booleans())
    def room(self, stage: str, is_full: bool) -> None:
        if is_full and not self.refusing:
            self.refusing.add(stage)
        else:
            for one in list(self.refusing):
                self.session.retry(one)
            self.refusing.clear()
            self.pump()

    @rule(ms=st.sampled_from([1, 20, 90, 250, 700, 2_500]))
    def wait(self, ms: int) -> None:
        end_ms = self.now_ms + ms
        fired = 0
        while self.session.deadline_ms <= end_ms:
            self.now_ms = max(self.now_ms, self.session.deadline_ms)
            self.session.handle_timer(self.now_ms)
            self.pump()
            fired += 1
            assert fired < 200, "timers that never rest"
        self.now_ms = end_ms

    @rule(is_held=st.booleans())
    def hold(self, is_held: bool) -> None:
        self.session.hold_output(is_held, self.now_ms)
        self.pump()

    @rule(position=st.integers(0, 3))
    def queue(self, position: int) -> None:
        if position:
            self.session.waiting(position, position * 1_000.0, self.now_ms)
        else:
            self.session.admitted(self.now_ms)
        self.pump()

    @rule(how=st.sampled_from(["close", "drain", "disconnect", "fail"]), luck=st.integers(0, 9))
    def end(self, how: str, luck: int) -> None:
        if luck or self.session.is_closed:
            return
        if how == "close":
            self.ask(ev.SessionClose())
        elif how == "drain":
            self.session.drain(1_000.0, self.now_ms)
        elif how == "disconnect":
            self.session.disconnect(self.now_ms)
        else:
            self.session.fail("internal_error", "oops", 1011, self.now_ms)
        self.pump()

    # ---- the laws

    @invariant()
    def the_books_balance(self) -> None:
        audio_input = self.session.audio_input
        if audio_input is None:
            assert self.samples == 0
            return
        audio_input.check()
        assert audio_input.outbox.received == self.samples
        books = self.session.accounting()
        assert abs(books.received_ms - books.consumed_ms - books.dropped_ms - books.discarded_ms) < 0.002
        assert min(books.consumed_ms, books.dropped_ms, books.discarded_ms) >= 0.0
        late = (
            audio_input.capture.consumed
            + audio_input.capture.backlog
            + audio_input.capture.dropped
            + audio_input.capture.discarded
        )
        assert late == audio_input.capture.received <= audio_input.outbox.consumed

    @invariant()
    def what_was_dropped_was_announced(self) -> None:
        busy_monitor = self.session.busy_monitor
        waiting_ms = busy_monitor.dropped_ms if busy_monitor is not None else 0.0
        books = self.session.accounting()
        assert abs(books.dropped_ms - self.said.dropped_ms - waiting_ms) < 0.01 * (self.said.signals + 1)
        if self.session.is_closed:
            assert self.said.closing is not None
            assert waiting_ms == 0.0

    @invariant()
    def whoever_waits_was_told(self) -> None:
        session = self.session
        if session.is_closed or session.audio_input is None:
            return
        assert session.deadline_ms > self.now_ms - 1e-6 or self._is_due_now()
        limit_ms = session.settings.backpressure.busy_after_ms
        boxes = [("vad", session.audio_input.outbox), ("stt", session.audio_input.capture)]
        for stage, outbox in boxes:
            oldest_ms = outbox.oldest_at_ms
            if (
                oldest_ms is not None
                and session.demand().get(stage, False)
                and self.now_ms - oldest_ms > limit_ms
            ):
                assert session.busy_monitor is not None
                assert session.busy_monitor.is_busy, f"{stage} waits since {oldest_ms}, now {self.now_ms}"

    def _is_due_now(self) -> bool:
        """A deadline that a call has just moved into the past is served by the next timer."""
        before = self.now_ms
        self.wait(0)
        return self.now_ms == before

    @invariant()
    def a_guess_is_of_what_is_being_said_and_beside_no_reply(self) -> None:
        session = self.session
        preemptive_reply = session.preemptive_reply
        if preemptive_reply is None:
            return
        assert session.settings.preemptive
        assert session.reply is None
        assert not session.is_closed
        assert preemptive_reply.turn == session.last_speech_turn
        assert preemptive_reply.turn not in self.said.texts
        assert all(item.turn < preemptive_reply.turn for item in session.speech_output.history.items)

    @invariant()
    def requests_can_be_read(self) -> None:
        for _, turn, seq, payload in self.streams.get("reply", []):
            assert seq == 1
            assert json.loads(payload)["turn"] == turn

    def teardown(self) -> None:
        session = getattr(self, "session", None)
        if session is None:
            return
        if not session.is_closed:
            session.drain(1_000.0, self.now_ms)
            self.pump()
            self.wait(2_500)
        assert session.is_closed, "a drained session closes by its deadline"
        assert not self.said.open_replies


SessionUnderAnything.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestSessionUnderAnything = SessionUnderAnything.TestCase
