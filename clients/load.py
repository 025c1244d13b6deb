"""Load for a voiceserver: thousands of callers from one process, in real time, with honest latencies.

``python -m clients.load --talkers 50 --listeners 500 --connections 10000 --seconds 30 speech.wav``. Callers arrive at
``--ramp`` per second, stay for ``--seconds`` after the last one came, say goodbye, and are counted out. ``--processes`` spreads
them when one process cannot carry them (the open-file limit, or a core). Exit codes: 0 done; 1 nobody got in; 2 bad usage.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
import uvloop
from rich.console import Console
from rich.live import Live
from rich.table import Table

from clients.callers import (
    LISTENER_CHUNK_MS,
    TALKER_CHUNK_MS,
    Caller,
    Idle,
    Listener,
    Schedule,
    Script,
    Talker,
    Tally,
)
from clients.command import complain, raise_file_limit
from clients.connecting import BadAddress, check_address
from clients.histogram import Histogram
from clients.recording import BadRecording, Recording, read_recording
from clients.timeline import make_console

SPARE_FILES = 50  # what a process has open besides its callers
RATE_HZ = 16_000
CONNECTING_AT_ONCE = 256
PORTS_PER_SOURCE = 20_000  # below the usual ephemeral range of one address
GOODBYE_S = 15.0
_IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>; the socket module has no name for it before Python 3.12
TITLES = {
    "handshake": "handshake",
    "ping": "ping to pong",
    "turn_end": "end of turn told",
    "final": "final transcript",
    "first_audio": "first reply audio",
    "lateness": "this generator's own lateness",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Who calls, how fast they come, how long they stay. sources: how many addresses 127.0.0.x to call from, 0 for as
    many as the ports demand; recordings: what talkers and listeners say, at 16 kHz."""

    url: str
    talkers: int = 0
    listeners: int = 0
    connections: int = 0
    seconds: float = 10.0
    ramp_per_s: float = 500.0
    ping_ms: int = 20_000
    sources: int = 0
    first_source: int = 1
    seed: int = 1
    recordings: tuple[Recording, ...] = ()
    talker_chunk_ms: int = TALKER_CHUNK_MS

    @property
    def callers(self) -> int:
        return self.talkers + self.listeners + self.connections


