"""How fast the configured engines are here, and how many callers that carries.

Each engine is measured in a process of its own (``voiceserver_workers.calibrate``).

An engine that waits for a network is not measured: this machine does not decide how fast it is.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from voiceserver.capacity.limit import Cost, calibrate, carried
from voiceserver.config.schema import Config, StageConfig, has_engine
from voiceserver_workers import registry
from voiceserver_workers.ipc.messages import CalibrationJob, NotMeasured, decode_measured, encode

MEASURED: Final = ("vad", "stt", "tts")  # a reply is words, and costs next to nothing or a network
BATCH_SIZES: Final = {"vad": (1, 8, 32, 128), "stt": (1, 4), "tts": (1, 4)}
DTYPES: Final = ("", "float32", "bfloat16", "float16", "int8")
DTYPE_PARAMS: Final = ("dtype", "compute_type")  # who has configured one has chosen
_TIMEOUT_S: Final = 180.0


@dataclass(frozen=True, slots=True)
class Step:
    """One measured pair of batch size and dtype ("": the engine's own). work: seconds of one worker per second of audio.
    max_streams: places of one worker, as the engine says; 0: no limit."""

    stage: str
    engine: str
    dtype: str
    batch: int
    step_ms: float
    work: float
    max_streams: int = 0


@dataclass(frozen=True, slots=True)
class Trouble:
    stage: str
    engine: str
    message: str


@dataclass(frozen=True, slots=True)
class Carries:
    """What the machine carries, by the configured dtype. None: not known, because a stage that it takes was not measured."""

    talkers: int | None
    listeners: int | None
    connections: int


def measure(config: Config, budget_s: float) -> Iterator[Step | Trouble]:
    """Every step of every computing stage; budget_s for each pair of batch size and dtype."""
    for stage in MEASURED:
        settings: StageConfig = getattr(config.stages, stage)
        if not settings.is_on:
            continue
        try:
            computes = registry.check(settings.engine).computes
        except registry.EngineLookupError as error:
            yield Trouble(stage, settings.engine, str(error))
            continue
        if computes:
            yield from _measure(stage, settings, budget_s)


def _measure(stage: str, settings: StageConfig, budget_s: float) -> Iterator[Step | Trouble]:
    job = CalibrationJob(
        settings.engine,
        stage,
        settings.params,
        tuple(size for size in BATCH_SIZES[stage] if size <= settings.max_batch_size),
        DTYPES if settings.params.keys().isdisjoint(DTYPE_PARAMS) else ("",),
        budget_s,
    )
    command = [sys.executable, "-m", "voiceserver_workers.calibrate"]
    timeout_s = _TIMEOUT_S + budget_s * len(job.batch_sizes) * len(job.dtypes)
    try:
        told = subprocess.run(command, input=encode(job), capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        yield Trouble(stage, settings.engine, f"it was not measured within {timeout_s:.0f} s")
        return
    answers = [decode_measured(line) for line in told.stdout.splitlines() if line.startswith(b"{")]
    for answer in answers:
        if isinstance(answer, NotMeasured):
            yield Trouble(stage, settings.engine, answer.error)
        else:
            yield Step(
                stage,
                settings.engine,
                answer.dtype,
                answer.batch,
                answer.step_ms,
                answer.work,
                answer.max_streams,
            )
    if not answers:
        yield Trouble(stage, settings.engine, f"its process ended with {told.returncode}")


def best(steps: Sequence[Step], stage: str, dtype: str = "") -> Step | None:
    """The step with the least work per second of audio."""
    fitting = [step for step in steps if step.stage == stage and step.dtype == dtype and step.work > 0]
    return min(fitting, key=lambda step: step.work, default=None)


def carries(config: Config, steps: Sequence[Step], cores: float, connections: int) -> Carries:
    """talkers speak with the whole pipeline behind them; listeners are heard by vad and silent. A stage that computes and was not
    measured is not taken for one that costs nothing."""
    costs: dict[str, Cost] = {}
    needed: set[str] = set()
    for stage in MEASURED:
        settings: StageConfig = getattr(config.stages, stage)
        if _computes(settings.engine):
            needed.add(stage)
        step = best(steps, stage)
        if step is not None:
            workers = max(settings.workers, 1) * config.server.processes
            # As a pool takes it: what is configured, and what the engine says.
            places = min(
                (some for some in (settings.streams_per_worker, step.max_streams) if some), default=0
            )
            costs[stage] = Cost(stage, step.work, workers, places * workers or None, stage != "vad")
    talkers = listeners = None
    vad = costs.get("vad")
    if vad is not None:
        listeners = min(int(carried(min(vad.workers, cores) / vad.work)), connections)
        if vad.places is not None:
            listeners = min(listeners, vad.places)
    if needed and needed <= costs.keys():
        talkers = min(calibrate(costs.values(), cores), connections)
    return Carries(talkers, listeners, connections)


def _computes(engine: str) -> bool:
    """Whether a stage with this engine takes time of this machine."""
    return has_engine(engine) and registry.computes(engine)
