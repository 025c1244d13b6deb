"""The lanes of a session: which stages need a stream, which have one, which were refused one, and what waits for them.

The shell asks; a lane never opens anything itself. A lane that is ``reset`` is closed and, if still needed, opened
afresh: that is how work in progress is cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from voiceserver.errors import Refusal
from voiceserver.session.outbox import Outbox

RETRY_OPEN_MS = 100.0  # a refused stream is asked for again after this, or when the pool says there is room

_NOTHING: Final[Mapping[str, Degradation]] = MappingProxyType({})


class StreamLoss(NamedTuple):
    """A stage lost its worker at ``since_ms`` and is back when it has answered ``until_seq`` again."""

    reason: str
    since_ms: float
    until_seq: int


class Degradation(NamedTuple):
    """A stage serves this session with less since ``since_ms``: without partial transcripts, or by its lighter engine."""

    since_ms: float
    has_partials: bool
    is_lighter: bool


class StageStreams:
    __slots__ = ("_degradations", "_lost", "_opened", "_refused", "cancelled", "_stages")

    def __init__(self, stages: tuple[str, ...]) -> None:
        self._stages = stages
        self._opened: tuple[str, ...] = ()
        self._refused: dict[str, tuple[Refusal, float]] = {}
        self.cancelled: tuple[str, ...] = ()  # what still comes from them is of work that was cancelled
        self._lost: dict[str, StreamLoss] | None = None
        self._degradations: dict[str, Degradation] | None = None

    def to_change(self, demand: Container[str]) -> tuple[list[str], list[str]]:  # hot
        """Stages whose stream is of no use (not in ``demand``, or reset), and stages of ``demand`` that have no stream and were
        refused none."""
        opened, refused, reset = self._opened, self._refused, self.cancelled
        unwanted, wanted = [], []
        for stage in opened:
            if stage in reset or stage not in demand:
                unwanted.append(stage)
        for stage in self._stages:
            if stage in demand and stage not in opened and stage not in refused:
                wanted.append(stage)
        return unwanted, wanted

    def sendable(self, outbox_of: Callable[[str], Outbox | None]) -> list[str]:  # hot
        ready = []
        for stage in self._opened:
            outbox = outbox_of(stage)
            if outbox is not None and outbox.has_unsent() and stage not in self.cancelled:
                ready.append(stage)
        return ready

    def opened(self, stage: str) -> bool:
        """The stage has a stream. True if it had lost one."""
        self._opened = (*self._opened, stage)
        self._refused.pop(stage, None)
        return self._lost is not None and stage in self._lost

    def is_opened(self, stage: str) -> bool:
        return stage in self._opened

    def serve_degraded(self, stage: str, degradations: Degradation) -> None:
        """The open stream of ``stage`` does less than it could, until it is closed."""
        if self._degradations is None:
            self._degradations = {}
        first = self._degradations.get(stage, degradations)
        self._degradations[stage] = degradations._replace(
            since_ms=first.since_ms, is_lighter=degradations.is_lighter or first.is_lighter
        )

    @property
    def degradations(self) -> Mapping[str, Degradation]:
        return self._degradations or _NOTHING

    def closed(self, stage: str) -> bool:
        """True if the stream did less than it could."""
        was_degraded = self._degradations is not None and self._degradations.pop(stage, None) is not None
        if not self._degradations:
            self._degradations = None
        self._opened = _without(self._opened, stage)
        if self.cancelled:
            self.cancelled = _without(self.cancelled, stage)
        return was_degraded

    def lose(self, stage: str, stream_loss: StreamLoss) -> None:
        if self._lost is None:
            self._lost = {}
        first = self._lost.get(stage, stream_loss)
        self._lost[stage] = stream_loss._replace(since_ms=first.since_ms)

    def stream_loss(self, stage: str) -> StreamLoss | None:
        return self._lost.get(stage) if self._lost is not None else None

    def found(self, stage: str, seq: int) -> None:  # hot
        """The stage has answered up to ``seq``."""
        if self._lost is not None and stage in self._lost and seq >= self._lost[stage].until_seq:
            del self._lost[stage]
            if not self._lost:
                self._lost = None

    @property
    def is_well(self) -> bool:  # hot
        """No worker was lost, no stream was refused, none does less than it could."""
        return self._lost is None and not self._refused and self._degradations is None

    def reset(self, stage: str) -> None:
        """What the stage is doing for this session is worthless now."""
        if stage in self._opened and stage not in self.cancelled:
            self.cancelled = (*self.cancelled, stage)

    def change_engine(self, stage: str, *, is_lighter: bool, has_partials: bool) -> None:
        """A turn is through: reset the stage's stream unless it is where a new one would be opened. ``is_lighter``: on the
        lighter engine. ``has_partials``: the caller gets partial transcripts."""
        now = self.degradations.get(stage)
        was_lighter, had_partials = (now.is_lighter, now.has_partials) if now is not None else (False, True)
        is_better = stage == "stt" and has_partials and not had_partials
        if was_lighter != is_lighter or is_better:
            self.reset(stage)

    def refuse(self, stage: str, refusal: Refusal, now_ms: float) -> None:
        self._refused[stage] = (refusal, now_ms + RETRY_OPEN_MS)

    def refusal(self, stage: str) -> Refusal | None:
        """Why the stage has no stream; it is remembered while it is asked for again."""
        refused = self._refused.get(stage)
        return refused[0] if refused is not None else None

    def retry(self, stage: str) -> None:
        self._refused.pop(stage, None)

    def retry_due(self, now_ms: float) -> None:
        for stage in [stage for stage, (_, retry_ms) in self._refused.items() if now_ms >= retry_ms]:
            del self._refused[stage]

    @property
    def retry_ms(self) -> float:
        if not self._refused:
            return math.inf
        return min((retry_ms for _, retry_ms in self._refused.values()), default=math.inf)


def _without(stages: tuple[str, ...], stage: str) -> tuple[str, ...]:
    if stage not in stages:
        return stages
    at = stages.index(stage)
    return stages[:at] + stages[at + 1 :]
