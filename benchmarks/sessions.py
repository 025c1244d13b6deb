"""Many callers at once through the VAD: do batches form, does the loop stay free, is every millisecond accounted for?

``python -m benchmarks.sessions [--sessions 1000] [--seconds 20] [--largest] [--wire openai]``. Real speech in real time in
messages of 100 ms, silero in one worker, the other stages off. The callers run in this process, on the same cores as the server;
their own lateness is printed, because figures of a generator that cannot keep up are worth nothing. ``--largest`` goes on with
more callers until something is dropped or told late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import typer

from benchmarks.callers import realtime_callers as realtime
from benchmarks.callers.speech import speech
from benchmarks.report.results import cpu_seconds, print_table, store
from benchmarks.running import run_until_done
from benchmarks.sides.server_process import bucket_percentile, cpu_by_process, histogram_of, mean_batch_of
from voiceserver_clients.callers import Tally
from voiceserver_clients.load import RATE_HZ, Load, Plan
from voiceserver_clients.local_server import LocalServer

RAMP_PER_S = 250.0
SETTLE_S = 1.0  # before the figures are taken, and before the callers leave
STEP = 400
STEP_SECONDS = 10.0
TOLD_WITHIN_MS = 60.0
LOOP_LAG = "voiceserver_loop_lag_seconds"
VAD_ONLY: Mapping[str, str | int] = {
    "stages.stt.engine": "none",
    "stages.reply.engine": "none",
    "stages.tts.engine": "none",
    "backpressure.max_talkers": 100_000,  # the question is what happens with so many, not whether they are let in
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """tally: what the callers saw; loop_lag_ms: bucket bound (upper end, ms) -> samples at or below it, of the measured time;
    cpu: seconds of CPU by process."""

    tally: Tally
    seconds: float
    mean_batch: float
    loop_lag_ms: dict[float, float]
    server_cpu_s: float
    workers_cpu_s: float
    own_cpu_s: float

    @property
    def is_good(self) -> bool:
        """Nobody was lost, nothing was dropped, and 99 % of the ends of turns were told in time."""
        counts, told = self.tally.counts, self.tally.latencies["turn_end"]
        bad = ("dropped_ms", "lost", "refused", "failed", "errors")
        return (
            not any(counts[name] for name in bad) and told.count > 0 and told.percentile(99) < TOLD_WITHIN_MS
        )

    def loop_lag_percentile(self, rank: float) -> float:
        """Upper end of the bucket that holds the rank: the true value is not above it."""
        return bucket_percentile(self.loop_lag_ms, rank)


async def measure(plan: Plan, server: LocalServer, make_load: Callable[[Plan], Load] = Load) -> Outcome:
    """Run ``plan`` against ``server``, which is ready."""
    load = make_load(plan)
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(load.run())
    await load.arrived.wait()
    await asyncio.sleep(SETTLE_S)
    for histogram in load.tally.latencies.values():
        histogram.clear()
    before = await histogram_of(server, LOOP_LAG)
    cpu_before, own_before = cpu_by_process(server.pid), cpu_seconds()
    began_s = loop.time()
    await asyncio.sleep(plan.seconds - 2 * SETTLE_S)
    # While the callers still talk: their workers are gone from the figures once they said goodbye.
    cpu_after, own_s = cpu_by_process(server.pid), cpu_seconds() - own_before
    seconds = loop.time() - began_s
    mean_batch = await mean_batch_of(server, "vad")
    after = await histogram_of(server, LOOP_LAG)
    tally = await running
    spent = {pid: cpu_after[pid] - cpu_before.get(pid, 0.0) for pid in cpu_after}
    server_cpu_s = spent.pop(server.pid)
    lag = {bound: after[bound] - before.get(bound, 0.0) for bound in after}
    return Outcome(tally, seconds, mean_batch, lag, server_cpu_s, sum(spent.values()), own_s)


def show(outcome: Outcome, plan: Plan) -> dict[str, float]:
    """Print the table; the figures by name."""
    counts, latencies = outcome.tally.counts, outcome.tally.latencies
    missing_ms = counts["received_ms"] - counts["consumed_ms"] - counts["dropped_ms"] - counts["discarded_ms"]
    figures = {
        "sessions held": counts["connected"],
        "audio sent (s)": counts["sent_ms"] / 1000,
        "mean batch": outcome.mean_batch,
        "loop lag p99 at most (ms)": outcome.loop_lag_percentile(99),
        "dropped (ms)": counts["dropped_ms"],
        "sent, not received (ms)": counts["sent_ms"] - counts["received_ms"],
        "unaccounted (ms)": round(missing_ms, 3),
        "busy signals": counts["busy"],
        "sessions lost or refused": counts["lost"] + counts["refused"] + counts["failed"],
        "turns found": counts["turns"],
        "end of turn told, p50 (ms)": latencies["turn_end"].percentile(50),
        "end of turn told, p99 (ms)": latencies["turn_end"].percentile(99),
        "server loop (% of a core)": 100 * outcome.server_cpu_s / outcome.seconds,
        "workers (% of a core)": 100 * outcome.workers_cpu_s / outcome.seconds,
        "this generator (% of a core)": 100 * outcome.own_cpu_s / outcome.seconds,
        "this generator's lateness, p99 (ms)": latencies["lateness"].percentile(99),
    }
    if not counts["received_ms"]:  # a wire that does not close the books
        for name in ("dropped (ms)", "sent, not received (ms)", "unaccounted (ms)"):
            del figures[name]
    rows = [(name, f"{value:,.2f}".rstrip("0").rstrip(".")) for name, value in figures.items()]
    print_table(f"{plan.listeners} callers in real time for {plan.seconds:.0f} s", ("", ""), rows)
    return figures


async def run_benchmark(
    plan: Plan, make_load: Callable[[Plan], Load], *, is_search: bool
) -> tuple[dict[str, float], int]:
    """The figures of ``plan``, and the largest number of callers that was good; 0 if none was, or nobody looked."""
    figures: dict[str, float] = {}
    largest = 0
    while True:
        # A fresh one each time: mean batch and CPU time are of these callers alone.
        async with LocalServer(VAD_ONLY) as server:
            await server.wait_ready()
            outcome = await measure(replace(plan, url=server.url), server, make_load)
        shown = show(outcome, plan)
        figures = figures or shown
        if not is_search or not outcome.is_good:
            return figures, largest
        largest = plan.listeners
        plan = replace(plan, listeners=plan.listeners + STEP, seconds=STEP_SECONDS)


def sessions(
    sessions: Annotated[int, typer.Option(min=1)] = 1_000,
    seconds: Annotated[float, typer.Option(min=5)] = 20.0,
    largest: Annotated[bool, typer.Option("--largest", help="How many more can it carry?")] = False,
    wire: Annotated[Literal["native", "openai"], typer.Option(help="What the callers speak.")] = "native",
) -> None:
    """Measure the VAD path under many sessions."""
    is_native = wire == "native"
    recordings = speech(RATE_HZ if is_native else realtime.RATE_HZ)
    make_load = Load if is_native else realtime.RealtimeLoad
    plan = Plan("", listeners=sessions, seconds=seconds, ramp_per_s=RAMP_PER_S, recordings=recordings)
    figures, most = run_until_done(run_benchmark(plan, make_load, is_search=largest))
    payload: dict[str, object] = {"sessions": sessions, "seconds": seconds, "figures": figures}
    if largest:
        print(f"largest number of callers with nothing dropped and p99 under {TOLD_WITHIN_MS:.0f} ms: {most}")
        payload["largest"] = most
    print(f"stored in {store('sessions' if is_native else f'sessions-{wire}', payload)}")


if __name__ == "__main__":
    typer.run(sessions)
