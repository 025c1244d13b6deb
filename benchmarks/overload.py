"""What happens when more people talk than the server can carry? Ours, and the usual design, in the same run.

``python -m benchmarks.overload [--quick]``. Talkers on an absolute schedule with real speech, at 0.5, 1, 1.4, 2 and 10 times the
capacity that the server has found for itself, and 10 times as a storm that comes at once. The usual design
(``benchmarks.naive_server``) gets the same callers and the same engines in as many processes. Goodput is speech whose final
transcript came within 2 s of its end, per second: the talking that the server really carries.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import msgspec
import typer
import uvloop

from benchmarks.paced_talkers import IN_TIME_MS, Crowd, Script, Talker
from benchmarks.report import percentiles, print_table, store
from clients.local_server import LocalServer, ServerFailed, free_port
from clients.made_speech import LINES, make_speech
from clients.recording import Recording, read_recording

RATE_HZ = 16_000
TIMES = (0.5, 1.0, 1.4, 2.0, 10.0)
SPEECH = ("goforward.wav", "austen-0880.wav", "austen-0930.wav")
ARRIVE_S = 2.0
SETTLE_S = 4.0
READY_S = 60.0
ROOM = 8


@dataclass(frozen=True, slots=True)
class Row:
    """What one crowd saw. silence_s: audio was sent, and for over 2 s came neither result nor signal; unaccounted_ms: audio
    sent that the server's books do not have, None where it keeps none."""

    load: str
    offered: int
    admitted: int
    waited: int
    refused: int
    lost: int
    goodput: float
    in_time: float
    first_partial_ms: tuple[float, float] | None
    final_ms: tuple[float, float] | None
    signal_ms: tuple[float, float] | None
    silence_s: float
    busy_signals: int
    dropped_ms: int
    unaccounted_ms: float | None
    lateness_p99_ms: float


