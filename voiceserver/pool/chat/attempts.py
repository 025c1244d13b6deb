"""One question to the endpoint: the answer of the present try, and the two clocks on the time of the loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

from voiceserver.pool.chat.answer import Answer
from voiceserver.pool.chat.clocks import CallerClock, EndpointClock
from voiceserver.pool.chat.config import ChatConfig
from voiceserver.pool.remote_pool import Say
from voiceserver.session.sentences import SentenceCutter
from voiceserver_workers.ipc.messages import ResultKind

ALIVE_MS: Final = 500.0  # how often a session is told that the endpoint is at work
PART_MS: Final = 250.0  # between two looks at a word that does not end
TIDY_MS: Final = 1_000.0  # for the rest of a response, so that its connection can be used again


class Attempts:
    """``close`` when it is over. ``on_odd``: see ``Answer``."""

    def __init__(
        self, config: ChatConfig, loop: asyncio.AbstractEventLoop, say: Say, on_odd: Callable[[str], None]
    ) -> None:
        self._config = config
        self._loop = loop
        self._say = say
        self._on_odd = on_odd
        self._endpoint = EndpointClock(config, loop.time())
        self._told_alive_s = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self.begin()

    def begin(self) -> None:
        """Another one: nothing that is left of the last may count."""
        config = self._config
        cutter = SentenceCutter(config.max_sentence_chars, config.first_clause_chars)
        self.answer = Answer(self._say, cutter, self._on_odd)
        self._caller = CallerClock(config.max_unspoken_ms)
        self._progress = 0

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def set(self, clock: asyncio.Timeout) -> None:
        if self.answer.is_done:
            clock.reschedule(self._loop.time() + TIDY_MS / 1000.0)
        else:
            clock.reschedule(self._endpoint.due_s)

    def receive(self, data: bytes, clock: asyncio.Timeout) -> None:
        answer, now_s = self.answer, self._loop.time()
        answer.receive(data)
        is_progress, self._progress = answer.progress > self._progress, answer.progress
        if self._endpoint.hear(now_s, has_begun=answer.has_begun, is_progress=is_progress):
            self._tell_alive(now_s)
        self.set(clock)
        self._watch()

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
