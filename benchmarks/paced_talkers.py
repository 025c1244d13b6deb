"""Callers for the overload benchmark: they speak on an absolute schedule, and note what they hear and how long they hear nothing.

Every latency counts from when something was due, never from when it was really sent. A caller who is refused goes away; one who
is told to wait stays. Nobody slows down because the server does, except for the credit that it announces.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from clients.raw import BINARY, TEXT, RawConnection, build_frame, build_request
from clients.recording import Recording

CHUNK_MS: Final = 20
IN_TIME_MS: Final = 2_000.0  # a final transcript later than this after the end of speech helps nobody
SILENCE_AFTER_MS: Final = 2_000.0
GOODBYE_MS: Final = 12_000.0  # the server finishes the turn in progress within 10 s
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
    speech_in_time_s: float = 0.0
    is_measuring: bool = True

    def note(self, name: str, value_ms: float) -> None:
        if self.is_measuring:
            self.ms[name].append(value_ms)


class Talker(RawConnection):
    """One caller. Call ``step`` every ``CHUNK_MS``."""

    def __init__(
        self,
        port: int,
        script: Script,
        phase: float,
        tally: Tally,
        clock: Callable[[], float],
        asked_ms: float,
    ) -> None:
        super().__init__(build_request(f"127.0.0.1:{port}", "/v1/stream?rate=16000"))
        self._script = script
        self._tally = tally
        self._clock = clock
        self._asked_ms = asked_ms
        self._at = int(phase * len(script.utterances)) % len(script.utterances)
        self._at = int(script.utterances[self._at].start_ms / CHUNK_MS)
        self._first = self._at
        self._start_ms = math.nan  # when the script's first chunk was due
        self._sent = 0
        self._owed = 0
        self._credit_ms = math.inf
        self._heard_ms = asked_ms  # when the server last said anything
        self._open: dict[int, Utterance] = {}  # by turn, on this caller's own clock
        self._next_said = 0
        self._partials: set[int] = set()
        self.is_admitted = self.is_refused = self.is_leaving = False
        self.is_waiting = self.has_waited = False
        self.unaccounted_ms: float | None = None  # until the server has closed its books

    # ------------------------------------------------------------------------------------------------------- speaking

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
        first = next(i for i, one in enumerate(said) if one.start_ms >= self._first * CHUNK_MS)
        rounds, index = divmod(first + number, len(said))
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
        self._tally.counts["refused" if status == 503 else "failed"] += 1
        self._tally.counts["with_retry_after"] += retry_after_ms > 0

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
            self.is_admitted = True
        elif kind == "server.busy":
            self._tally.counts["busy"] += 1
            self._credit_ms = event.credit_ms
            self.is_waiting = event.position > 0
            self.has_waited |= self.is_waiting
        elif kind == "server.ready":
            self._credit_ms = math.inf
            self.is_waiting = False
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

    def _match(self, turn: int, at_ms: float) -> None:
        """The utterance that the server found, by its place on the audio clock."""
        number = max(self._next_said - 1, 0)
        while self._utterance(number).end_ms + CHUNK_MS < at_ms:
            number += 1
        said = self._utterance(number)
        if said.start_ms - 500 < at_ms:  # its start includes the padding
            self._open[turn] = said

    def _on_partial(self, turn: int, now_ms: float) -> None:
        if turn in self._open and turn not in self._partials:
            self._partials.add(turn)
            self._tally.note("first_partial", now_ms - self._start_ms - self._open[turn].start_ms)

    def _on_final(self, turn: int, now_ms: float) -> None:
        said = self._open.pop(turn, None)
        if said is None:
            return
        while self._utterance(self._next_said).end_ms <= said.end_ms + 1:
            self._next_said += 1
        after_ms = now_ms - self._start_ms - said.end_ms
        if self._tally.is_measuring and after_ms >= 0:
            self._tally.note("final", after_ms)
            self._tally.counts["finals"] += 1
            if after_ms <= IN_TIME_MS:
                self._tally.counts["in_time"] += 1
                self._tally.speech_in_time_s += (said.end_ms - said.start_ms) / 1000


class Crowd:
    """``size`` talkers for ``seconds``, arriving within ``arrive_s``; what they saw is in ``tally``."""

    def __init__(self, port: int, script: Script, size: int, clock: Callable[[], float]) -> None:
        self._port = port
        self._script = script
        self._size = size
        self._clock = clock
        self.tally = Tally()
        self.talkers: list[Talker] = []
        self.lateness_ms: list[float] = []

    async def run(self, seconds: float, arrive_s: float, settle_s: float) -> None:
        """``settle_s`` at the beginning is not measured, except for how soon callers hear anything."""
        loop = asyncio.get_running_loop()
        began_ms = self._clock()
        arrivals = [began_ms + arrive_s * 1000 * index / self._size for index in range(self._size)]
        asked: list[asyncio.Task[None]] = []
        tick = 0
        while (due_ms := began_ms + tick * CHUNK_MS) < began_ms + seconds * 1000:
            await asyncio.sleep(max(due_ms - self._clock(), 0.0) / 1000)
            self.lateness_ms.append(self._clock() - due_ms)
            while len(asked) < self._size and arrivals[len(asked)] <= due_ms:
                asked.append(loop.create_task(self._ask(len(asked), arrivals[len(asked)])))
            self.tally.is_measuring = due_ms >= began_ms + settle_s * 1000
            for talker in self.talkers:
                talker.step(due_ms)
            tick += 1
        self.tally.is_measuring = False
        await self._leave()
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    async def _ask(self, index: int, asked_ms: float) -> None:
        talker = Talker(
            self._port, self._script, index * 0.618033988749895 % 1.0, self.tally, self._clock, asked_ms
        )
        self.talkers.append(talker)
        await asyncio.get_running_loop().create_connection(lambda: talker, "127.0.0.1", self._port)

    async def _leave(self) -> None:
        here = [talker for talker in self.talkers if talker.is_open]
        for talker in here:
            talker.leave()
        deadline_ms = self._clock() + GOODBYE_MS
        while any(talker.is_open for talker in here) and self._clock() < deadline_ms:
            await asyncio.sleep(0.05)
        for talker in self.talkers:
            talker.abort()
        await asyncio.sleep(0.3)
