"""How fast the configured engines are here, each measured in a process of its own (``workers.calibrate``), and what that carries.

An engine that waits for a network is not measured: this machine does not decide how fast it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from voiceserver.config import Config, StageConfig
from voiceserver.limit import Cost, calibrate, carried
from workers import registry

MEASURED: Final = ("vad", "stt", "tts")  # a reply is words, and costs next to nothing or a network
BATCH_SIZES: Final = {"vad": (1, 8, 32, 128), "stt": (1, 4), "tts": (1, 4)}
DTYPES: Final = ("", "float32", "bfloat16", "float16", "int8")
DTYPE_PARAMS: Final = ("dtype", "compute_type")  # who has configured one has chosen
_TIMEOUT_S: Final = 180.0


@dataclass(frozen=True, slots=True)
class Step:
    """One measured pair of batch size and dtype ("": the engine's own). work: seconds of one worker per second of audio."""

    stage: str
    engine: str
    dtype: str
    batch: int
    step_ms: float
    work: float


@dataclass(frozen=True, slots=True)
class Trouble:
    stage: str
    engine: str
    message: str


@dataclass(frozen=True, slots=True)
class Carries:
    """What the machine carries, by the configured dtype. None: that stage is not measured here."""

    talkers: int | None
    listeners: int | None
    connections: int


def measure(config: Config, budget_s: float) -> Iterator[Step | Trouble]:
    """Every step of every computing stage; budget_s for each pair of batch size and dtype."""
    for stage in MEASURED:
        settings: StageConfig = getattr(config.stages, stage)
        if settings.engine in ("", "none"):
            continue
        try:
            is_remote = registry.check(settings.engine).is_remote
        except registry.EngineLookupError as error:
            yield Trouble(stage, settings.engine, str(error))
            continue
        if not is_remote:
            yield from _measure(stage, settings, budget_s)


def _measure(stage: str, settings: StageConfig, budget_s: float) -> Iterator[Step | Trouble]:
    job = {
        "engine": settings.engine,
        "stage": stage,
        "params": settings.params,
        "batch_sizes": [size for size in BATCH_SIZES[stage] if size <= settings.max_batch_size],
        "dtypes": DTYPES if settings.params.keys().isdisjoint(DTYPE_PARAMS) else ("",),
        "budget_s": budget_s,
    }
    command = [sys.executable, "-m", "workers.calibrate"]
    try:
        told = subprocess.run(
            command, input=json.dumps(job), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        yield Trouble(stage, settings.engine, f"it was not measured within {_TIMEOUT_S:.0f} s")
        return
    lines = [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        if "error" in line:
            yield Trouble(stage, settings.engine, line["error"])
        else:
            yield Step(stage, settings.engine, line["dtype"], line["batch"], line["step_ms"], line["work"])
    if not lines:
        yield Trouble(stage, settings.engine, f"its process ended with {told.returncode}")


def best(steps: Sequence[Step], stage: str, dtype: str = "") -> Step | None:
    """The step with the least work per second of audio."""
    fitting = [step for step in steps if step.stage == stage and step.dtype == dtype and step.work > 0]
    return min(fitting, key=lambda step: step.work, default=None)


def carries(config: Config, steps: Sequence[Step], cores: float, connections: int) -> Carries:
    """talkers speak with the whole pipeline behind them; listeners are heard by vad and silent."""
    costs = []
    for stage in MEASURED:
        step = best(steps, stage)
        if step is not None:
            settings: StageConfig = getattr(config.stages, stage)
            workers = max(settings.workers, 1) * config.server.processes
            places = settings.streams_per_worker * workers or None
            costs.append(Cost(stage, step.work, workers, places, stage != "vad"))
    vad = best(steps, "vad")
    listeners = None
    if vad is not None:
        busy = min(max(config.stages.vad.workers, 1) * config.server.processes, cores)
        listeners = min(int(carried(busy / vad.work)), connections)
    talkers = calibrate(costs, cores) or None
    if talkers is not None:
        talkers = min(talkers, connections)
    return Carries(talkers, listeners, connections)
