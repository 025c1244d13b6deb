"""No worker is left: everybody hears so, also those who said nothing that could be late.

::

    up --(a stage has had no worker for busy_after_ms)--> out    server.busy to all, then to whoever joins, and every REPEAT_MS
    out --(each stage has one again)--------------------> up     server.ready to those who were told

Whoever waits for the stage is told by its own gate (``pressure``), with its own numbers, and is passed over here. Silent callers
without a session hear a frame that is built once for all, and ``Services`` tells many callers in slices, so that nobody's
audio waits for that. A pool without workers of its own (an endpoint) is never out: its answers say what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from voiceserver.events.events import BusyCue, ServerBusy, ServerReady
from voiceserver.session import deadlines
from voiceserver.wire.frames import build_frame

if TYPE_CHECKING:
    from voiceserver.pool import Pool
    from voiceserver.session.settings import SessionOptions
    from voiceserver.session.state import SessionState
    from voiceserver.wire import Codec

REPEAT_MS: Final = 5_000.0  # for callers who wait for nothing
SLICE: Final = 128  # callers told in one tick of the loop

_Caller = TypeVar("_Caller")


class Gone(NamedTuple):
    """``stage`` has no worker; there may be one in ``retry_after_ms``."""

    stage: str
    retry_after_ms: float

    def signal(self, credit_ms: float) -> ServerBusy:
        retry_after_ms = round(self.retry_after_ms, 1)
        return ServerBusy(self.stage, "no_worker", 0.0, round(credit_ms, 1), retry_after_ms)


class Outage:
    """Which stages have no worker. ``busy_after_ms``: for how long that is nobody's business who waits for nothing."""

    def __init__(self, pools: Mapping[str, Pool], busy_after_ms: float) -> None:
        self._pools = pools
        self._busy_after_ms = busy_after_ms
        self._since_ms: dict[str, float] = {}
        self._told_ms = 0.0
        self._shared: tuple[ServerBusy | ServerReady, bytes] | None = None
        self.gone: dict[str, Gone] = {}
        self.was_whole = False  # every stage had a worker once: what is missing before that is still starting
        # What callers without a session were told of; see ``SessionState.gone``.
        self.silent: dict[object, str] = {}

    def look(self, now_ms: float) -> bool:
        """Call a few times in ``busy_after_ms``. True: go round and tell everybody, whom ``gone_of`` concerns or did."""
        known = set(self.gone)
        for stage, pool in self._pools.items():
            retry_after_ms = pool.back_in_ms()
            if retry_after_ms is None:
                self._since_ms.pop(stage, None)
                self.gone.pop(stage, None)
            elif now_ms >= self._since_ms.setdefault(stage, now_ms) + self._busy_after_ms:
                self.gone[stage] = Gone(stage, retry_after_ms)
        self.was_whole = self.was_whole or not self._since_ms
        is_due = self.gone.keys() != known or (bool(self.gone) and now_ms >= self._told_ms + REPEAT_MS)
        if is_due:
            self._told_ms = now_ms
        return is_due

    def gone_of(self, options: SessionOptions) -> Gone | None:
        """What a caller with these options goes without; of several stages the first that its audio meets."""
        gone = self.gone
        if not gone:
            return None
        needed = {
            "vad": options.turn_detection is not None,
            "stt": options.transcribes or options.replies,
            "reply": options.replies,
            "tts": options.replies and options.speaks,
        }
        return next((gone[stage] for stage, is_needed in needed.items() if is_needed and stage in gone), None)

    def shared_frame(self, event: ServerBusy | ServerReady, codec: Codec) -> bytes:
        """Of a wire that has no state (``is_shared``): the same bytes for all who are told the same."""
        if self._shared is None or self._shared[0] != event:
            self._shared = event, b"".join(build_frame(frame) for frame in codec.encode(event))
        return self._shared[1]


def tell(session: SessionState, gone: Gone | None, *, is_back: bool = False) -> None:
    """Say that the stage has no worker, or that there is one again (None) if the session was told of it here. is_back: what
    the gate said last may not have been heard."""
    if session.is_closed or (gone is not None and not session.is_open):
        return
    if gone is None:
        stage, session.gone = session.gone, ""
        if stage and (
            session.busy_monitor is None or not session.busy_monitor.is_busy
        ):  # else the gate says so when it is over
            session.emit(ServerReady(stage=stage, credit_ms=round(session.credit_ms, 1)))
        return
    delays = [] if is_back else deadlines.delays(session)
    if session.place is not None or any(w.stage == gone.stage and w.step != "degraded" for w in delays):
        return
    is_first, session.gone = not session.gone, gone.stage
    session.emit(gone.signal(session.credit_ms))
    if (
        is_first
        and session.options.audible_busy
        and (session.reply is None or not session.reply.samples_sent)
    ):
        session.emit(BusyCue(cue="busy"))


def slices(callers: Sequence[_Caller]) -> Iterator[Sequence[_Caller]]:
    for start in range(0, len(callers), SLICE):
        yield callers[start : start + SLICE]
