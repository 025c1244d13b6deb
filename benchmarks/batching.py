"""What batching gives, on two real streaming models and in the four designs that people argue about.

``python -m benchmarks.batching``. *silero* is small and bound by calls; the *GRU* (three layers of 1,024, the inside of a
streaming recogniser) is bound by its weights: a step of one reads 75 MB to use each number once. First throughput and time of a
step by batch size and dtype (int8: dynamic quantisation); then the same work done **one by one**, **batched**, by **several
processes**, and by the **hybrid**, several processes that batch. One thread each, as our workers have.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import time
import warnings
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import Progress
from torch import Tensor, nn

from benchmarks.report.results import percentiles, print_table, store
from voiceserver_workers.engine import Item
from voiceserver_workers.engines.silero import RATE_HZ, WINDOW_SAMPLES, Silero
from voiceserver_workers.ipc.messages import StreamParams

SIZES = (1, 2, 4, 8, 16, 32, 64)
DESIGN_BATCH = 32
HIDDEN = 1_024
LAYERS = 3
FEATURES = 80
STEP_MS = {"silero": 1000 * WINDOW_SAMPLES / RATE_HZ, "gru": 40.0}  # audio of one item
DTYPES = {"silero": ("float32", "bfloat16"), "gru": ("float32", "bfloat16", "int8")}
WARM_UP = 3

# A step over the first ``n`` streams.
Step = Callable[[int], None]


class StreamingGru(nn.Module):
    """Frames of 80 features in, 1,024 numbers out; the state of each stream is a row of ``state``."""

    def __init__(self, streams: int) -> None:
        super().__init__()
        sizes = [FEATURES, *[HIDDEN] * (LAYERS - 1)]
        self.inputs = nn.ModuleList(nn.Linear(size, 3 * HIDDEN) for size in sizes)
        self.recurrents = nn.ModuleList(nn.Linear(HIDDEN, 3 * HIDDEN) for _ in sizes)
        self.state = torch.zeros(LAYERS, streams, HIDDEN)

    @torch.inference_mode()
    def step(self, x: Tensor) -> Tensor:  # hot
        count = len(x)
        for layer, (feed, recur) in enumerate(zip(self.inputs, self.recurrents, strict=True)):
            h = self.state[layer, :count]
            ri, zi, ni = feed(x).chunk(3, 1)
            rh, zh, nh = recur(h).chunk(3, 1)
            z = torch.sigmoid(zi + zh)
            n = torch.tanh(ni + torch.sigmoid(ri + rh) * nh)
            x = torch.lerp(n, h, z)
            self.state[layer, :count] = x
        return x


def make_step(model: str, dtype: str) -> Step:
    """A loaded model with its streams open, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    return _silero_step(dtype) if model == "silero" else _gru_step(dtype)


def _silero_step(dtype: str) -> Step:
    engine = Silero({"dtype": dtype})
    for stream in range(1, max(SIZES) + 1):
        engine.open(stream, StreamParams())
    audio = (np.random.default_rng(1).standard_normal((max(SIZES), WINDOW_SAMPLES)) * 0.05).astype(np.float32)
    items = [Item(stream, 0, audio[stream - 1]) for stream in range(1, max(SIZES) + 1)]

    def step(count: int) -> None:
        engine.step(items[:count])

    return step


