"""What happens when more people talk than the server can carry? Ours, and the usual design, in the same run; four minutes.

``python -m benchmarks.overload [--quick]``. First a server without a limit gets more and more talkers until words come late:
the most that it serves in time is the measured capacity. Then a server that learns its limit has 20 s to learn it from so
many, and gets 0.5, 1, 1.4, 2 (as a step from 1) and 10 times that, and 10 times at once. The usual design
(``benchmarks.sides.naive_server``) gets the same callers and the same engines in as many processes.

Goodput is counted in talkers: those who have a place, times the part of their speech whose final transcript came within 2 s of
its end. Peak goodput is the best of all rows. The callers run on the same cores as the server; what they take is in the table.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from benchmarks.callers.paced_talkers import CHUNK_MS, IN_TIME_MS, Crowd, Script, Talker
from benchmarks.report.results import cpu_seconds, percentiles, print_table, store
from benchmarks.running import run_until_done
from benchmarks.sides.server_process import bucket_percentile, histogram_of
from voiceserver_clients import lifeline
from voiceserver_clients.local_server import LocalServer, ServerFailed, free_port
from voiceserver_clients.made_speech import LINES, make_speech
from voiceserver_clients.recording import Recording, read_recording
from voiceserver_workers import registry

RATE_HZ = 16_000
TIMES = (0.5, 1.0, 1.4, 2.0, 10.0)
SPEECH = ("goforward.wav", "austen-0880.wav", "austen-0930.wav")
ARRIVE_S = 2.0
SETTLE_S = 4.0
READY_S = 60.0
ROOM = 8
DECODERS = (
    8  # for each stt worker: more than the processor can feed, so that it and not the places are the limit
)
UNLIMITED = 100_000
REFUSAL = "voiceserver_refusal_seconds"
LEARN_S = 20.0  # of callers whom nobody measures: what a server believes after a start is for its first callers only
GROWTH = 1.026  # of the ramp, a second
RAMP_FROM = 0.7  # of what the server believes it can carry before anybody called
RAMP_S = 60.0
WINDOW_S = 6.0


@dataclass(frozen=True, slots=True)
class Row:
    """What one crowd saw. talkers: with a place, on average; in_time: part of their speech; goodput: the product; settled_s: from
    the last arrivals until the number of talkers stayed within 5 % (or 1) of what it was in the end; silence_s: audio was sent,
    and for over 2 s came neither result nor signal; unaccounted_ms: audio sent that the server's books do not have, None where
    it keeps none; generator_cpu: of one core; decision_p99_ms: of refusals, from reading the request to the answer, as the
    server measures it (the upper end of a bucket)."""

    load: str
    offered: int
    talkers: float
    in_time: float
    goodput: float
    waiting: int
    refusals: int
    lost: int
    settled_s: float
    first_partial_ms: tuple[float, float] | None
    final_ms: tuple[float, float] | None
    signal_ms: tuple[float, float] | None
    refusal_ms: tuple[float, float] | None
    silence_s: float
    busy_signals: int
    dropped_ms: int
    unaccounted_ms: float | None
    lateness_p99_ms: float
    generator_cpu: float
    decision_p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """steps: (callers, from, to): so many arrive evenly between two times, in s."""

    name: str
    steps: tuple[tuple[int, float, float], ...]

    @property
    def size(self) -> int:
        return sum(count for count, _, _ in self.steps)

    @property
    def step_s(self) -> float:
        """When the last of them are there."""
        return self.steps[-1][2]

    def arrivals_ms(self) -> list[float]:
        return [
            (from_s + (to_s - from_s) * index / count) * 1000
            for count, from_s, to_s in self.steps
            for index in range(count)
        ]


def loads(capacity: int, times: Sequence[float]) -> list[Load]:
    """Each time of the capacity, twice the capacity as a step from once; the last one again as a storm."""
    found = []
    for factor in times:
        size = max(round(capacity * factor), 1)
        steps: tuple[tuple[int, float, float], ...] = ((size, 0.0, ARRIVE_S),)
        if factor == 2.0:
            steps = ((capacity, 0.0, ARRIVE_S), (size - capacity, SETTLE_S, SETTLE_S))
        found.append(Load(f"{factor:g}x", steps))
    last = found[-1]
    storm = Load(f"{last.name} storm", ((last.size, 0.0, 0.0),))
    return [*found, storm] if len(found) > 1 else found


@asynccontextmanager
async def naive(stt: str) -> AsyncIterator[int]:
    """The usual design; its port."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *lifeline.bound([sys.executable, "-m", "benchmarks.sides.naive_server", f"--port={port}", f"--stt={stt}"]),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), READY_S)
        if line.strip() != b"ready":
            raise ServerFailed("the naive server did not start")
        yield port
    finally:
        # Its pools' processes outlive it otherwise, each waiting for work.
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def settings(stt: str, **more: str | int | float) -> dict[str, str | int | float]:
    chosen: dict[str, str | int | float] = {
        "backpressure.waiting_room": ROOM,
        "server.log_format": "json",
        "stages.stt.engine": stt,
    }
    if stt == "pocketsphinx":
        chosen["stages.stt.params.decoders"] = DECODERS
    return {**chosen, **{f"backpressure.{key}": value for key, value in more.items()}}


