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

from tests.simulation.caller import END_MS, HEALED_MS, TICK_MS, Caller
from tests.simulation.engines import (
    POISON,
    SimFillers,
    SimReply,
    SimStt,
    SimTts,
    SimVad,
)
from tests.voiceserver.session_bench import settings_of
from voiceserver.capacity.admission import Admission, Ticket
from voiceserver.capacity.outage import Outage
from voiceserver.config.schema import BackpressureConfig, StageConfig
from voiceserver.events import events as ev
from voiceserver.pool import OnEvent, ignore_event
from voiceserver.pool.fallback import FallbackPool
from voiceserver.pool.inline import InlinePool, SimulatedDeath
from voiceserver.pool.quarantine import Quarantine
from voiceserver.pool.worker_handle import WorkerState
from voiceserver.session.settings import ServerSnapshot
from voiceserver_workers.batcher import BatchLimits
from voiceserver_workers.engine import EngineError, Item
from voiceserver_workers.ipc.channel import WorkerEnd
from voiceserver_workers.ipc.messages import Record
from voiceserver_workers.worker import Worker

STEP_TIMEOUT_MS = 300
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

    def record_idle(self, *, is_optional: bool = False) -> None:
        if not self.is_dead:
            self._end.record_idle(is_optional=is_optional)


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
            if "/voiceserver_workers/" not in frame.f_code.co_filename:
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


