"""Callers for the overload benchmark: they speak on an absolute schedule, and note what they hear and how long they hear nothing.

Every latency counts from when something was due, never from when it was really sent. A caller who is told to wait stays; one who
is refused comes again when it was told to, with jitter. Nobody slows down because the server does, except for the credit
that it announces.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from voiceserver_clients.raw import BINARY, TEXT, RawConnection, build_frame, build_request
from voiceserver_clients.recording import Recording

CHUNK_MS: Final = 20
IN_TIME_MS: Final = 2_000.0  # a final transcript later than this after the end of speech helps nobody
SILENCE_AFTER_MS: Final = 2_000.0
GOODBYE_MS: Final = 12_000.0  # the server finishes the turn in progress within 10 s
COUNT_MS: Final = 100
LEAST_RETRY_MS: Final = 500.0
LISTEN_PER_SPEECH: Final = 1.2  # how long a caller listens after speaking
_BYTES_PER_MS: Final = 32
_GREETING: Final = build_frame(TEXT, b'{"type":"session.update","replies":false}')
_GOODBYE: Final = build_frame(TEXT, b'{"type":"session.close"}')


class _Event(msgspec.Struct):
    type: str = ""
    turn: int = 0
    position: int = 0
    step: str = ""
    credit_ms: float = math.inf
    dropped_ms: float = 0.0
    at_ms: float = 0.0
    accounting: _Books | None = None


class _Books(msgspec.Struct):
    received_ms: float
    consumed_ms: float
    dropped_ms: float
    discarded_ms: float


_decode = msgspec.json.Decoder(_Event).decode


@dataclass(frozen=True, slots=True)
class Utterance:
    """start_ms, end_ms: of the speech itself, within the script's audio."""

    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True)
class Script:
    """A loop of prebuilt frames with what is said where."""

    frames: tuple[bytes, ...]
    utterances: tuple[Utterance, ...]

    @property
    def duration_ms(self) -> float:
        return float(len(self.frames) * CHUNK_MS)

    @classmethod
    def build(cls, recordings: Sequence[Recording]) -> Script:
        """16 kHz recordings, each cut to its speech and followed by the time in which the caller listens."""
        silence = build_frame(BINARY, bytes(CHUNK_MS * _BYTES_PER_MS))
        frames: list[bytes] = []
        said: list[Utterance] = []
        for recording in recordings:
            pcm = _speech_of(recording)
            start_ms = float(len(frames) * CHUNK_MS)
            size = CHUNK_MS * _BYTES_PER_MS
            pieces = [pcm[at : at + size].ljust(size, b"\0") for at in range(0, len(pcm), size)]
            frames += [build_frame(BINARY, piece) for piece in pieces]
            length_ms = len(pcm) / _BYTES_PER_MS
            said.append(Utterance(start_ms, start_ms + length_ms))
            frames += [silence] * int(length_ms * LISTEN_PER_SPEECH / CHUNK_MS)
        return cls(tuple(frames), tuple(said))


