"""Stages without a worker: all callers are told of it, also those who said nothing that could be late.

::

    whole --(a stage has had no worker for busy_after_ms)--> missing   server.busy to all, every REPEAT_MS, and to new callers
    missing --(each stage has a worker again)--------------> whole     server.ready to those who were told

A session that waits for the stage is told by its own busy monitor, with its own numbers, and is passed over here. A pool without
workers of its own (an endpoint) is never missing: its answers say what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from voiceserver.events.events import BusyCue, ServerBusy, ServerReady
from voiceserver.session import deadlines

if TYPE_CHECKING:
    from voiceserver.pool import Pool
    from voiceserver.session.settings import SessionOptions
    from voiceserver.session.state import SessionState

REPEAT_MS: Final = 5_000.0  # for callers who wait for nothing
SLICE: Final = 128  # callers told in one tick of the loop

_Caller = TypeVar("_Caller")


class MissingStage(NamedTuple):
    """``stage`` has no worker; there may be one in ``retry_after_ms``."""

    stage: str
    retry_after_ms: float

    def signal(self, credit_ms: float) -> ServerBusy:
        retry_after_ms = round(self.retry_after_ms, 1)
        return ServerBusy(self.stage, "no_worker", 0.0, round(credit_ms, 1), retry_after_ms)


class Outage:
    """Which stages have no worker. ``busy_after_ms``: how long callers that wait for nothing are not told of it."""

    def __init__(self, pools: Mapping[str, Pool], busy_after_ms: float) -> None:
        self._pools = pools
        self._busy_after_ms = busy_after_ms
        self._since_ms: dict[str, float] = {}
        self._notified_ms = 0.0
        self.missing: dict[str, MissingStage] = {}
        # Every stage had a worker once. What is missing before that is still starting.
        self.was_whole = False

    def look(self, now_ms: float) -> bool:
        """Call a few times in ``busy_after_ms``. True: tell every caller whom ``missing_for`` concerns, or did."""
        known = set(self.missing)
        for stage, pool in self._pools.items():
            retry_after_ms = pool.back_in_ms()
            if retry_after_ms is None:
                self._since_ms.pop(stage, None)
                self.missing.pop(stage, None)
            elif now_ms >= self._since_ms.setdefault(stage, now_ms) + self._busy_after_ms:
                self.missing[stage] = MissingStage(stage, retry_after_ms)
        self.was_whole = self.was_whole or not self._since_ms
        is_due = self.missing.keys() != known or (
            bool(self.missing) and now_ms >= self._notified_ms + REPEAT_MS
        )
        if is_due:
            self._notified_ms = now_ms
        return is_due

    def missing_for(self, options: SessionOptions) -> MissingStage | None:
        """What a caller with these options goes without; of several stages the first that its audio meets."""
        if not self.missing:
            return None
        # One that came back since the last look is not missing for whoever comes now.
        missing = {
            name: one for name, one in self.missing.items() if self._pools[name].back_in_ms() is not None
        }
        needed = {
            "vad": options.turn_detection is not None,
            "stt": options.transcribes or options.replies,
            "reply": options.replies,
            "tts": options.replies and options.speaks,
        }
        return next(
            (missing[stage] for stage, is_needed in needed.items() if is_needed and stage in missing), None
        )


def tell(session: SessionState, missing: MissingStage | None, *, is_back: bool = False) -> None:
    """Say that the stage has no worker, or that there is one again (None) if the session was told of it here. is_back: the
    caller resumes, and may not have heard the last busy signal."""
    if session.is_closed or (missing is not None and not session.is_open):
        return
    if missing is None:
        stage, session.gone = session.gone, ""
        # A busy session is told when its own delay is over.
        if stage and (session.busy_monitor is None or not session.busy_monitor.is_busy):
            session.outgoing.emit(ServerReady(stage=stage, credit_ms=round(session.credit_ms, 1)))
        return
    delays = [] if is_back else deadlines.delays(session)
    if session.place is not None or any(w.stage == missing.stage and w.step != "degraded" for w in delays):
        return
    is_first, session.gone = not session.gone, missing.stage
    session.outgoing.emit(missing.signal(session.credit_ms))
    if (
        is_first
        and session.options.audible_busy
        and (session.reply is None or not session.reply.samples_sent)
    ):
        session.outgoing.emit(BusyCue(cue="busy"))


def slices(callers: Sequence[_Caller]) -> Iterator[Sequence[_Caller]]:
    for start in range(0, len(callers), SLICE):
        yield callers[start : start + SLICE]
