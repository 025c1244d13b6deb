"""What the parts of one pool share: the stage's settings, time, the loop, and whom to tell."""

from __future__ import annotations

from collections.abc import Callable

from voiceserver.config.schema import StageConfig
from voiceserver.pool import OnEvent, never_raising
from voiceserver.pool.owner_calls import OwnerCalls
from voiceserver.pool.worker_handle import WorkerHandle

CallSoon = Callable[[Callable[[], None]], object]


class PoolContext:
    """``call_soon(callback)`` runs it after the callbacks of this turn of the loop. ``on_event(name, fields)`` hears what happens
    to workers, for logs and metrics; ``report_owner(error)``, what an owner of a stream raised."""

    __slots__ = ("call_soon", "clock_ns", "config", "is_stopping", "on_event", "owners", "stage")

    def __init__(
        self,
        stage: str,
        config: StageConfig,
        *,
        report_owner: Callable[[Exception], None],
        call_soon: CallSoon,
        clock_ns: Callable[[], int],
        on_event: OnEvent,
    ) -> None:
        self.stage = stage
        self.config = config
        self.owners = OwnerCalls(report_owner)
        self.call_soon = call_soon
        self.clock_ns = clock_ns
        self.on_event = never_raising(on_event)
        self.is_stopping = False

    def now_ms(self) -> float:
        return self.clock_ns() / 1e6

    def begin_stop(self) -> None:
        """From now on workers are meant to end."""
        self.is_stopping = True

    def report(self, event: str, handle: WorkerHandle | None, **fields: object) -> None:
        """Tell ``on_event`` what became of a worker, or of the stage."""
        whose: dict[str, object] = {"stage": self.stage}
        if handle is not None:
            whose |= {"worker": handle.index, "pid": handle.pid, "generation": handle.generation}
        self.on_event(event, {**whose, **fields})