async def measure(port: int, script: Script, load: Load, seconds: float) -> Row:
    """One crowd, from the first call to the last goodbye."""
    crowd = Crowd(port, script, load.arrivals_ms(), now_ms)
    settle_s = max(min(SETTLE_S, seconds / 3), load.step_s)
    total_s = seconds + (load.step_s if len(load.steps) > 1 else 0.0)
    cpu_s, began_ms = cpu_seconds(), now_ms()
    await crowd.run(total_s, settle_s)
    spent = (cpu_seconds() - cpu_s) / ((now_ms() - began_ms) / 1000)
    from_ms, to_ms = crowd.began_ms + settle_s * 1000, crowd.began_ms + total_s * 1000 - IN_TIME_MS
    talkers, in_time = crowd.goodput(from_ms, to_ms)
    tally = crowd.tally
    return Row(
        load=load.name,
        offered=load.size,
        talkers=round(talkers, 2),
        in_time=round(in_time, 4),
        goodput=round(talkers * in_time, 3),
        waiting=sum(talker.has_waited for talker in crowd.talkers),
        refusals=tally.counts["refused"],
        lost=tally.counts["lost"] + tally.counts["failed"],
        settled_s=settled_s(crowd.counts, crowd.began_ms + load.step_s * 1000),
        first_partial_ms=p50_p99(tally.ms["first_partial"]),
        final_ms=p50_p99(tally.ms["final"]),
        signal_ms=p50_p99(tally.ms["signal"]),
        refusal_ms=p50_p99(tally.ms["refusal"]),
        silence_s=round(tally.silence_s, 2),
        busy_signals=tally.counts["busy"],
        dropped_ms=tally.counts["dropped_ms"],
        unaccounted_ms=unaccounted_ms(crowd.talkers) if tally.counts["books"] else None,
        lateness_p99_ms=round(percentiles(crowd.lateness_ms)["p99"], 2),
        generator_cpu=round(spent, 3),
    )


