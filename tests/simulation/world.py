"""The whole system but sockets and processes, in one thread, on a manual clock: sessions, admission, pools, rings, workers.

``World(seed)`` draws callers and faults from the seed; ``run`` plays them and checks the promises at every tick. All faults end
at ``HEALED_MS``, so that from then on there is no excuse. Faults: a worker dies between or inside its steps, at any line
of ring or worker code; hangs; is slow; raises; rings too small; too few places; callers who leave, read slowly, come all at once.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import msgspec
import numpy as np

from tests.simulation.engines import (
    POISON,
    RATE_HZ,
    WORD,
    SimReply,
    SimStt,
    SimTts,
    SimVad,
    speech_of,
)
from tests.voiceserver.audit import Audit
from tests.voiceserver.session_bench import settings_of
from voiceserver import events as ev
from voiceserver.backpressure import Admission, Ticket
from voiceserver.config import BackpressureConfig
from voiceserver.errors import Refusal
from voiceserver.pool import LossReason, Stream
from voiceserver.pool.inline import InlinePool, SimulatedDeath
from voiceserver.pool.lane import LaneState
from voiceserver.pool.quarantine import Quarantine
from voiceserver.session import Session
from voiceserver.settings import Facts
from workers.batcher import BatchLimits
from workers.engine import EngineError, Item
from workers.ipc.channel import ChannelConfig, WorkerEnd
from workers.ipc.messages import Record
from workers.worker import Worker

TICK_MS = 20
CHUNK = 40  # samples of one message of a caller
HEALED_MS = 4_000.0
END_MS = 30_000.0  # every session is over by then, or the promise is broken
STEP_TIMEOUT_MS = 300.0
ENGINES = {"vad": SimVad, "stt": SimStt, "reply": SimReply, "tts": SimTts}
FAULTS = ("crash", "crash-inside", "hang", "slow", "raise")


class MortalEnd:
    """A worker's end of its channel, on which nothing happens after its death: no ``finally`` runs in a process that was
    killed, but here it does."""

    def __init__(self, end: WorkerEnd) -> None:
        self._end = end
        self.is_dead = False

    def receive(self, limit: int = 512) -> list[Record]:
        return [] if self.is_dead else self._end.receive(limit)

    def try_send(
        self, kind: int, stream: int, turn: int, seq: int, payload: bytes = b"", sent_ns: int = 0
    ) -> bool:
        return self.is_dead or self._end.try_send(kind, stream, turn, seq, payload, sent_ns)

    def ring_bell(self) -> None:
        if not self.is_dead:
            self._end.ring_bell()

    def beat(self) -> None:
        self._end.beat()

    def record_step(self, streams: Sequence[int], deadline_ns: int) -> None:
        self._end.record_step(streams, deadline_ns)

    def record_idle(self) -> None:
        if not self.is_dead:
            self._end.record_idle()


class DoomedWorker:
    """A worker that may be slow, or die at some line of its next poll as by SIGKILL: what it had stored stays."""

    def __init__(self, worker: Worker, end: MortalEnd) -> None:
        self._worker = worker
        self._end = end
        self.dies_in_lines = 0
        self.slow_until_ms = 0.0

    @property
    def is_stopping(self) -> bool:
        return self._worker.is_stopping

    def start(self) -> None:
        self._worker.start()

    def poll(self, now_ms: float) -> bool:
        if now_ms < self.slow_until_ms:
            return False
        if not self.dies_in_lines:
            return self._worker.poll(now_ms)
        lines = self.dies_in_lines

        def count(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal lines
            if "/workers/" not in frame.f_code.co_filename:
                return None
            lines -= event == "line"
            if lines <= 0:
                self._end.is_dead = True
                raise SimulatedDeath
            return count

        outer = sys.gettrace()
        sys.settrace(count)
        try:
            return self._worker.poll(now_ms)
        finally:
            sys.settrace(outer)


class Caller:
    """One connection: what the shell does, and a person who says words and knows which."""

    def __init__(self, world: World, name: str, start_ms: float) -> None:
        rng = world.rng
        self.world, self.name, self.start_ms = world, name, start_ms
        self.audit = Audit(lambda text: speech_of(text).tobytes())
        self.streams: dict[str, Stream] = {}
        self.ticket: Ticket | None = None
        self.refusal: Refusal | None = None
        self.session: Session | None = None
        self.words: list[int] = []
        self.audio = self._script(rng)
        self.sent = 0
        self.lost_words = False  # an engine failed on a turn, and said so
        self.leaves_ms = start_ms + rng.uniform(200, 4_000) if rng.random() < 0.12 else float("inf")
        self.is_slow_reader = rng.random() < 0.15
        self.is_poisonous = POISON in self.words
        self.waits_for_reply = rng.random() < 0.5
        self.is_impatient = rng.random() < 0.3
        self.gave_up = False
        self.closed_ms = 0.0

    def _script(self, rng: random.Random) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
        parts = [np.zeros(rng.randrange(20, 300), np.int16)]
        for _ in range(rng.randrange(1, 4)):
            for _ in range(rng.randrange(1, 4)):
                word = self.world.next_word()
                if rng.random() < 0.01:
                    word = POISON
                self.words.append(word)
                parts += [np.full(WORD, word, np.int16), np.zeros(rng.randrange(20, 80), np.int16)]
            parts.append(np.zeros(rng.choice([100, 320, 320, 700]), np.int16))
        return np.concatenate(parts)

    # ---- the shell: as in voiceserver.connection

    def on_result(self, stage: str, record: Record) -> None:
        assert self.session is not None
        self.session.receive_result(stage, record, self.world.now_ms)

    def on_stream_lost(self, stage: str, reason: LossReason) -> None:
        assert self.session is not None
        self.streams.pop(stage)
        needed, signals = self.session.needs(stage), self.audit.signals
        was_closed = self.session.is_closed
        self.session.lose_stream(stage, reason, self.world.now_ms)
        self.hear()
        told = self.audit.signals > signals or self.session.is_closed
        assert told or not needed or was_closed, f"{self.name} was not told that {stage} is lost"

    def on_room(self, stage: str) -> None:
        assert self.session is not None
        self.session.retry(stage)

    def on_tick(self) -> None:
        self.pump()

    def pump(self) -> None:
        session, now_ms = self.session, self.world.now_ms
        assert session is not None
        if session.is_settled:
            assert not session.stages_unwanted() + session.stages_wanted(), "settled, and wants other streams"
        session.is_settled = True
        for _ in range(30):
            unwanted, wanted = session.stages_unwanted(), session.stages_wanted()
            if not unwanted and not wanted:
                break
            for stage in unwanted:
                self.streams.pop(stage).close()
                session.stream_closed(stage)
            for stage in wanted:
                pool = self.world.pools[stage]
                got = pool.try_open(self, session.stream_params(stage), key=self.name)
                if isinstance(got, Refusal):
                    session.stream_refused(stage, got, now_ms)
                else:
                    self.streams[stage] = got
                    session.stream_opened(stage, now_ms)
        else:
            raise AssertionError("the pump does not come to rest")
        for stage in session.stages_with_requests():
            send = self.streams[stage].send
            while (request := session.next_request(stage)) is not None and send(*request):
                session.request_sent(stage, now_ms)
        self.hear()
        if session.is_closed and self.ticket is not None:
            assert not self.streams
            self.closed_ms = now_ms
            self.ticket.release(now_ms)
            self.ticket = None

    def hear(self) -> None:
        assert self.session is not None
        for event in self.session.events_to_send():
            self.audit.take(event)
            if type(event) is not ev.ReplyAudio:
                self.world.diary.append(f"{self.name} {self.world.now_ms} {event}")
            if isinstance(event, ev.TranscriptFailed | ev.ErrorEvent):
                self.lost_words = True

    # ---- the person

    def arrive(self) -> None:
        world = self.world
        got = world.admission.try_enter(world.now_ms)
        if isinstance(got, Refusal):
            self.refusal = got
            assert got.retry_after_ms > 0
            return
        self.ticket = got
        got.owner = self
        rate_hz = RATE_HZ
        self.session = Session(
            self.name, world.settings, Facts(), input_rate_hz=rate_hz, output_rate_hz=rate_hz
        )
        self.session.open(world.now_ms)
        if got.is_waiting:
            self.session.waiting(got.position, got.estimate_ms, world.now_ms)
        self.pump()

    def move(self) -> None:
        session, now_ms = self.session, self.world.now_ms
        assert session is not None
        if session.is_closed:
            return
        if now_ms >= self.leaves_ms:
            session.disconnect(now_ms)
        elif self.sent < len(self.audio):
            due = int(now_ms - self.start_ms)
            while self.sent < len(self.audio) and min(self.sent + CHUNK, len(self.audio)) <= due:
                chunk = self.audio[self.sent : self.sent + CHUNK]
                session.receive_audio(chunk.tobytes(), now_ms)
                self.sent += len(chunk)
        elif session.is_open and (
            not self.waits_for_reply or session.stage_of_turn == "idle" or now_ms > HEALED_MS + 3_000
        ):
            if session.place is not None and not self.is_impatient:
                return
            self.gave_up = session.place is not None  # who leaves the waiting room is let go at once
            session.receive_event(ev.SessionClose(), now_ms)
        if self.is_slow_reader and not session.is_closed:
            session.hold_output(now_ms < HEALED_MS and int(now_ms / 500) % 2 == 0, now_ms)
        self.pump()

    def serve_deadline(self) -> None:
        session = self.session
        if session is not None and session.deadline_ms <= self.world.now_ms:
            session.handle_timer(self.world.now_ms)
            self.pump()

    # ---- the promises

    def check(self) -> None:
        session = self.session
        if session is None or session.is_closed:
            return
        ear, now_ms = session.ear, self.world.now_ms
        if ear is not None:
            ear.check()
            books = session.accounting()
            total_ms = books.consumed_ms + books.dropped_ms + books.discarded_ms
            assert abs(books.received_ms - total_ms) < 0.002
            assert books.received_ms == self.sent
            waiting_ms = session.gate.dropped_ms if session.gate is not None else 0.0
            assert abs(books.dropped_ms - self.audit.dropped_ms - waiting_ms) < 0.01
        owed_ms = self._waits_since_ms(session)
        if now_ms - owed_ms > session.settings.backpressure.busy_after_ms + TICK_MS:
            assert session.gate is not None, f"{self.name} waits since {owed_ms} and was told nothing"
            assert session.gate.is_busy, f"{self.name} waits since {owed_ms} and was told nothing"
            told_ms = now_ms - session.gate.signalled_ms
            assert told_ms <= session.settings.backpressure.busy_repeat_ms + TICK_MS, "no fresh numbers"

    def _waits_since_ms(self, session: Session) -> float:
        since = [self.world.now_ms]
        if session.place is not None:
            return session.place.since_ms
        boxes = [("vad", session.ear.outbox), ("stt", session.ear.capture)] if session.ear is not None else []
        reply = session.reply
        if reply is not None and not session.is_output_held:
            boxes.append(("tts", reply.say))
        since += [
            box.oldest_at_ms for name, box in boxes if session.needs(name) and box.oldest_at_ms is not None
        ]
        return min(since)

    def judge(self) -> None:
        """At the end: served, or told."""
        if self.refusal is not None:
            return
        session = self.session
        assert session is not None
        assert session.is_closed, f"{self.name} is still open: {session.stage_of_turn}, {session.deadline_ms}"
        closing = self.audit.closing
        assert closing is not None
        books = closing.accounting
        said = [int(part.split(":")[0]) for text in self.audit.finals.values() for part in text.split()]
        assert said == sorted(set(said), key=self.words.index), (
            f"{self.name}: words twice or out of order: {said}"
        )
        if self.gave_up:
            assert not said
            return
        is_whole = session.close_code == 1000 and not self.lost_words and not books.dropped_ms
        if not is_whole:
            assert self.lost_words or books.dropped_ms or session.close_code in (1006, 1011)
            return
        assert books.discarded_ms == 0.0
        heard = " ".join(text for _, text in sorted(self.audit.finals.items()) if text)
        assert heard == " ".join(f"{word}:{WORD}" for word in self.words), f"{self.name}: words lost"
        assert closing.reason == "client"
        assert self.closed_ms < END_MS - 5_000


class World:
    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.seed = seed
        self.now_ms = 1.0
        self.diary: list[str] = []  # what happened, to compare a replay with
        self._words = 0
        self._ticks = 0
        self.is_calm = rng.random() < 0.1
        self.settings = settings_of(
            backpressure=BackpressureConfig(max_backlog_ms=rng.choice([10_000, 10_000, 600])),
            close_timeout_ms=25_000.0,
            reply_timeout_ms=20_000.0,
            false_interruption_ms=rng.choice([0.0, 600.0]),
        )
        detection = ev.TurnDetection(silence_duration_ms=200, min_speech_ms=40, prefix_padding_ms=100)
        options = msgspec.structs.replace(self.settings.options, turn_detection=detection)
        self.settings = msgspec.structs.replace(self.settings, options=options)
        self.admission = Admission(
            0, rng.choice([0, 0, 2]), "connection", 500.0, room=rng.choice([0, 3]), waiting_timeout_ms=1e9
        )
        self.quarantine = Quarantine()
        self.workers: dict[str, list[DoomedWorker]] = {stage: [] for stage in ENGINES}
        self.raises: set[str] = set()
        self.pools = {stage: self._pool(stage) for stage in ENGINES}
        count = rng.randrange(1, 5)
        is_burst = rng.random() < 0.4
        starts = [1.0 if is_burst else rng.uniform(1, 1_500) for _ in range(count)]
        self.callers = [Caller(self, f"caller{index}", start) for index, start in enumerate(sorted(starts))]
        self.faults = self._draw_faults()

    def next_word(self) -> int:
        self._words += 1
        return self._words

    def _pool(self, stage: str) -> InlinePool:
        rng = self.rng
        slots = rng.choice([4, 8, 64])

        def make_worker(end: WorkerEnd) -> DoomedWorker:
            mortal = MortalEnd(end)
            engine = ENGINES[stage](lambda batch: self._mischief(stage, batch, mortal))
            limits = BatchLimits(rng.choice([1, 4, 64]), 0.0, 32_000 if stage in ("vad", "stt") else 0)
            worker = Worker(engine, mortal, limits, step_timeout_ms=STEP_TIMEOUT_MS)  # type: ignore[arg-type]
            self.workers[stage].append(DoomedWorker(worker, mortal))
            return self.workers[stage][-1]

        return InlinePool(
            stage=stage,
            make_worker=make_worker,
            workers=rng.choice([1, 1, 2]),
            streams_per_worker=rng.choice([0, 0, 0, 1, 2]) if stage != "vad" else 0,
            step_timeout_ms=STEP_TIMEOUT_MS,
            channel=ChannelConfig(slots, slots * 2, 512),
            fork_ms=rng.uniform(5, 60),
            quarantine=self.quarantine,
        )

    def _mischief(self, stage: str, batch: Sequence[Item], end: MortalEnd) -> None:
        if stage == "stt" and any(POISON in np.rint(item.audio * 32_768) for item in batch):
            end.is_dead = True
            raise SimulatedDeath
        if stage in self.raises:
            self.raises.discard(stage)
            raise EngineError("bad_luck", "It failed.")

    def _draw_faults(self) -> list[tuple[float, str, str]]:
        rng = self.rng
        count = 0 if self.is_calm else rng.randrange(1, 8)
        kinds = rng.sample(FAULTS, rng.randrange(1, len(FAULTS) + 1))
        faults = [
            (rng.uniform(50, HEALED_MS), rng.choice(kinds), rng.choice(["vad", "stt", "stt", "reply", "tts"]))
            for _ in range(count)
        ]
        return sorted(faults, reverse=True)

    def _fault(self, kind: str, stage: str) -> None:
        pool, rng = self.pools[stage], self.rng
        self.diary.append(f"fault {kind} {stage} at {self.now_ms}")
        living = [lane.index for lane in pool.all_lanes() if lane.index in pool._incarnations]
        ready = [lane.index for lane in pool.all_lanes() if lane.state is LaneState.READY]
        if kind == "raise":
            self.raises.add(stage)
        elif kind == "crash" and living:
            pool.crash(rng.choice(living))
        elif kind == "hang":
            # A worker that stops while it loads is given minutes: that is told, but it is not healed within a test.
            for index in set(ready) & set(living):
                pool.hang(index)
        elif self.workers[stage]:
            doomed = self.workers[stage][-1]
            if kind == "slow":
                doomed.slow_until_ms = self.now_ms + rng.uniform(20, STEP_TIMEOUT_MS - 50)
            else:
                doomed.dies_in_lines = rng.randrange(1, 400)

    def run(self) -> None:
        for pool in self.pools.values():
            pool.now_ms = self.now_ms
            for lane in pool.lanes:
                pool.spawn(lane)
        waiting = list(self.callers)
        while self.now_ms < END_MS:
            self.now_ms += TICK_MS
            while self.faults and self.faults[-1][0] <= self.now_ms:
                self._fault(*self.faults.pop()[1:])
            if self.now_ms > HEALED_MS:
                self.raises.clear()
            while waiting and waiting[0].start_ms <= self.now_ms:
                waiting.pop(0).arrive()
            self._tick()
            if not waiting and all(c.session is None or c.session.is_closed for c in self.callers):
                break
        self.judge()

    def _tick(self) -> None:
        present = [caller for caller in self.callers if caller.session is not None]
        self.admission.tick(self.now_ms)
        for ticket in self.admission.news():
            self._tell(ticket)
        for caller in present:
            caller.move()
        self._ticks += 1
        for pool in self.pools.values():
            if self._ticks % 3 == 0 or any(lane.streams for lane in pool.all_lanes()):
                pool.step_workers(self.now_ms)
                pool.step_server(self.now_ms)
        for caller in present:
            caller.serve_deadline()
            caller.check()

    def _tell(self, ticket: Ticket) -> None:
        caller = ticket.owner
        assert isinstance(caller, Caller)
        if caller.session is None:
            return
        if ticket.state == "admitted":
            caller.session.admitted(self.now_ms)
        elif ticket.is_waiting:
            caller.session.waiting(ticket.position, ticket.estimate_ms, self.now_ms)
        caller.pump()

    def judge(self) -> None:
        for caller in self.callers:
            caller.judge()
        assert self.admission.taken == 0, "a place leaked"
        for stage, pool in self.pools.items():
            assert pool.stats().streams == 0, f"a stream of {stage} leaked"

    def close(self) -> None:
        for pool in self.pools.values():
            stopping = pool.stop()
            try:
                stopping.send(None)
            except StopIteration:
                continue
            raise AssertionError("an inline pool stops at once")
