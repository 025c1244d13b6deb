"""How long does a step of an engine take? ``python -m voiceserver_workers.calibrate``, with a job as JSON on standard input.

It makes the engine in this process, as a worker would, and prints one JSON line per measurement as it has them. Rules: one
thread, as in a worker; the first step is not measured; what an engine refuses (a dtype, a batch) is left out. Work on a CPU is
counted in CPU time where that is less: a busy machine is not a slow one.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from voiceserver_workers import registry
from voiceserver_workers.audio import Resampler
from voiceserver_workers.engine import Audio, Engine, EngineError, EngineFactory, Item, Output
from voiceserver_workers.ipc.messages import (
    CalibrationJob,
    Measured,
    NotMeasured,
    ResultKind,
    StreamParams,
    Value,
    decode_calibration_job,
    encode,
)
from voiceserver_workers.process import describe_error, limit_torch_threads

LINE = "All our lines are busy. Please hold the line, somebody will be with you soon."
CHUNK_MS = 100
LEAST_STEPS = 3
DTYPE_PARAMS = ("dtype", "compute_type")  # what engines call it: torch, and CTranslate2


def measure(job: CalibrationJob) -> Iterator[Measured]:
    """Raises what the engine raises when it is made as configured."""
    factory = registry.load(job.engine)
    limit_torch_threads()
    for dtype in job.dtypes:
        engine = _with_dtype(factory, job.params, dtype) if dtype else factory(dict(job.params))
        if engine is None:
            continue
        limit_torch_threads()
        for batch in job.batch_sizes:
            if engine.info.max_streams and batch > engine.info.max_streams:
                break
            try:
                yield _measure(engine, job, dtype, batch)
            except EngineError:
                break


def _with_dtype(factory: EngineFactory, params: Mapping[str, Value], dtype: str) -> Engine | None:
    """None: this engine, or this processor, has no such thing."""
    for name in DTYPE_PARAMS:
        with contextlib.suppress(Exception):
            return factory({**params, name: dtype})
    return None


def _measure(engine: Engine, job: CalibrationJob, dtype: str, batch: int) -> Measured:
    streams = range(1, batch + 1)
    rate_hz = engine.info.rate_hz or 16_000
    for stream in streams:
        engine.open(stream, StreamParams(rate_hz=rate_hz))
    try:
        if job.stage == "tts":
            return _speaking(engine, job, dtype, streams, rate_hz)
        return _hearing(engine, job, dtype, streams, rate_hz)
    finally:
        for stream in streams:
            engine.close(stream)


def _hearing(
    engine: Engine, job: CalibrationJob, dtype: str, streams: Sequence[int], rate_hz: int
) -> Measured:
    """All streams hear the same speech, a chunk a step, and (stt) its end."""
    speech = speech_at(rate_hz)
    size = rate_hz * CHUNK_MS // 1000
    if engine.info.frame_samples:
        size = -(-size // engine.info.frame_samples) * engine.info.frame_samples
    chunks = [speech[at : at + size] for at in range(0, len(speech) - size + 1, size)]
    utterances: list[tuple[float, float]] = []
    steps: list[float] = []
    turn, end_s = 0, time.perf_counter() + job.budget_s
    heard_ms = 0.0
    while len(utterances) < LEAST_STEPS or time.perf_counter() < end_s:
        turn += 1
        took_s = 0.0
        for index, chunk in enumerate(chunks):
            heard_ms += len(chunk) * 1000.0 / rate_hz
            is_flush = job.stage == "stt" and index == len(chunks) - 1
            # Partial transcripts are left out under pressure, so what they cost does not count.
            item = Item(0, turn, chunk, None, heard_ms, is_flush, is_final_only=job.stage == "stt")
            items = [item._replace(stream=stream) for stream in streams]
            step_s = _timed(engine, job, items)
            took_s += step_s
            steps.append(step_s)
        utterances.append((took_s, len(chunks)))
        if job.stage == "vad" and len(steps) > LEAST_STEPS and time.perf_counter() > end_s:
            break
    # The mean of a whole utterance: most of an utterance's work may be at its end.
    per_step_s = statistics.median(took_s / count for took_s, count in utterances[1:] or utterances)
    audio_ms = len(streams) * size * 1000.0 / rate_hz
    return Measured(dtype, len(streams), per_step_s * 1000.0, audio_ms, engine.info.max_streams)


def _speaking(
    engine: Engine, job: CalibrationJob, dtype: str, streams: Sequence[int], rate_hz: int
) -> Measured:
    took: list[float] = []
    spoken: list[float] = []
    turn, end_s = 0, time.perf_counter() + job.budget_s
    while len(took) < LEAST_STEPS or time.perf_counter() < end_s:
        turn += 1
        watch, samples = _Watch(job), 0
        items = [Item(stream, turn, _NOTHING, LINE) for stream in streams]
        while items:
            outputs = engine.step(items)
            samples += sum(_samples(output) for output in outputs)
            items = [
                item._replace(text=None, is_continued=True)
                for item, output in zip(items, outputs, strict=True)
                if output.more
            ]
        took.append(watch.seconds() * 1000.0)
        spoken.append(samples * 1000.0 / rate_hz)
    step_ms, audio_ms = statistics.median(took[1:]), statistics.median(spoken)
    return Measured(dtype, len(streams), step_ms, audio_ms, engine.info.max_streams)


_NOTHING: Audio = np.zeros(0, np.float32)


def _samples(output: Output) -> int:
    return sum(
        len(piece.payload) // (2 if isinstance(piece.payload, bytes) else 1)
        for piece in output.pieces
        if piece.kind == ResultKind.AUDIO
    )


def _timed(engine: Engine, job: CalibrationJob, items: list[Item]) -> float:
    """Seconds until the engine has nothing more to say to these."""
    watch = _Watch(job)
    while items:
        outputs = engine.step(items)
        items = [
            item._replace(audio=_NOTHING, is_continued=True)
            for item, output in zip(items, outputs, strict=True)
            if output.more
        ]
    return watch.seconds()


class _Watch:
    def __init__(self, job: CalibrationJob) -> None:
        self._is_on_cpu = "cuda" not in str(job.params.get("device", ""))
        self._began_s, self._cpu_s = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        took_s = time.perf_counter() - self._began_s
        return min(took_s, time.process_time() - self._cpu_s) if self._is_on_cpu else took_s


def speech_at(rate_hz: int) -> Audio:
    """A few seconds of speech; noise with the rhythm of speech where nothing here can speak."""
    try:
        speaker = registry.load("espeak")({})
        speaker.open(1, StreamParams(rate_hz=speaker.info.rate_hz))
        outputs = list(speaker.step([Item(1, 1, _NOTHING, LINE)]))
        while outputs[-1].more:
            outputs += speaker.step([Item(1, 1, _NOTHING, None, 0.0, False, True)])
        pieces = [
            piece.payload for output in outputs for piece in output.pieces if piece.kind == ResultKind.AUDIO
        ]
        audio = np.concatenate([np.asarray(piece, np.float32) for piece in pieces])
        speaker.close(1)
        if speaker.info.rate_hz == rate_hz:
            return audio
        resampler = Resampler(speaker.info.rate_hz, rate_hz)
        return np.concatenate((resampler.process(audio), resampler.flush()))
    except (registry.EngineLookupError, EngineError, OSError):
        times = np.arange(4 * rate_hz) / rate_hz
        noise = np.random.default_rng(1).standard_normal(len(times))
        return (0.1 * noise * (np.sin(2 * np.pi * 4 * times) > 0)).astype(np.float32)


def main() -> int:
    job = decode_calibration_job(sys.stdin.buffer.read())
    try:
        for measured in measure(job):
            print(encode(measured).decode(), flush=True)
    except Exception as error:
        print(encode(NotMeasured(describe_error(error))).decode(), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