def settled_s(counts: Sequence[tuple[float, int]], step_ms: float) -> float:
    """How long after ``step_ms`` the number of talkers was last away from what it was in the end."""
    after = [(at_ms, count) for at_ms, count in counts if at_ms >= step_ms]
    late = [count for _, count in after[len(after) // 2 :]]
    if not late:
        return 0.0
    mean = sum(late) / len(late)
    away = [at_ms for at_ms, count in after if abs(count - mean) > max(mean * 0.05, 1.0)]
    return round((away[-1] - step_ms) / 1000, 2) if away else 0.0


def unaccounted_ms(talkers: Sequence[Talker]) -> float:
    """Audio that was sent and that no book tells of; all of it where the server left without closing its books."""
    lost = (talker.sent_ms if talker.unaccounted_ms is None else talker.unaccounted_ms for talker in talkers)
    return round(sum(lost), 3)


async def calibrated(server: LocalServer) -> int:
    """What the server believes that it can carry, once it has calibrated itself."""
    deadline_s = time.monotonic() + 15
    while time.monotonic() < deadline_s and "calibrated" not in server.log_path.read_text(errors="replace"):
        await asyncio.sleep(0.1)
    return await limit_of(server)


async def limit_of(server: LocalServer) -> int:
    _, body = await server.get("/v1/capacity")
    return msgspec.json.decode(body, type=_Capacity).talkers_limit


class _Capacity(msgspec.Struct):
    talkers_limit: int = 0


async def ramp(stt: str, script: Script, expected: int) -> tuple[int, list[tuple[float, float, float]]]:
    """(the most talkers served in time, [(s, talkers, goodput)]) of a server that lets everybody in."""
    size, arrivals_ms = max(round(expected * RAMP_FROM), 2), []
    arrivals_ms = [ARRIVE_S * 1000 * index / size for index in range(size)]
    at_s = ARRIVE_S
    while at_s < RAMP_S:
        at_s += 1.0 / (len(arrivals_ms) * (GROWTH - 1.0))
        arrivals_ms.append(at_s * 1000)
    async with LocalServer(settings(stt, max_talkers=UNLIMITED)) as server:
        await server.wait_ready()
        crowd = Crowd(server.port, script, arrivals_ms, now_ms)

        def window(end_ms: float) -> tuple[float, float]:
            end_ms -= IN_TIME_MS
            return crowd.goodput(end_ms - WINDOW_S * 1000, end_ms)

        def is_over(at_ms: float) -> bool:
            is_begun = at_ms - crowd.began_ms > (ARRIVE_S + WINDOW_S) * 1000 + IN_TIME_MS
            return is_begun and window(at_ms)[1] < 0.5

        await crowd.run(RAMP_S, 0.0, is_over)
        curve = []
        end_ms = crowd.began_ms + (ARRIVE_S + WINDOW_S) * 1000 + IN_TIME_MS
        while end_ms <= crowd.counts[-1][0]:
            talkers, in_time = window(end_ms)
            at_s = (end_ms - IN_TIME_MS - crowd.began_ms) / 1000
            curve.append((round(at_s, 1), round(talkers, 2), round(talkers * in_time, 2)))
            end_ms += 1_000
    if not curve:
        raise ServerFailed("nobody was heard in time, however few")
    return max(round(max(goodput for _, _, goodput in curve)), 1), curve


async def ours(stt: str, script: Script, capacity: int, times: Sequence[float], seconds: float) -> list[Row]:
    rows = []
    async with LocalServer(settings(stt)) as server:
        await server.wait_ready()
        begun = await calibrated(server)
        print(f"calibrated itself to {begun} talkers to begin with")
        if len(times) > 1:
            crowd = Crowd(server.port, script, loads(capacity or begun, (1.0,))[0].arrivals_ms(), now_ms)
            await crowd.run(LEARN_S, 0.0)
            print(f"after {LEARN_S:g} s of callers its limit is {await limit_of(server)}")
        for load in loads(capacity or begun, times):
            before = await histogram_of(server, REFUSAL)
            row = await measure(server.port, script, load, seconds)
            after = await histogram_of(server, REFUSAL)
            rows.append(replace(row, decision_p99_ms=decision_p99_ms(before, after)))
            told(rows[-1], f"limit {await limit_of(server)}")
    return rows


def decision_p99_ms(before: dict[float, float], after: dict[float, float]) -> float | None:
    since = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    return round(bucket_percentile(since, 99), 3) if max(since.values(), default=0.0) else None


def told(row: Row, more: str = "") -> None:
    print(f"  {row.load}: {row.goodput:.1f} of {row.offered} callers heard in time {more}", flush=True)


async def theirs(
    stt: str, script: Script, capacity: int, times: Sequence[float], seconds: float
) -> list[Row]:
    rows = []
    for load in loads(capacity, times):
        async with naive(stt) as port:  # a new one each time: its queues would go on for minutes
            rows.append(await measure(port, script, load, seconds))
        told(rows[-1])
    return rows


def now_ms() -> float:
    return time.monotonic() * 1000


def p50_p99(values: Sequence[float]) -> tuple[float, float] | None:
    if not values:
        return None
    found = percentiles(values)
    return round(found["p50"], 1), round(found["p99"], 1)


def show(title: str, rows: Sequence[Row]) -> None:
    columns = (
        "load", "calls", "talk", "in time", "goodput", "of peak", "503s", "settled", "partial", "final", "told", "refusal",
        "decided", "silent", "unsaid", "CPU",
    )  # fmt: skip
    peak = max(row.goodput for row in rows) or 1.0
    cells = [
        (
            row.load, row.offered, row.talkers, f"{row.in_time:.0%}", row.goodput, f"{row.goodput / peak:.0%}", row.refusals,
            row.settled_s, pair(row.first_partial_ms), pair(row.final_ms), pair(row.signal_ms), pair(row.refusal_ms),
            "-" if row.decision_p99_ms is None else f"<{row.decision_p99_ms:g}", row.silence_s,
            "-" if row.unaccounted_ms is None else row.unaccounted_ms, f"{row.generator_cpu:.0%}",
        )
        for row in rows
    ]  # fmt: skip
    note = (
        f"goodput: talkers times the part of their speech with a final within {IN_TIME_MS / 1000:g} s of its end; settled: s; "
        "ms, p50/p99: partial from the start of speech that began with a place, final from its end, told: first word from the "
        "call, refusal from the request, decided: p99 of it inside the server; silent: s, over 2 s without result or signal; "
        "unsaid: ms of audio that no book tells of; CPU: of the callers, of one core"
    )
    print_table(title, columns, cells, note)


def pair(found: tuple[float, float] | None) -> str:
    if found is None:
        return "-"
    return "/".join(f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in found)


def speech() -> tuple[Recording, ...]:
    """Recordings of people where they are, made speech elsewhere."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "audio"
    paths = [folder / name for name in SPEECH]
    if all(path.is_file() for path in paths):
        return tuple(read_recording(path, RATE_HZ) for path in paths)
    return tuple(make_speech(text, RATE_HZ) for text in LINES)


def overload(
    seconds: Annotated[float, typer.Option(min=8, help="Of each load.")] = 12.0,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke: one short load.")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="Without the usual design.")] = False,
    capacity: Annotated[int, typer.Option(min=0, help="Talkers; 0: measured first.")] = 0,
    stt: Annotated[str, typer.Option(help="The recogniser of both.")] = registry.preferred("stt").name,
) -> None:
    """Overload a server with its default engines, and the usual design beside it."""
    times = (4.0,) if quick else TIMES
    seconds = min(seconds, 8.0) if quick else seconds

    async def run() -> tuple[int, list[tuple[float, float, float]], list[Row], list[Row]]:
        script = Script.build(speech())
        gc.freeze()  # what is here stays; the callers are not to stop for it
        found, curve = (capacity, []) if capacity or quick else await measured(stt, script)
        rows = await ours(stt, script, found, times, seconds)
        found = found or rows[0].offered // 4
        others = [] if alone else await theirs(stt, script, found, times, seconds)
        return found, curve, rows, others

    found, curve, rows, others = run_until_done(run())
    show(f"voiceserver, which learns its limit; measured capacity {found} talkers", rows)
    if others:
        show("the usual design: run_in_executor for each chunk", others)
    if not quick:
        figures = {
            "stt": stt,
            "capacity": found,
            "seconds": seconds,
            "in_time_ms": IN_TIME_MS,
            "chunk_ms": CHUNK_MS,
            "ramp": curve,
            "voiceserver": rows,
            "naive": others,
        }
        print(f"stored in {store('overload', msgspec.to_builtins(figures))}")


async def measured(stt: str, script: Script) -> tuple[int, list[tuple[float, float, float]]]:
    async with LocalServer(settings(stt)) as server:
        await server.wait_ready()
        expected = await calibrated(server)
    found, curve = await ramp(stt, script, expected)
    last = curve[-1]
    print(
        f"without a limit: {found} talkers served in time at best, {last[2]:.1f} of {last[1]:.1f} in the end"
    )
    return found, curve


if __name__ == "__main__":
    typer.run(overload)