def _speech_of(recording: Recording) -> bytes:
    """Without the silence at both ends, as far as 26 dB below the loudest 20 ms."""
    samples = np.frombuffer(recording.pcm, "<i2").astype(np.float64)
    size = CHUNK_MS * _BYTES_PER_MS // 2
    blocks = samples[: len(samples) // size * size].reshape(-1, size)
    loud = np.sqrt((blocks**2).mean(axis=1))
    heard = np.flatnonzero(loud > loud.max() * 0.05)
    return samples[heard[0] * size : (heard[-1] + 1) * size].astype("<i2").tobytes()


@dataclass(slots=True)
class Tally:
    counts: Counter[str] = field(default_factory=Counter)
    ms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    silence_s: float = 0.0
    is_measuring: bool = True

    def note(self, name: str, value_ms: float) -> None:
        if self.is_measuring:
            self.ms[name].append(value_ms)


class Talker(RawConnection):
    """One caller's call. Call ``step`` every ``CHUNK_MS``. phase: where in the script it begins, from 0 to 1; on_refused_for(ms):
    it was refused, and told when to ask again."""

    def __init__(
        self,
        port: int,
        script: Script,
        phase: float,
        tally: Tally,
        clock: Callable[[], float],
        asked_ms: float,
        on_refused_for: Callable[[float], None] = lambda _: None,
    ) -> None:
        super().__init__(build_request(f"127.0.0.1:{port}", "/v1/stream?rate=16000"))
        self._script = script
        self._tally = tally
        self._clock = clock
        self._asked_ms = asked_ms
        self._on_refused_for = on_refused_for
        self._at = self._first = int(phase * len(script.frames)) % len(script.frames)
        whole = (i for i, one in enumerate(script.utterances) if one.start_ms >= self._first * CHUNK_MS)
        self._first_said = next(whole, len(script.utterances))
        self._start_ms = math.nan  # when the first chunk was due
        self._written_ms = math.nan
        self._sent = 0
        self._owed = 0
        self._credit_ms = math.inf
        self._heard_ms = asked_ms  # when the server last said anything
        self._admitted_ms = math.inf
        self._open: dict[int, int] = {}  # turn -> number of the utterance
        self._finals_ms: dict[int, float] = {}  # number of the utterance -> its last final after its end
        self._next_said = 0
        self._partials: set[int] = set()
        self.is_refused = self.is_leaving = False
        self.is_waiting = self.has_waited = False
        self.unaccounted_ms: float | None = None  # until the server has closed its books

    @property
    def is_admitted(self) -> bool:
        return self._admitted_ms < math.inf

    @property
    def is_talking(self) -> bool:
        return self.is_open and self.is_admitted and not self.is_leaving

    def heard(self, from_ms: float, to_ms: float) -> tuple[float, float]:
        """Seconds of speech that ended between two times and was begun with a place: in all, and with a final in time."""
        said_s = in_time_s = 0.0
        number = 0
        while self.is_admitted and (said := self._utterance(number)).end_ms + self._start_ms < to_ms:
            if (
                said.end_ms + self._start_ms >= from_ms
                and said.start_ms + self._start_ms >= self._admitted_ms
            ):
                length_s = (said.end_ms - said.start_ms) / 1000
                said_s += length_s
                in_time_s += length_s if self._finals_ms.get(number, math.inf) <= IN_TIME_MS else 0.0
            number += 1
        return said_s, in_time_s

    # ------------------------------------------------------------------------------------------------------- speaking

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._written_ms = self._clock()
        super().connection_made(transport)

    def on_open(self) -> None:
        self.send(_GREETING)
        self._note_signal()

    def step(self, now_ms: float) -> None:
        """A chunk is due, every ``CHUNK_MS``."""
        if not self.is_open or self.is_leaving:
            if not self.is_refused and not self.is_leaving and now_ms - self._asked_ms > SILENCE_AFTER_MS:
                self._tally.silence_s += CHUNK_MS / 1000 if self._tally.is_measuring else 0.0
            return
        if math.isnan(self._start_ms):
            self._start_ms = now_ms - self._sent * CHUNK_MS
        self._owed += 1
        while self._owed and self._credit_ms >= CHUNK_MS:
            self.send(self._script.frames[self._at])
            self._at = (self._at + 1) % len(self._script.frames)
            self._sent += 1
            self._owed -= 1
            self._credit_ms -= CHUNK_MS
        self._count_silence(now_ms)

    def _count_silence(self, now_ms: float) -> None:
        """Speech that has been sent, and neither a result nor a signal since."""
        due = self._utterance(self._next_said)
        waits_from_ms = max(self._heard_ms, self._start_ms + due.start_ms)
        if self._tally.is_measuring and now_ms - waits_from_ms > SILENCE_AFTER_MS:
            self._tally.silence_s += CHUNK_MS / 1000

    def _utterance(self, number: int) -> Utterance:
        """The ``number``-th that this caller says, on its own audio clock."""
        script = self._script
        said = script.utterances
        rounds, index = divmod(self._first_said + number, len(said))
        shift_ms = rounds * script.duration_ms - self._first * CHUNK_MS
        return Utterance(said[index].start_ms + shift_ms, said[index].end_ms + shift_ms)

    @property
    def sent_ms(self) -> float:
        return float(self._sent * CHUNK_MS)

    def leave(self) -> None:
        self.is_leaving = True
        self.send(_GOODBYE)

    # ------------------------------------------------------------------------------------------------------- hearing

    def _note_signal(self) -> None:
        self._heard_ms = self._clock()

    def _note_first_word(self) -> None:
        if not self.is_admitted and not self.is_refused:
            self._tally.ms["signal"].append(self._clock() - self._asked_ms)

    def on_refused(self, status: int, retry_after_ms: float) -> None:
        self._note_first_word()
        self.is_refused = True
        self._tally.ms["refusal"].append(self._clock() - self._written_ms)
        self._tally.counts["refused" if status == 503 else "failed"] += 1
        self._on_refused_for(retry_after_ms)

    def on_lost(self, code: int) -> None:
        if not self.is_leaving:
            self._tally.counts["lost"] += 1
            self.is_refused = True

    def on_text(self, payload: bytes) -> None:
        event = _decode(payload)
        now_ms = self._clock()
        self._heard_ms = now_ms
        kind = event.type
        if kind == "session.ready":
            self._note_first_word()
            self._admitted_ms = now_ms
        elif kind == "server.busy":
            self._credit_ms = event.credit_ms
            self._wait(event.position, now_ms)
            self._tally.counts["busy"] += self._tally.is_measuring and not self.is_waiting
        elif kind == "server.ready":
            self._credit_ms = math.inf
            self._wait(0, now_ms)
        elif kind == "speech.started":
            self._match(event.turn, event.at_ms)
        elif kind == "transcript.partial":
            self._on_partial(event.turn, now_ms)
        elif kind == "transcript.final":
            self._on_final(event.turn, now_ms)
        elif kind == "session.closing" and event.accounting is not None:
            books = event.accounting
            told_ms = books.consumed_ms + books.dropped_ms + books.discarded_ms
            self.unaccounted_ms = abs(self.sent_ms - told_ms)
            self._tally.counts["dropped_ms"] += round(books.dropped_ms)
            self._tally.counts["books"] += 1

    def _wait(self, position: int, now_ms: float) -> None:
        if position > 0:
            self._admitted_ms = math.inf
            self.is_waiting = self.has_waited = True
        elif self.is_waiting:
            self._admitted_ms = now_ms
            self.is_waiting = False

    def _match(self, turn: int, at_ms: float) -> None:
        """The utterance that the server found, by its place on the audio clock."""
        number = max(self._next_said - 1, 0)
        while self._utterance(number).end_ms + CHUNK_MS < at_ms:
            number += 1
        if self._utterance(number).start_ms - 500 < at_ms:  # its start includes the padding
            self._open[turn] = number

    def _on_partial(self, turn: int, now_ms: float) -> None:
        if turn in self._open and turn not in self._partials:
            self._partials.add(turn)
            due_ms = self._start_ms + self._utterance(self._open[turn]).start_ms
            if due_ms >= self._admitted_ms:
                self._tally.note("first_partial", now_ms - due_ms)

    def _on_final(self, turn: int, now_ms: float) -> None:
        number = self._open.pop(turn, None)
        if number is None:
            return
        self._next_said = max(self._next_said, number + 1)
        said = self._utterance(number)
        after_ms = now_ms - self._start_ms - said.end_ms
        self._finals_ms[number] = after_ms
        if after_ms >= 0 and self._start_ms + said.start_ms >= self._admitted_ms:
            self._tally.note("final", after_ms)


class Crowd:
    """Talkers who call at ``arrivals_ms`` (after the start), and come again when refused; what they saw is in ``tally``.

    They begin at places of the script that are spread evenly (by the golden ratio), so that a small crowd too speaks as much in
    each second as a large one, and its goodput is no matter of chance.
    """

    def __init__(
        self,
        port: int,
        script: Script,
        arrivals_ms: Sequence[float],
        clock: Callable[[], float],
        seed: int = 1,
    ) -> None:
        self._port = port
        self._script = script
        self._arrivals_ms = arrivals_ms
        self._clock = clock
        self._random = random.Random(seed)
        self._calls: list[tuple[float, int]] = []  # due, whose
        self._asked: set[asyncio.Task[None]] = set()
        self._current: dict[int, Talker] = {}
        self.tally = Tally()
        self.talkers: list[Talker] = []  # all that got a connection, whatever became of it
        self.lateness_ms: list[float] = []
        self.began_ms = 0.0
        self.counts: list[tuple[float, int]] = []  # (time, talking), each ``COUNT_MS``

    async def run(
        self, seconds: float, settle_s: float, is_enough: Callable[[float], bool] = lambda _: False
    ) -> None:
        """``settle_s`` at the beginning is not measured, except for how soon callers hear anything. is_enough(now_ms): looked
        at each second."""
        self.began_ms = began_ms = self._clock()
        self._calls = [(began_ms + after_ms, index) for index, after_ms in enumerate(self._arrivals_ms)]
        heapq.heapify(self._calls)
        tick = 0
        while (due_ms := began_ms + tick * CHUNK_MS) < began_ms + seconds * 1000:
            await asyncio.sleep(max(due_ms - self._clock(), 0.0) / 1000)
            self.lateness_ms.append(self._clock() - due_ms)
            self._call(due_ms)
            self.tally.is_measuring = due_ms >= began_ms + settle_s * 1000
            for talker in tuple(self._current.values()):
                talker.step(due_ms)
            if due_ms - began_ms >= len(self.counts) * COUNT_MS:
                self.counts.append((due_ms, self.talking))
            tick += 1
            if tick % (1000 // CHUNK_MS) == 0 and is_enough(due_ms):
                break
        self.tally.is_measuring = False
        await self._leave()

    @property
    def talking(self) -> int:
        return sum(talker.is_talking for talker in self._current.values())

    @property
    def waiting(self) -> int:
        return sum(talker.is_waiting for talker in self._current.values())

    def _call(self, due_ms: float) -> None:
        while self._calls and self._calls[0][0] <= due_ms:
            asked_ms, index = heapq.heappop(self._calls)
            task = asyncio.get_running_loop().create_task(self._ask(index, asked_ms))
            self._asked.add(task)
            task.add_done_callback(self._asked.discard)

    async def _ask(self, index: int, asked_ms: float) -> None:
        def come_again(after_ms: float) -> None:
            self._current.pop(index, None)
            self.talkers.remove(talker)
            later_ms = max(after_ms, LEAST_RETRY_MS) * self._random.uniform(1.0, 1.5)
            heapq.heappush(self._calls, (self._clock() + later_ms, index))

        phase = index * 0.618033988749895 % 1.0
        talker = Talker(self._port, self._script, phase, self.tally, self._clock, asked_ms, come_again)
        self._current[index] = talker
        self.talkers.append(talker)
        await asyncio.get_running_loop().create_connection(lambda: talker, "127.0.0.1", self._port)

    def goodput(self, from_ms: float, to_ms: float) -> tuple[float, float]:
        """(talkers, part of their speech that was heard in time) between two times; the product is the goodput."""
        said = [talker.heard(from_ms, to_ms) for talker in self.talkers]
        said_s = sum(one for one, _ in said)
        counts = [count for at_ms, count in self.counts if from_ms <= at_ms < to_ms]
        part = sum(one for _, one in said) / said_s if said_s else 0.0
        return (sum(counts) / len(counts) if counts else 0.0), part

    async def _leave(self) -> None:
        here = [talker for talker in self.talkers if talker.is_open]
        for talker in here:
            talker.leave()
        deadline_ms = self._clock() + GOODBYE_MS
        while any(talker.is_open for talker in here) and self._clock() < deadline_ms:
            await asyncio.sleep(0.05)
        for task in self._asked:
            task.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)
        for talker in self.talkers:
            talker.abort()
        await asyncio.sleep(0.3)
