"""What the dashboard says of a server beside its figures: which version runs where and since when, what its stages are and why
one fails, and how the limit of places moved.

All of it is put together when somebody asks. Parameters of engines are for those who may see the figures by a key or sit at this
machine, and secrets among them for nobody.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
from collections.abc import Mapping
from typing import Protocol

import msgspec

from voiceserver.capacity.limit import LimitMove
from voiceserver.config.schema import Config, StageConfig
from voiceserver.config.secret_values import shown_value
from voiceserver.observability.history import History, HistoryReport
from voiceserver.server.stage_problems import StageProblem, StageProblems
from voiceserver.transport.ticks import Ticks


class StageOverview(msgspec.Struct, frozen=True):
    """``params``: null for those who may not see them. ``problem``: null where nothing is wrong."""

    engine: str
    lighter: str
    endpoint: str
    params: dict[str, str] | None
    problem: StageProblem | None


class Move(msgspec.Struct, frozen=True):
    """The limit of places went from ``before`` to ``after``. ``cause``: see ``LimitMove``."""

    age_ms: float
    before: int
    after: int
    cause: str
    stage: str
    value: float


class Overview(msgspec.Struct, frozen=True):
    """Of the process that answers, where there are several."""

    version: str
    host: str
    pid: int
    python: str
    processes: int
    uptime_ms: float
    stages: dict[str, StageOverview]
    limit_moves: list[Move]


class Limited(Protocol):
    """``voiceserver.capacity.controller.CapacityController`` is one."""

    @property
    def limit_moves(self) -> tuple[LimitMove, ...]: ...


class OverviewSource:
    """``history``, and everything that ``overview`` is made of."""

    def __init__(
        self, config: Config, history: History, problems: StageProblems, limited: Limited, ticks: Ticks
    ) -> None:
        self.history = history
        self._config = config
        self._problems = problems
        self._limited = limited
        self._ticks = ticks
        self._started_ms = ticks.clock()

    def report(self) -> HistoryReport:
        return self.history.report(self._ticks.clock())

    def overview(self, *, with_params: bool) -> Overview:
        now_ms = self._ticks.clock()
        moves = [
            Move(
                round(now_ms - move.at_ms),
                move.before,
                move.after,
                move.cause,
                move.stage,
                round(move.value, 2),
            )
            for move in self._limited.limit_moves
        ]
        return Overview(
            version=installed_version(),
            host=socket.gethostname(),
            pid=os.getpid(),
            python=platform.python_version(),
            processes=self._config.server.processes,
            uptime_ms=round(now_ms - self._started_ms),
            stages={
                name: self._stage(name, stage, with_params)
                for name, stage in self._config.stages.by_name().items()
            },
            limit_moves=moves,
        )

    def _stage(self, name: str, stage: StageConfig, with_params: bool) -> StageOverview:
        lighter = stage.lighter_stage
        params = shown_params(f"stages.{name}.params", stage.params)
        problem = self._problems.of(name)
        return StageOverview(
            engine=stage.engine,
            lighter=lighter.engine if lighter is not None else "",
            endpoint=params.get("base_url", ""),
            params=params if with_params else None,
            problem=problem,
        )


def shown_params(key: str, params: Mapping[str, object]) -> dict[str, str]:
    return {name: str(shown_value(f"{key}.{name}", value)) for name, value in params.items()}


def installed_version() -> str:
    try:
        return importlib.metadata.version("voiceserver")
    except importlib.metadata.PackageNotFoundError:
        return "from its sources"