class World:
    def __init__(self, seed: int, on_event: OnEvent = ignore_event) -> None:
        """``on_event``: hears what happens to workers."""
        self._on_event = on_event
        self.rng = rng = random.Random(seed)
        self.seed = seed
        self.now_ms = 1.0
        self.diary: list[str] = []  # what happened, to compare a replay with
        self._words = 0
        self._ticks = 0
        self.is_calm = rng.random() < 0.1
        self.settings = settings_of(
            backpressure=BackpressureConfig(max_backlog_ms=rng.choice([10_000, 10_000, 600])),
            close_timeout_ms=random.Random(f"close {seed}").choice([25_000.0, 25_000.0, 25_000.0, 150.0]),
            reply_timeout_ms=20_000.0,
            false_interruption_ms=rng.choice([0.0, 600.0]),
            preemptive=seed % 3 == 0,
            fillers=SimFillers(("One moment.", "Nearly there."), 20.0, ()) if seed % 4 == 1 else None,
        )
        # A pause comes before the end of a turn only where that takes longer.
        silence_ms = 320 if self.settings.preemptive else 200
        detection = ev.TurnDetection(silence_duration_ms=silence_ms, min_speech_ms=40, prefix_padding_ms=100)
        options = msgspec.structs.replace(self.settings.options, turn_detection=detection)
        self.settings = msgspec.structs.replace(self.settings, options=options)
        self.admission = Admission(
            0, rng.choice([0, 0, 2]), "connection", 500.0, room=rng.choice([0, 3]), waiting_timeout_ms=1e9
        )
        self.quarantine = Quarantine()
        self.workers: dict[str, list[DoomedWorker]] = {stage: [] for stage in ENGINES}
        self.raises: set[str] = set()
        self.pools = {stage: self._pool(stage) for stage in ENGINES}
        self.server_snapshot = ServerSnapshot()
        # Of its own, so that a world with a lighter engine is the same world otherwise.
        self.retreats = self._draw_retreats(random.Random(f"retreat {seed}"))
        self.tiers: dict[str, InlinePool | FallbackPool] = dict(self.pools)
        if self.retreats:
            self.pools["lighter stt"] = self._pool("stt", random.Random(f"lighter {seed}"))
            self.tiers["stt"] = FallbackPool(self.pools["stt"], self.pools["lighter stt"])
        # Patience for an outage is short in every other world, since workers are soon back here.
        self.outage = Outage(self.tiers, 20.0 if seed % 2 else self.settings.backpressure.busy_after_ms)
        self.outages = 0
        count = rng.randrange(1, 5)
        is_burst = rng.random() < 0.4
        starts = [1.0 if is_burst else rng.uniform(1, 1_500) for _ in range(count)]
        self.callers = [Caller(self, f"caller{index}", start) for index, start in enumerate(sorted(starts))]
        self.faults = self._draw_faults()

    @property
    def lighter_steps(self) -> int:
        """What the lighter engine did."""
        pool = self.pools.get("lighter stt")
        return sum(handle.totals()[0] for handle in pool.workers.all_handles()) if pool is not None else 0

    def next_word(self) -> int:
        self._words += 1
        return self._words

    def _pool(self, stage: str, rng: random.Random | None = None) -> InlinePool:
        rng = rng or self.rng
        slots = rng.choice([4, 8, 64])

        def make_worker(end: WorkerEnd) -> DoomedWorker:
            mortal = MortalEnd(end)
            engine = ENGINES[stage](lambda batch: self._mischief(stage, batch, mortal))
            limits = BatchLimits(rng.choice([1, 4, 64]), 0.0, 32_000 if stage in ("vad", "stt") else 0)
            worker = Worker(engine, mortal, limits, step_timeout_ms=STEP_TIMEOUT_MS)  # type: ignore[arg-type]
            self.workers[stage].append(DoomedWorker(worker, mortal))
            return self.workers[stage][-1]

        return InlinePool(
            stage,
            make_worker,
            StageConfig(
                engine="inline",
                workers=rng.choice([1, 1, 2]),
                streams_per_worker=rng.choice([0, 0, 0, 1, 2]) if stage != "vad" else 0,
                step_timeout_ms=STEP_TIMEOUT_MS,
                request_slots=slots,
                result_slots=slots * 2,
                slot_bytes=512,
            ),
            fork_ms=rng.uniform(5, 60),
            quarantine=self.quarantine,
            on_event=self._on_event,
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

    def _draw_retreats(self, rng: random.Random) -> list[tuple[float, int]]:
        """When the server goes to which step of the ladder; in one world of four, and never after it has healed."""
        if self.seed % 4 != 2:
            return []
        times = sorted(rng.uniform(0, HEALED_MS) for _ in range(rng.randrange(1, 8)))
        return [(at_ms, rng.randrange(0, 4)) for at_ms in times] + [(HEALED_MS, 0)]

    def _retreat(self, level: int) -> None:
        self.diary.append(f"ladder {level} at {self.now_ms}")
        self.server_snapshot.degrade_level = level
        self.server_snapshot.lighter = frozenset({"stt"} if level >= 3 else ())
        tiered = self.tiers["stt"]
        assert isinstance(tiered, FallbackPool)
        tiered.set_lighter(level >= 3)

    def _fault(self, kind: str, stage: str) -> None:
        pool, rng = self.pools[stage], self.rng
        self.diary.append(f"fault {kind} {stage} at {self.now_ms}")
        living = [handle.index for handle in pool.workers.all_handles() if pool.inline.is_alive(handle)]
        ready = [handle.index for handle in pool.workers.all_handles() if handle.state is WorkerState.READY]
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
            pool.start_workers()
        waiting = list(self.callers)
        while self.now_ms < END_MS:
            self.now_ms += TICK_MS
            while self.faults and self.faults[-1][0] <= self.now_ms:
                self._fault(*self.faults.pop()[1:])
            while self.retreats and self.retreats[0][0] <= self.now_ms:
                self._retreat(self.retreats.pop(0)[1])
            if self.now_ms > HEALED_MS:
                self.raises.clear()
            while waiting and waiting[0].start_ms <= self.now_ms:
                waiting.pop(0).arrive()
            self._tick()
            if not waiting and all(
                c.session is None or (c.session.is_closed and not c.is_away) for c in self.callers
            ):
                break
        self.judge()

    def _tick(self) -> None:
        present = [caller for caller in self.callers if caller.session is not None]
        self.admission.tick(self.now_ms)
        for ticket in self.admission.news():
            self._tell(ticket)
        if self.outage.look(self.now_ms):
            self.outages += bool(self.outage.missing)
            for caller in present:
                caller.hear_of_outage()
        for caller in present:
            caller.move()
        self._ticks += 1
        for pool in self.pools.values():
            if self._ticks % 3 == 0 or any(handle.streams for handle in pool.workers.all_handles()):
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
