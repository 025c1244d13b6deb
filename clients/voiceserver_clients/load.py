"""Load for a voiceserver: thousands of callers from one process, in real time, with honest latencies.

``voiceserver load --talkers 50 --listeners 500 --connections 10000 --seconds 30 speech.wav``. Callers arrive at
``--ramp`` per second, stay for ``--seconds`` after the last one came, say goodbye, and are counted out. ``--processes`` spreads
them when one process cannot carry them (the open-file limit, or a core). Exit codes: 0 done; 1 nobody got in; 2 bad usage.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
import uvloop
from rich.console import Console
from rich.live import Live
from rich.table import Table

from voiceserver_clients.callers import (
    LISTENER_CHUNK_MS,
    Caller,
    Idle,
    Listener,
    Schedule,
    Script,
    Talker,
    Tally,
)
from voiceserver_clients.command import complain, raise_file_limit
from voiceserver_clients.connecting import (
    NATIVE_PATH,
    READY_TIMEOUT_S,
    BadAddress,
    ConnectFailed,
    check_address,
    not_native,
)
from voiceserver_clients.load_processes import (
    ADDRESSES,
    LEAST_PER_SECOND,
    LoadFailed,
    Plan,
    spread,
    stride_of,
    tally_from_json,
    tally_to_json,
)
from voiceserver_clients.load_table import failures, status_table
from voiceserver_clients.recording import BadRecording, read_recording
from voiceserver_clients.timeline import make_console

__all__ = ["Load", "Plan", "load", "run_greeted", "tally_from_json", "tally_to_json"]

SPARE_FILES = 50  # what a process has open besides its callers
RATE_HZ = 16_000
CONNECTING_AT_ONCE = 256
GOODBYE_S = 15.0
_IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>; the socket module has no name for it before Python 3.12
LONGEST_STAY_S = 86_400.0
LONGEST_PING_S = 600.0
MOST_PER_SECOND = 100_000.0


class Load:
    """One process's callers. ``run`` returns the tally; ``tally`` may be watched meanwhile. Raises BadAddress."""

    def __init__(self, plan: Plan) -> None:
        check_plain(plan.url)
        parts = urlsplit(plan.url)
        self.plan = plan
        self.tally = Tally()
        self.callers: list[Caller] = []
        self.arrived = asyncio.Event()  # everybody has had a try; ``seconds`` begin
        self._loop = asyncio.get_running_loop()
        self._host, self._port = parts.hostname or "", parts.port or 80
        query = f"{parts.query}&" if parts.query else ""
        self._target = f"{parts.path or NATIVE_PATH}?{query}rate={RATE_HZ}"
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
                caller.fail_unanswered("no answer to the handshake")
                caller.abort()
        return self.tally

    async def _stay(self) -> None:
        await asyncio.sleep(self.plan.seconds)

    async def _arrive(self) -> None:
        """Open loop: caller ``n`` is due ``n / ramp`` after the start, whether or not those before it are in."""
        kinds = [self._talker] * self.plan.talkers + [self._listener] * self.plan.listeners
        kinds += [self._idle] * self.plan.connections
        random.Random(self.plan.seed).shuffle(kinds)
        connecting = asyncio.Semaphore(CONNECTING_AT_ONCE)
        start_ms = self._now_ms()
        async with asyncio.TaskGroup() as group:
            for index, kind in enumerate(kinds):
                due_ms = start_ms + index * 1000 / self.plan.ramp_per_s
                await asyncio.sleep(max(0.0, due_ms - self._now_ms()) / 1000)
                await connecting.acquire()
                task = group.create_task(self._connect(index, kind(index, due_ms)))
                task.add_done_callback(lambda _: connecting.release())

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
        sources, first = self.plan.addresses, self.plan.first_source
        source = f"127.0.0.{first + index % sources}" if sources > 1 or first > 1 else ""
        try:
            if source:
                sock = await self._dial_from(source)
                await self._loop.create_connection(lambda: caller, sock=sock)
            else:
                await self._loop.create_connection(lambda: caller, self._host, self._port)
        except OSError as error:
            self.tally.count_failed(
                os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            )
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