def _gru_step(dtype: str) -> Step:
    model = StreamingGru(max(SIZES)).eval()
    frames = torch.randn(max(SIZES), FEATURES)
    if dtype == "bfloat16":
        model = model.bfloat16()
        model.state, frames = model.state.bfloat16(), frames.bfloat16()
    elif dtype == "int8":
        with warnings.catch_warnings():
            # Deprecated in favour of torchao, which is not needed for this.
            warnings.simplefilter("ignore")
            quantize = torch.ao.quantization.quantize_dynamic
            model = quantize(model, {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]

    def step(count: int) -> None:
        model.step(frames[:count])

    return step


# ------------------------------------------------------------------------------------------------- by batch size


def measure_step(step: Step, count: int, seconds: float) -> dict[str, float]:
    """Milliseconds of a step over ``count`` streams, for at least ``seconds`` and 20 steps."""
    for _ in range(WARM_UP):
        step(count)
    times: list[float] = []
    end_s = time.perf_counter() + seconds
    while len(times) < 20 or time.perf_counter() < end_s:
        began_s = time.perf_counter()
        step(count)
        times.append((time.perf_counter() - began_s) * 1000)
    return percentiles(times, (50, 99))


def by_size(model: str, dtype: str, seconds: float) -> list[dict[str, float]]:
    step = make_step(model, dtype)
    rows = []
    for count in SIZES:
        ms = measure_step(step, count, seconds)
        rows.append(
            {"batch": count, "p50_ms": ms["p50"], "p99_ms": ms["p99"], "per_s": count * 1000 / ms["p50"]}
        )
    return rows


# ------------------------------------------------------------------------------------------------- four designs


def work(
    model: str, dtype: str, batch: int, seconds: float, start: mp.synchronize.Barrier, done: mp.Queue[float]
) -> None:
    """One process of a design: items a second, all processes starting together."""
    step = make_step(model, dtype)
    for _ in range(WARM_UP):
        step(batch)
    start.wait()
    began_s, steps = time.perf_counter(), 0
    while time.perf_counter() - began_s < seconds:
        step(batch)
        steps += 1
    done.put(steps * batch / (time.perf_counter() - began_s))


def run_design(model: str, dtype: str, processes: int, batch: int, seconds: float) -> float:
    """Items a second of all processes together."""
    context = mp.get_context("spawn")
    start, done = context.Barrier(processes), context.Queue()
    arguments = (model, dtype, batch, seconds, start, done)
    started = [context.Process(target=work, args=arguments, daemon=True) for _ in range(processes)]
    for process in started:
        process.start()
    try:
        return float(sum(done.get(timeout=120) for _ in started))
    finally:
        for process in started:
            process.join(10)
            process.kill()


def designs(model: str, dtype: str, cores: int, seconds: float) -> dict[str, float]:
    """The peer is one by one in float32, as a model comes; the others may choose the dtype that serves them best."""
    return {
        "one by one": run_design(model, "float32", 1, 1, seconds),
        "several processes": run_design(model, "float32", cores, 1, seconds),
        "batched": run_design(model, dtype, 1, DESIGN_BATCH, seconds),
        "hybrid": run_design(model, dtype, cores, DESIGN_BATCH, seconds),
    }


# ------------------------------------------------------------------------------------------------------- report


def gains(rows: list[dict[str, float]]) -> dict[int, float]:
    """How many times the throughput of a batch of one."""
    return {int(row["batch"]): row["per_s"] / rows[0]["per_s"] for row in rows}


def show_sizes(model: str, found: dict[str, list[dict[str, float]]]) -> None:
    rows = [
        (
            f"{dtype}, batch {row['batch']:.0f}",
            row["per_s"],
            row["per_s"] / rows[0]["per_s"],
            row["p50_ms"],
            row["p99_ms"],
            row["per_s"] * STEP_MS[model] / 1000,
        )
        for dtype, rows in found.items()
        for row in rows
    ]
    columns = ("", "items/s", "gain", "step p50 (ms)", "p99 (ms)", "callers in real time")
    print_table(f"{model}, {STEP_MS[model]:g} ms of audio an item, one thread", columns, rows)


def batching(
    seconds: Annotated[float, typer.Option(min=0.05, help="For each batch size.")] = 0.4,
    design_seconds: Annotated[float, typer.Option(min=0.5)] = 3.0,
) -> None:
    """Measure what batching gives."""
    cores = max(2, len(os.sched_getaffinity(0)))
    sizes: dict[str, dict[str, list[dict[str, float]]]] = {}
    rates: dict[str, dict[str, float]] = {}
    best: dict[str, str] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task("batching", total=sum(map(len, DTYPES.values())) + len(DTYPES) * 4)
        for model, dtypes in DTYPES.items():
            sizes[model] = {}
            for dtype in dtypes:
                sizes[model][dtype] = by_size(model, dtype, seconds)
                progress.advance(task)
            at = SIZES.index(DESIGN_BATCH)
            best[model] = max(dtypes, key=lambda dtype: sizes[model][dtype][at]["per_s"])
            rates[model] = designs(model, best[model], cores, design_seconds)
            progress.advance(task, 4)
    for model, found in sizes.items():
        show_sizes(model, found)
    rows = [
        (f"{model}: {name}", rate, rate / found["one by one"], rate * STEP_MS[model] / 1000)
        for model, found in rates.items()
        for name, rate in found.items()
    ]
    note = f"{cores} processes; batches of {DESIGN_BATCH}; batched designs in {best}"
    print_table("The four designs", ("", "items/s", "against one by one", "callers in real time"), rows, note)
    payload = {
        "sizes": sizes,
        "gains": {m: {d: gains(rows) for d, rows in found.items()} for m, found in sizes.items()},
        "best_dtype": best,
        "designs": rates,
        "processes": cores,
    }
    print(f"stored in {store('batching', payload)}")


if __name__ == "__main__":
    typer.run(batching)