class Load:
    """One process's callers. ``run`` returns the tally; ``tally`` may be watched meanwhile. Raises BadAddress."""

    def __init__(self, plan: Plan) -> None:
        if check_address(plan.url) != "ws":
            raise BadAddress(f"{plan.url} is not a ws:// address (TLS is not for load generators)")
        parts = urlsplit(plan.url)
        self.plan = plan
        self.tally = Tally()
        self.callers: list[Caller] = []
        self.arrived = asyncio.Event()  # everybody has had a try; ``seconds`` begin
        self._loop = asyncio.get_running_loop()
        self._host, self._port = parts.hostname or "", parts.port or 80
        query = f"{parts.query}&" if parts.query else ""
        self._target = f"{parts.path or '/v1/stream'}?{query}rate={RATE_HZ}"
        self._schedule = Schedule(self._now_ms, self.tally.latencies["lateness"])
        self._scripts = (
            {ms: Script.build(plan.recordings, ms) for ms in (plan.talker_chunk_ms, LISTENER_CHUNK_MS)}
            if plan.talkers or plan.listeners
            else {}
        )

    @staticmethod
    def _now_ms() -> float:
        return (
            time.monotonic() * 1000
        )  # uvloop's own clock stands still within a tick, and has whole milliseconds

    async def run(self) -> Tally:
        ticking = asyncio.create_task(self._schedule.run(), name="schedule")
        try:
            await self._arrive()
            self.arrived.set()
            await self._stay()
            await self._leave()
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)
            for caller in self.callers:
                caller.abort()
        return self.tally

    async def _stay(self) -> None:
        await asyncio.sleep(self.plan.seconds)

    async def _arrive(self) -> None:
        """Open loop: caller ``n`` is due ``n / ramp`` after the start, whether or not those before it are in."""
        kinds = [self._talker] * self.plan.talkers + [self._listener] * self.plan.listeners
        kinds += [self._idle] * self.plan.connections
        random.Random(self.plan.seed).shuffle(kinds)
        gate = asyncio.Semaphore(CONNECTING_AT_ONCE)
        start_ms = self._now_ms()
        async with asyncio.TaskGroup() as group:
            for index, kind in enumerate(kinds):
                due_ms = start_ms + index * 1000 / self.plan.ramp_per_s
                await asyncio.sleep(max(0.0, due_ms - self._now_ms()) / 1000)
                await gate.acquire()
                task = group.create_task(self._connect(index, kind(index, due_ms)))
                task.add_done_callback(lambda _: gate.release())

    def _talker(self, index: int, due_ms: float) -> Caller:
        script = self._scripts[self.plan.talker_chunk_ms]
        return Talker(*self._basics(), due_ms, script, self._first_frame(index, script))

    def _listener(self, index: int, due_ms: float) -> Caller:
        script = self._scripts[LISTENER_CHUNK_MS]
        return Listener(*self._basics(), due_ms, script, self._first_frame(index, script))

    def _idle(self, index: int, due_ms: float) -> Caller:
        return Idle(*self._basics(), due_ms)

    def _basics(self) -> tuple[str, str, Tally, Callable[[], float]]:
        return f"{self._host}:{self._port}", self._target, self.tally, self._now_ms

    def _first_frame(self, index: int, script: Script) -> int:
        """Callers are at different places of the script, the same ones for the same seed."""
        return random.Random(self.plan.seed * 1_000_003 + index).randrange(len(script.frames))

    async def _connect(self, index: int, caller: Caller) -> None:
        sources = self.plan.sources or -(-self.plan.callers // PORTS_PER_SOURCE)
        first = self.plan.first_source
        source = f"127.0.0.{first + index % sources}" if sources > 1 or first > 1 else ""
        try:
            if source:
                sock = await self._dial_from(source)
                await self._loop.create_connection(lambda: caller, sock=sock)
            else:
                await self._loop.create_connection(lambda: caller, self._host, self._port)
        except OSError:
            self.tally.count("failed")
            return
        self.callers.append(caller)
        self._begin(caller)

    def _begin(self, caller: Caller) -> None:
        self._schedule.join(caller, self._period_ms(caller))

    async def _dial_from(self, source: str) -> socket.socket:
        """Raises OSError. The port is chosen when it is known where to: a bind alone would take it from all destinations, and
        look for a free one for long when most are taken."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # only Linux has it
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
            await self._loop.sock_connect(sock, (self._host, self._port))
        except BaseException:
            sock.close()
            raise
        return sock

    def _period_ms(self, caller: Caller) -> int:
        match caller:
            case Talker():
                return self.plan.talker_chunk_ms
            case Listener():
                return LISTENER_CHUNK_MS
            case _:
                return self.plan.ping_ms

    async def _leave(self) -> None:
        """Everybody says goodbye, as many per second as came; those whom the server still answers are waited for."""
        waiting = [caller for caller in self.callers if caller.is_open]
        start_ms = self._now_ms()
        for index, caller in enumerate(waiting):
            due_ms = start_ms + index * 1000 / self.plan.ramp_per_s
            if due_ms > self._now_ms():
                await asyncio.sleep((due_ms - self._now_ms()) / 1000)
            caller.leave()
        deadline_s = self._loop.time() + GOODBYE_S
        while any(caller.is_open for caller in waiting) and self._loop.time() < deadline_s:
            await asyncio.sleep(0.05)


def status_table(tally: Tally, plan: Plan, elapsed_s: float) -> Table:
    """One look at a running load, and its last word."""
    counts = tally.counts
    table = Table(title=f"{elapsed_s:5.1f} s   {plan.url}", title_justify="left")
    for name in ("latency (ms)", "count", "p50", "p90", "p99", "p99.9", "max"):
        table.add_column(name, justify="left" if name.startswith("lat") else "right")
    for name, histogram in tally.latencies.items():
        table.add_row(TITLES[name], *_cells(histogram))
    open_now = counts["connected"] - counts["lost"] - counts["closed"]
    lines = [
        f"callers {counts['connected']:.0f} of {plan.callers} came in, {open_now:.0f} still there,"
        f" {counts['refused']:.0f} refused, {counts['failed']:.0f} failed, {counts['lost']:.0f} lost",
        f"turns {counts['turns']:.0f}, finals {counts['finals']:.0f}, replies {counts['replies']:.0f}"
        f" (+{counts['interrupted']:.0f} interrupted), busy signals {counts['busy']:.0f}, errors {counts['errors']:.0f}",
    ]
    if counts["received_ms"]:
        missing_ms = (
            counts["received_ms"] - counts["consumed_ms"] - counts["dropped_ms"] - counts["discarded_ms"]
        )
        lines.append(
            f"audio sent {counts['sent_ms'] / 1000:.1f} s = received {counts['received_ms'] / 1000:.1f} s;"
            f" dropped {counts['dropped_ms']:.0f} ms, discarded {counts['discarded_ms']:.0f} ms, unaccounted {missing_ms:.1f} ms"
        )
    table.caption, table.caption_justify = "\n".join(lines), "left"
    return table


def _cells(histogram: Histogram) -> list[str]:
    if not histogram.count:
        return ["0", "-", "-", "-", "-", "-"]
    values = [histogram.percentile(rank) for rank in (50, 90, 99, 99.9)]
    return [f"{histogram.count:,}", *(f"{value:.2f}" for value in (*values, histogram.max_ms))]


def tally_to_json(tally: Tally) -> str:
    latencies = {
        name: {"buckets": histogram.to_buckets(), "max_ms": histogram.max_ms, "sum_ms": histogram.sum_ms}
        for name, histogram in tally.latencies.items()
    }
    return json.dumps({"counts": tally.counts, "latencies": latencies})


def tally_from_json(line: str) -> Tally:
    """Raises ValueError for what is not a tally."""
    tally = Tally()
    body = json.loads(line)
    tally.counts.update(body["counts"])
    for name, parts in body["latencies"].items():
        buckets = [(index, count) for index, count in parts["buckets"]]
        tally.latencies[name] = Histogram.from_buckets(buckets, parts["max_ms"], parts["sum_ms"])
    return tally


async def watch(load: Load, console: Console) -> Tally:
    """Run with a table that refreshes each second."""
    started_s = asyncio.get_running_loop().time()

    def table() -> Table:
        return status_table(load.tally, load.plan, asyncio.get_running_loop().time() - started_s)

    running = asyncio.create_task(load.run(), name="load")
    with Live(table(), console=console, auto_refresh=False, transient=False) as live:
        while not running.done():
            await asyncio.wait({running}, timeout=1.0)
            live.update(table(), refresh=True)
    return await running


async def spread(arguments: Sequence[str], processes: int, plan: Plan) -> Tally:
    """Run ``processes`` copies of this module, each with its share, and add up what they saw."""

    async def one(index: int) -> Tally:
        share = [
            f"--{name}={count // processes + (index < count % processes)}"
            for name, count in (
                ("talkers", plan.talkers),
                ("listeners", plan.listeners),
                ("connections", plan.connections),
            )
        ]
        extra = [f"--ramp={plan.ramp_per_s / processes}", f"--seed={plan.seed + index}", "--processes=1"]
        extra.append(f"--first-source={1 + index * 8}")
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "clients.load",
            *arguments,
            *share,
            *extra,
            "--tally",
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            output, _ = await child.communicate()
        finally:
            if child.returncode is None:
                child.terminate()
                await child.wait()
        if child.returncode:
            raise RuntimeError(f"load process {index} failed with {child.returncode}")
        return tally_from_json(output.decode())

    total = Tally()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(index)) for index in range(processes)]
    for task in tasks:
        total.add(task.result())
    return total


def load(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Recordings that talkers and listeners say.")
    ] = None,
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "ws://127.0.0.1:8765/v1/stream",
    talkers: Annotated[
        int, typer.Option(help="Callers that talk and are answered (20 ms chunks).", min=0)
    ] = 0,
    listeners: Annotated[
        int, typer.Option(help="Callers whose speech is only detected (100 ms chunks).", min=0)
    ] = 0,
    connections: Annotated[int, typer.Option(help="Callers that hold the line and ping.", min=0)] = 0,
    seconds: Annotated[float, typer.Option(help="How long they stay after the last one came.", min=0)] = 10.0,
    ramp: Annotated[float, typer.Option(help="How many come per second.", min=0.1)] = 500.0,
    ping_s: Annotated[float, typer.Option(help="Time between the pings of a held line.", min=0.1)] = 20.0,
    processes: Annotated[int, typer.Option(help="Spread the callers over so many processes.", min=1)] = 1,
    sources: Annotated[int, typer.Option(help="Addresses 127.0.0.x to call from; 0: as many as needed.")] = 0,
    first_source: Annotated[int, typer.Option(hidden=True)] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same order of callers.")] = 1,
    tally: Annotated[
        bool, typer.Option("--tally", help="Print counts and histograms as one JSON line.")
    ] = False,
) -> None:
    """Put load on a voiceserver and print what its callers saw."""
    if (talkers or listeners) and not files:
        raise typer.Exit(complain("talkers and listeners need recordings to say"))
    try:
        recordings = tuple(read_recording(path, RATE_HZ) for path in files or [])
    except BadRecording as error:
        raise typer.Exit(complain(str(error))) from None
    plan = Plan(
        url,
        talkers,
        listeners,
        connections,
        seconds,
        ramp,
        int(ping_s * 1000),
        sources,
        first_source,
        seed,
        recordings,
    )
    if not plan.callers:
        raise typer.Exit(complain("nobody calls: give --talkers, --listeners or --connections"))
    carried = max(raise_file_limit() - SPARE_FILES, 1)
    if plan.callers > carried * processes:
        message = f"{plan.callers} callers: the open-file limit carries {carried} in a process, so give --processes "
        raise typer.Exit(
            complain(f"{message}{math.ceil(plan.callers / carried)} or more, or raise the limit")
        )

    async def run() -> Tally:
        if processes > 1:
            shared = [*map(str, files or []), f"--url={url}", f"--seconds={seconds}", f"--ping-s={ping_s}"]
            return await spread(shared, processes, plan)
        return await (Load(plan).run() if tally else watch(Load(plan), make_console()))

    result = run_to_end(run)
    if tally:
        print(tally_to_json(result))
    elif not result.counts["connected"]:
        raise typer.Exit(1)
    elif processes > 1:
        make_console().print(status_table(result, plan, seconds))


def run_to_end(main: Callable[[], Awaitable[Tally]]) -> Tally:
    """On uvloop. Raises typer.Exit for Ctrl-C and for an address that cannot be used."""

    async def body() -> Tally:
        return await main()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(body())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BadAddress as error:
        raise typer.Exit(complain(str(error))) from None


def main() -> None:
    typer.run(load)


if __name__ == "__main__":
    main()
