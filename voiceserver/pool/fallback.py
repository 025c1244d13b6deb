"""A stage with a lighter engine beside its own: which of the two a new stream opens on.

::

    full     try_open --> the stage's engine
    lighter  try_open --> the lighter engine; the stage's own where that has no place

The server says which (``set_lighter``, a step of ``limit.Ladder``). Rule: a stream stays where it was opened, so a change takes
effect with the next turn and loses nothing. Both pools run all the time: loading an engine under load would come too late.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from voiceserver.errors import Refusal
from voiceserver.pool import Pool, PoolStats, Speech, Stream, StreamOwner
from voiceserver_workers.ipc.messages import StreamParams


class FallbackPool(Pool):
    """``own`` and ``lighter``: two pools of one stage; the second one's streams say ``is_lighter``."""

    has_lighter = True

    def __init__(self, own: Pool, lighter: Pool) -> None:
        self.stage = own.stage
        self.own = own
        self.lighter = lighter
        self._prefers_lighter = False

    def set_lighter(self, is_lighter: bool) -> None:
        """See ``Pool``."""
        self._prefers_lighter = is_lighter

    def set_max_wait_ms(self, max_wait_ms: float) -> None:
        """See ``Pool``."""
        self.own.set_max_wait_ms(max_wait_ms)
        self.lighter.set_max_wait_ms(max_wait_ms)

    def try_open(
        self, owner: StreamOwner, params: StreamParams, *, key: str = "", is_lighter: bool = False
    ) -> Stream | Refusal:
        """See ``Pool``. A session in quarantine for either engine is refused by both."""
        if not self._prefers_lighter:
            return self.own.try_open(owner, params, key=key)
        got = self.lighter.try_open(owner, params, key=key, is_lighter=True)
        if isinstance(got, Refusal) and got.reason != "quarantined":
            return self.own.try_open(owner, params, key=key)
        return got

    def forget(self, owner: StreamOwner) -> None:
        """See ``Pool``."""
        self.own.forget(owner)
        self.lighter.forget(owner)

    @property
    def speech(self) -> Speech:
        """Voices of the stage's own engine; languages that both speak, none where one does not list them."""
        own = self.own.speech
        return Speech(own.voices, own.languages & self.lighter.speech.languages)

    def is_ready(self) -> bool:
        """See ``Pool``: of the stage's own engine; the lighter one is an extra."""
        return self.own.is_ready()

    def is_idle(self) -> bool:
        """See ``Pool``."""
        return self.own.is_idle() and self.lighter.is_idle()

    def back_in_ms(self) -> float | None:
        """See ``Pool``: of the engine that new streams would open on."""
        return None if self._prefers_lighter and self.lighter.is_ready() else self.own.back_in_ms()

    def stats(self) -> PoolStats:
        """Of both; the workers of the lighter engine are counted on from the others."""
        own, lighter = self.own.stats(), self.lighter.stats()
        first = max((worker.index for worker in own.workers), default=-1) + 1
        others = tuple(replace(worker, index=first + worker.index) for worker in lighter.workers)
        workers = own.workers + others
        used = lighter if self._prefers_lighter else own
        steps = sum(worker.batches for worker in workers)
        items = sum(worker.items for worker in workers)
        return PoolStats(
            stage=self.stage,
            engine=used.engine,
            workers=workers,
            streams=own.streams + lighter.streams,
            free=used.free,
            lag_ms=max(own.lag_ms, lighter.lag_ms),
            restarts=own.restarts + lighter.restarts,
            mean_batch=items / steps if steps else 0.0,
            lighter_streams=lighter.streams,
            skipped=own.skipped + lighter.skipped,
        )

    async def start(self) -> None:
        """See ``Pool``."""
        await asyncio.gather(self.own.start(), self.lighter.start())

    async def stop(self) -> None:
        """See ``Pool``."""
        await asyncio.gather(self.own.stop(), self.lighter.stop())