async def run_greeted(load: Load) -> Tally:
    """Run as long as somebody hears a word of the native wire. Raises ConnectFailed."""
    running = asyncio.create_task(load.run(), name="callers")
    try:
        while not running.done() and not load.tally.counts["connected"]:
            await asyncio.wait({running}, timeout=0.1)
        await asyncio.wait({running}, timeout=READY_TIMEOUT_S)
        counts = load.tally.counts
        if counts["connected"] and not counts["greeted"]:
            raise not_native(load.plan.url, READY_TIMEOUT_S)
        return await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def watch(load: Load, console: Console) -> Tally:
    """Run with a table: on a terminal one that refreshes each second, else one at the end."""
    started_s = asyncio.get_running_loop().time()

    def table() -> Table:
        elapsed_s = asyncio.get_running_loop().time() - started_s
        return status_table(load.tally, load.plan.url, load.plan.callers, elapsed_s)

    running = asyncio.create_task(run_greeted(load), name="load")
    if not console.is_terminal:
        await running
        console.print(table())
        return load.tally
    with Live(table(), console=console, auto_refresh=False, transient=False) as live:
        while not running.done():
            await asyncio.wait({running}, timeout=1.0)
            live.update(table(), refresh=True)
    return await running


def check_plain(url: str) -> None:
    """Raises BadAddress."""
    if check_address(url) != "ws":
        raise BadAddress(f"{url} is not a ws:// address (TLS is not for load generators)")


def check_number(value: float) -> float:
    """Raises typer.BadParameter for nan, which is in every range."""
    if math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


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
    seconds: Annotated[
        float,
        typer.Option(
            help="How long they stay after the last one came.",
            min=0,
            max=LONGEST_STAY_S,
            callback=check_number,
        ),
    ] = 10.0,
    ramp: Annotated[
        float,
        typer.Option(
            help="How many come per second.", min=LEAST_PER_SECOND, max=MOST_PER_SECOND, callback=check_number
        ),
    ] = 500.0,
    ping_s: Annotated[
        float,
        typer.Option(
            help="Time between the pings of a held line.", min=0.1, max=LONGEST_PING_S, callback=check_number
        ),
    ] = 20.0,
    processes: Annotated[int, typer.Option(help="Spread the callers over so many processes.", min=1)] = 1,
    sources: Annotated[
        int,
        typer.Option(help="Addresses 127.0.0.x to call from; 0: as many as needed.", min=0, max=ADDRESSES),
    ] = 0,
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
        check_plain(url)
        recordings = tuple(read_recording(path, RATE_HZ) for path in files or [])
    except (BadAddress, BadRecording) as error:
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
    processes = min(processes, plan.callers)
    if processes > 1 and processes * stride_of(plan) > ADDRESSES:
        most = ADDRESSES // stride_of(plan)
        raise typer.Exit(complain(f"--processes {processes}: there are addresses for {most} of them"))
    carried = max(raise_file_limit() - SPARE_FILES, 1)
    if plan.callers > carried * processes:
        message = f"{plan.callers} callers: the open-file limit carries {carried} in a process, so give --processes "
        raise typer.Exit(
            complain(f"{message}{math.ceil(plan.callers / carried)} or more, or raise the limit")
        )

    async def run() -> Tally:
        if processes > 1:
            shared = [*map(str, files or []), f"--url={url}", f"--seconds={seconds}", f"--ping-s={ping_s}"]
            shared.append(f"--sources={sources}")
            return await spread(shared, processes, plan)
        return await (run_greeted(Load(plan)) if tally else watch(Load(plan), make_console()))

    result = run_to_end(run)
    if tally:
        print(tally_to_json(result))
        return
    if processes > 1:
        make_console().print(status_table(result, url, plan.callers, seconds))
    if not result.counts["connected"]:
        why = failures(result) or "all were refused"
        raise typer.Exit(complain(f"nobody got in at {url}: {why}", 1))


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
    except (ConnectFailed, LoadFailed) as error:
        raise typer.Exit(complain(str(error), 1)) from None


def main() -> None:
    typer.run(load)


if __name__ == "__main__":
    main()
