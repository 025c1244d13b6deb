"""A server that recognises speech for people who take turns, as a fluid:
what CapacityController and Admission see, and what callers get.

Real: ``Admission``, ``CapacityController``, ``TalkerLimit``. Modelled: the workers, who share ``cores`` and divide their
time among the streams that wait; the talkers, who speak, listen, and start their next turn on time whatever the server does;
callers who
come back until they are let in. Goodput is speech whose transcript came within ``IN_TIME_MS`` of its end, per second.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from statistics import fmean

from voiceserver.capacity.admission import Admission, Ticket
from voiceserver.capacity.controller import CapacityController
from voiceserver.capacity.limit import CAUTION, LOOK_MS, PROCESSOR, Cost, calibrate, processor_of
from voiceserver.events.events import ServerBusy
from voiceserver.pool import Pool, PoolStats, WorkerStats
from voiceserver.session.settings import ServerSnapshot

TICK_MS = 20.0
IN_TIME_MS = 2_000.0
SPEECH_MS = (2_300.0, 2_700.0, 3_000.0, 5_000.0)
PREFIX_MS = 300.0  # heard before speech, and after it
HANGOVER_MS = 600.0
LISTEN_PER_SPEECH = 1.2
ASK_MS = 200.0
MOST_ASKING = 100
BUSY_AFTER_MS = 250.0
BUSY_REPEAT_MS = 1_000.0


@dataclass(frozen=True)
class Machine:
    """work: seconds of one worker per second of audio; cores: those that its neighbours leave to the workers, of ``total``."""

    workers: int = 2
    cores: float = 1.8
    total: int = 2
    work: float = 0.16
    places: int = 64


@dataclass(eq=False, slots=True)
class Turn:
    start_ms: float
    end_ms: float  # of speech
    pending_ms: float = PREFIX_MS  # heard and not worked through

    @property
    def stop_ms(self) -> float:
        return self.end_ms + HANGOVER_MS


@dataclass(eq=False, slots=True)
class Talker:
    ticket: Ticket
    says: Turn
    lengths_ms: list[float]  # of the turns to come; all before one comes again
    turns: deque[Turn]  # heard in part or in whole, without a transcript
    worker: int | None = None
    told_ms: float = -1e9

    @property
    def pending_ms(self) -> float:
        return sum(turn.pending_ms for turn in self.turns)


class TalkersAtWork:
    """``limit`` 0: learned. ``call_s``: how long callers stay on average; 0: for ever."""

    stage = "stt"

    def __init__(
        self, machine: Machine, seed: int, *, limit: int = 0, start: int = 0, call_s: float = 0.0
    ) -> None:
        self.machine = machine
        self.now_ms = 0.0
        self.talkers: list[Talker] = []
        self.counts: list[int] = []  # of talkers, at each look
        self.admission = Admission(0, limit, "connection", 2_000.0, room=8)
        self._random = random.Random(seed)
        self._call_s = call_s
        self._busy_ms = [0.0] * machine.workers
        self._cores_ms = 0.0  # since the last look, of all cores
        self._streams = [0] * machine.workers  # open, by worker
        self._heard: list[tuple[float, float]] = []  # speech in time: from, to
        self._ask_ms = 0.0
        self.controller: CapacityController | None = None
        if not limit:
            self._learn(start)

    def _learn(self, start: int) -> None:
        pools: dict[str, Pool] = {"stt": self}  # type: ignore[dict-item]
        self.controller = CapacityController(
            pools,
            self.admission,
            ServerSnapshot(),
            is_learned=True,
            windows_ms={},
            on_change=lambda name, fields: None,
            now_ms=0.0,
        )
        cost = Cost("stt", self.machine.work, self.machine.workers, self.machine.places, True)
        first = start or int(calibrate([cost], self.machine.total) * CAUTION)
        costs = {"stt": cost, PROCESSOR: processor_of([cost], self.machine.total)}
        self.controller.start_with(first, 0.0, costs)

    has_lighter = False

    def set_max_wait_ms(self, max_wait_ms: float) -> None: ...

    def stats(self) -> PoolStats:
        open_ = sum(self._streams)
        workers = tuple(
            WorkerStats(index, 1, "ready", 1, 0, 0, 0.0, 0, 0, 0.0, busy_ms)
            for index, busy_ms in enumerate(self._busy_ms)
        )
        return PoolStats("stt", "model", workers, open_, self.machine.places - open_, 0.0, 0, 0.0)

    def run(self, offered: int, seconds: float) -> None:
        """``offered`` callers want to talk."""
        for _ in range(round(seconds * 1000 / TICK_MS)):
            self.now_ms += TICK_MS
            self._come_and_go(offered)
            for talker in self.talkers:
                self._speak(talker)
            self._work()
            for talker in self.talkers:
                self._finish(talker)
            if round(self.now_ms / TICK_MS) % round(LOOK_MS / TICK_MS) == 0:
                self._look()

    def goodput(self, from_ms: float, to_ms: float) -> float:
        heard = (min(end_ms, to_ms) - max(start_ms, from_ms) for start_ms, end_ms in self._heard)
        return sum(max(both_ms, 0.0) for both_ms in heard) / (to_ms - from_ms)

    # --------------------------------------------------------------------------------------------------- the callers

    def _come_and_go(self, offered: int) -> None:
        if self._call_s:
            for talker in list(self.talkers):
                if self._random.random() < TICK_MS / 1000 / self._call_s:
                    self.talkers.remove(talker)
                    if talker.worker is not None:
                        self._streams[talker.worker] -= 1
                    talker.ticket.release(self.now_ms)
        if self.now_ms >= self._ask_ms:
            self._ask_ms = self.now_ms + ASK_MS
            for _ in range(min(offered - len(self.talkers) - self.admission.waiting, MOST_ASKING)):
                got = self.admission.try_enter(self.now_ms)
                if isinstance(got, Ticket) and got.state == "admitted":
                    self._come_in(got)
        for ticket in self.admission.news():
            if ticket.state == "admitted":
                self._come_in(ticket)

    def _come_in(self, ticket: Ticket) -> None:
        start_ms = self.now_ms - self._random.random() * 8_000
        talker = Talker(ticket, Turn(start_ms, start_ms), [], deque())
        while talker.says.stop_ms < self.now_ms:
            self._next_turn(talker)
        self.talkers.append(talker)

    def _next_turn(self, talker: Talker) -> None:
        """On time, whatever became of the last."""
        said = talker.says
        if not talker.lengths_ms:
            talker.lengths_ms = self._random.sample(SPEECH_MS, len(SPEECH_MS))
        start_ms = said.end_ms + (said.end_ms - said.start_ms) * LISTEN_PER_SPEECH
        talker.says = Turn(start_ms, start_ms + talker.lengths_ms.pop() * self._random.uniform(0.9, 1.1))

    def _speak(self, talker: Talker) -> None:
        said = talker.says
        if self.now_ms < said.start_ms:
            return
        if not talker.turns or talker.turns[-1] is not said:
            talker.turns.append(said)
        said.pending_ms += TICK_MS
        if self.now_ms >= said.stop_ms:
            self._next_turn(talker)
        if talker.worker is None and sum(self._streams) < self.machine.places:
            talker.worker = self._streams.index(min(self._streams))
            self._streams[talker.worker] += 1

    def _finish(self, talker: Talker) -> None:
        turns = talker.turns
        while turns and turns[0] is not talker.says and turns[0].pending_ms < 1e-6:
            turn = turns.popleft()
            if self.now_ms - turn.end_ms <= IN_TIME_MS:
                self._heard.append((turn.start_ms, turn.end_ms))
        if not turns and talker.worker is not None:
            self._streams[talker.worker] -= 1
            talker.worker = None

    # --------------------------------------------------------------------------------------------------- the workers

    def _work(self) -> None:
        queues: list[list[Turn]] = [[] for _ in self._busy_ms]
        for talker in self.talkers:
            waiting = next((turn for turn in talker.turns if turn.pending_ms > 1e-9), None)
            if talker.worker is not None and waiting is not None:
                queues[talker.worker].append(waiting)
        active = sum(bool(queue) for queue in queues)
        for index, queue in enumerate(queues):
            if not queue:
                continue
            given_ms = left_ms = TICK_MS * min(self.machine.cores / active, 1.0) / self.machine.work
            while queue and left_ms > 1e-9:
                each_ms = left_ms / len(queue)
                for turn in queue:
                    done_ms = min(each_ms, turn.pending_ms)
                    turn.pending_ms -= done_ms
                    left_ms -= done_ms
                queue = [turn for turn in queue if turn.pending_ms > 1e-9]
            self._busy_ms[index] += TICK_MS * (1 - left_ms / given_ms)
            self._cores_ms += (given_ms - left_ms) * self.machine.work
        self._cores_ms += (self.machine.total - self.machine.cores) * TICK_MS

    def _look(self) -> None:
        self.counts.append(len(self.talkers))
        if self.controller is None:
            return
        for number, talker in enumerate(self.talkers):
            lag_ms = talker.pending_ms
            if lag_ms > BUSY_AFTER_MS + PREFIX_MS and self.now_ms - talker.told_ms >= BUSY_REPEAT_MS:
                talker.told_ms = self.now_ms
                busy = ServerBusy("stt", "slow", lag_ms, 0.0, lag_ms)
                self.controller.note_busy(number, busy, self.now_ms)
        cores_busy, self._cores_ms = self._cores_ms / LOOK_MS / self.machine.total, 0.0
        self.controller.look(0.0, self.now_ms, cores_busy)


def mean_goodput(
    machine: Machine, offered: int, seconds: float, seeds: range, *, limit: int = 0, call_s: float = 0.0
) -> float:
    """Of several crowds, from 25 s on."""
    found = []
    for seed in seeds:
        server = TalkersAtWork(machine, seed, limit=limit, call_s=call_s)
        server.run(offered, seconds)
        found.append(server.goodput(25_000.0, seconds * 1000 - 5_000))
    return fmean(found)