@asynccontextmanager
async def naive() -> AsyncIterator[int]:
    """The usual design; its port."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.naive_server", f"--port={port}",
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


async def measure(port: int, script: Script, load: str, size: int, seconds: float, arrive_s: float) -> Row:
    """One crowd, from the first call to the last goodbye."""
    crowd = Crowd(port, script, size, now_ms)
    settle_s = min(SETTLE_S, seconds / 3)
    await crowd.run(seconds, arrive_s, settle_s)
    tally, talkers = crowd.tally, crowd.talkers
    refused = tally.counts["refused"] + tally.counts["failed"]
    waited = sum(talker.has_waited for talker in talkers)
    finals = tally.counts["finals"]
    return Row(
        load=load,
        offered=size,
        admitted=sum(talker.is_admitted and not talker.has_waited for talker in talkers),
        waited=waited,
        refused=refused,
        lost=tally.counts["lost"],
        goodput=tally.speech_in_time_s / (seconds - settle_s),
        in_time=tally.counts["in_time"] / finals if finals else 0.0,
        first_partial_ms=p50_p99(tally.ms["first_partial"]),
        final_ms=p50_p99(tally.ms["final"]),
        signal_ms=p50_p99(tally.ms["signal"]),
        silence_s=tally.silence_s,
        busy_signals=tally.counts["busy"],
        dropped_ms=tally.counts["dropped_ms"],
        unaccounted_ms=unaccounted_ms(talkers) if tally.counts["books"] else None,
        lateness_p99_ms=percentiles(crowd.lateness_ms)["p99"],
    )


def unaccounted_ms(talkers: Sequence[Talker]) -> float:
    """Audio that was sent and that no book tells of; all of it where the server left without closing its books."""
    return sum(
        talker.sent_ms if talker.unaccounted_ms is None else talker.unaccounted_ms for talker in talkers
    )


async def capacity_of(server: LocalServer) -> int:
    """What the server has found that it can carry, once it has calibrated itself."""
    deadline_s = time.monotonic() + 15
    while time.monotonic() < deadline_s and "calibrated" not in server.log_path.read_text(errors="replace"):
        await asyncio.sleep(0.1)
    _, body = await server.get("/v1/capacity")
    return msgspec.json.decode(body, type=_Capacity).talkers_limit


class _Capacity(msgspec.Struct):
    talkers_limit: int = 0


async def ours(script: Script, times: Sequence[float], seconds: float) -> tuple[int, list[Row]]:
    settings: dict[str, str | int | float] = {"backpressure.waiting_room": ROOM, "server.log_format": "json"}
    rows = []
    async with LocalServer(settings) as server:
        await server.wait_ready()
        capacity = await capacity_of(server)
        print(f"calibrated: {capacity} talkers")
        for load, size, arrive_s in crowds(capacity, times):
            rows.append(await measure(server.port, script, load, size, seconds, arrive_s))
            print(f"  voiceserver {load}: {rows[-1].goodput:.2f} s of speech per s in time")
    return capacity, rows


async def theirs(script: Script, capacity: int, times: Sequence[float], seconds: float) -> list[Row]:
    rows = []
    for load, size, arrive_s in crowds(capacity, times):
        async with naive() as port:  # a new one each time: its queues would go on for minutes
            rows.append(await measure(port, script, load, size, seconds, arrive_s))
        print(f"  usual design {load}: {rows[-1].goodput:.2f} s of speech per s in time")
    return rows


def crowds(capacity: int, times: Sequence[float]) -> list[tuple[str, int, float]]:
    """(name, callers, seconds in which they arrive): in steps, and the last one again as a storm."""
    steps = [(f"{factor:g}x", max(round(capacity * factor), 1), ARRIVE_S) for factor in times]
    return [*steps, (f"{times[-1]:g}x storm", steps[-1][1], 0.0)] if len(steps) > 1 else steps


def now_ms() -> float:
    return time.monotonic() * 1000


def p50_p99(values: Sequence[float]) -> tuple[float, float] | None:
    if not values:
        return None
    found = percentiles(values)
    return round(found["p50"], 1), round(found["p99"], 1)


def show(title: str, rows: Sequence[Row]) -> None:
    columns = (
        "load", "calls", "in", "wait", "refused", "goodput", "in time", "partial", "final", "1st word",
        "silent s", "shed ms", "unsaid ms",
    )  # fmt: skip
    cells = [
        (
            row.load, row.offered, row.admitted, row.waited, row.refused, row.goodput, f"{row.in_time:.0%}",
            pair(row.first_partial_ms), pair(row.final_ms), pair(row.signal_ms), row.silence_s, row.dropped_ms,
            "-" if row.unaccounted_ms is None else round(row.unaccounted_ms, 3),
        )
        for row in rows
    ]  # fmt: skip
    note = (
        f"goodput: seconds of speech per second with a final within {IN_TIME_MS / 1000:g} s of its end; times in ms, p50 / p99:"
        " first partial from the start of speech, final from its end, first word from the call;"
        " silent: over 2 s without result or signal; unsaid: audio that no book tells of"
    )
    print_table(title, columns, cells, note)


def pair(found: tuple[float, float] | None) -> str:
    return "-" if found is None else f"{found[0]:,.0f} / {found[1]:,.0f}"


def speech() -> tuple[Recording, ...]:
    """Recordings of people where they are, made speech elsewhere."""
    from pathlib import Path

    folder = Path(__file__).resolve().parents[2] / "shared" / "audio"
    paths = [folder / name for name in SPEECH]
    if all(path.is_file() for path in paths):
        return tuple(read_recording(path, RATE_HZ) for path in paths)
    return tuple(make_speech(text, RATE_HZ) for text in LINES)


def overload(
    seconds: Annotated[float, typer.Option(min=4, help="Of each load.")] = 16.0,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke: two short loads.")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="Without the usual design.")] = False,
) -> None:
    """Overload a server with its default engines, and the usual design beside it."""
    times = (4.0,) if quick else TIMES
    seconds = min(seconds, 5.0) if quick else seconds

    async def run() -> tuple[int, list[Row], list[Row]]:
        script = Script.build(speech())
        capacity, rows = await ours(script, times, seconds)
        others = [] if alone else await theirs(script, capacity, times, seconds)
        return capacity, rows, others

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            capacity, rows, others = runner.run(run())
    except ServerFailed as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    show(f"voiceserver (calibrated itself to {capacity} talkers)", rows)
    if others:
        show("the usual design: run_in_executor for each chunk", others)
    if not quick:
        figures = {"capacity": capacity, "seconds": seconds, "voiceserver": rows, "naive": others}
        print(f"stored in {store('overload', msgspec.to_builtins(figures))}")


if __name__ == "__main__":
    typer.run(overload)
