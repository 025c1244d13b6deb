"""One question to the endpoint: the answer of the present try, and the two clocks on the time of the loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from voiceserver.pool.chat.answer import Answer, broken
from voiceserver.pool.chat.clocks import CallerClock, EndpointClock
from voiceserver.pool.chat.config import ChatConfig
from voiceserver.pool.remote_pool import Say
from voiceserver.session.sentences import SentenceCutter
from voiceserver_workers.http.slices import AnswerTooLong, CodingError, Slices
from voiceserver_workers.ipc.messages import ResultKind

ALIVE_MS: Final = 500.0  # how often a session is told that the endpoint is at work
PART_MS: Final = 250.0  # between two looks at a word that does not end
TURN_MS: Final = 2.0  # of work on what came, before others have the loop
TURN_RECORDS: Final = 8  # the session has work with each
TIDY_MS: Final = 1_000.0  # for the rest of a response, so that its connection can be used again


class Timer(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """What is asked of an event loop."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer: ...


class Clock(Protocol):
    """What is asked of ``asyncio.Timeout``."""

    def reschedule(self, when: float | None, /) -> None: ...


class Attempts:
    """``close`` when it is over. ``on_odd``: see ``Answer``. ``language``: of the answer, BCP 47; "" unknown."""

    def __init__(
        self, config: ChatConfig, loop: Loop, say: Say, on_odd: Callable[[str], None], language: str = ""
    ) -> None:
        self._config = config
        self._language = language
        self._loop = loop
        self._say_to = say
        self._turn_records = 0
        self._on_odd = on_odd
        self._endpoint = EndpointClock(config, loop.time())
        self._told_alive_s = loop.time()
        self._turn_until_s = loop.time() + TURN_MS / 1000.0
        self._timer: Timer | None = None
        self.begin()

    def begin(self) -> None:
        """Another one: nothing that is left of the last may count."""
        config = self._config
        cutter = SentenceCutter(config.max_sentence_chars, config.first_clause_chars, self._language)
        self.answer = Answer(self._say, cutter, self._on_odd)
        self._caller = CallerClock(config.max_unspoken_ms)
        self._progress = 0
        self._slices = Slices("")

    def _say(self, kind: ResultKind, payload: bytes) -> None:
        self._turn_records += 1
        self._say_to(kind, payload)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def set(self, clock: Clock) -> None:
        if self.answer.is_done:
            clock.reschedule(self._loop.time() + TIDY_MS / 1000.0)
        else:
            clock.reschedule(self._endpoint.due_s)

    def begin_body(self, coding: str) -> None:
        """``coding``: the Content-Encoding of what comes. Raises RemoteFailure for one that was not asked for."""
        try:
            self._slices = Slices(coding)
        except CodingError:
            raise broken() from None

    async def receive(self, data: bytes, clock: Clock) -> bool:
        """What the network brought. False: the rest is of no use. Raises RemoteFailure."""
        try:
            for piece in self._slices.feed(data):
                await self._take(self.answer.receive(piece))
        except CodingError:
            raise broken() from None
        except AnswerTooLong:
            self.answer.cut_short()
            return False
        answer = self.answer
        is_progress, self._progress = answer.progress > self._progress, answer.progress
        now_s = self._loop.time()
        if self._endpoint.hear(now_s, has_begun=answer.has_begun, is_progress=is_progress):
            self._tell_alive(now_s)
        self.set(clock)
        self._watch()
        return not (answer.is_done and answer.was_cut_short)

    async def end_body(self) -> None:
        """The body is over. Raises RemoteFailure where that is no end of an answer."""
        await self._take(self.answer.end_of_stream())

    async def _take(self, steps: Iterator[None]) -> None:
        """Rule: others have the loop every TURN_MS, whatever an endpoint sends."""
        for _ in steps:
            await self._give_way()
        await self._give_way()

    async def _give_way(self) -> None:
        if self._loop.time() >= self._turn_until_s or self._turn_records >= TURN_RECORDS:
            await asyncio.sleep(0)
            self._turn_until_s = self._loop.time() + TURN_MS / 1000.0
            self._turn_records = 0

    def _tell_alive(self, now_s: float) -> None:
        """The session has a clock of its own for a reply that does not get on."""
        if not self.answer.is_done and now_s >= self._told_alive_s + ALIVE_MS / 1000.0:
            self._told_alive_s = now_s
            self._say(ResultKind.CONSUMED, b"")

    def _watch(self) -> None:
        answer, now_s = self.answer, self._loop.time()
        self.close()
        due_s = self._caller.look(now_s, spoken_chars=answer.spoken_chars, has_rest=answer.has_rest)
        if now_s >= due_s:
            answer.say_part()
            due_s = self._caller.look(now_s, spoken_chars=answer.spoken_chars, has_rest=answer.has_rest)
        if due_s < math.inf and not answer.is_done:
            # A word that may go on has no end yet: look again, but not at once.
            self._timer = self._loop.call_at(max(due_s, now_s + PART_MS / 1000.0), self._watch)

    def complaint(self) -> str:
        return self._endpoint.complaint(self._loop.time())
