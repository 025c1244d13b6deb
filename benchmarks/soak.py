"""Tens of thousands of connections for minutes: are they all still there, is everybody heard, and what does it cost?

``python -m benchmarks.soak --connections 50000 --talkers 500 --minutes 10``. First the limits of this machine are found and what
the run needs of it is said; it is not begun where it would not fit. Then servers (``serve --processes``) and callers are started.
Everybody pings now and then; talkers say people's sentences, silero hears them, and the reply is their own voice (``echo``).
Half-way a worker is killed. The verdict ends the run; its exit code is 1 when a connection was lost, audio is unaccounted for, or
somebody was met with silence.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.report.results import cpu_seconds, store, store_at
from benchmarks.report.soak_needs import MAX_SOURCES, Machine, Needs, fitting, work_out
from benchmarks.report.soak_verdict import Evidence, judge, show
from benchmarks.running import run_until_done
from benchmarks.sides.server_process import (
    ServerProcesses,
    cpu_by_process,
    find_processes,
    histogram_of,
    samples_of,
)
from voiceserver_clients.callers import Tally
from voiceserver_clients.command import complain
from voiceserver_clients.load import tally_from_json
from voiceserver_clients.local_server import LocalServer, ServerFailed

LOOP_LAG = "voiceserver_loop_lag_seconds"
READY_TIMEOUT_S = 120.0
ARRIVAL_SLACK_S = 120.0
LEAVE_TIMEOUT_S = 90.0
MEMORY_SETTLES_S = 3.0
STAGES = 2  # vad, reply


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for. ramp_per_s: arrivals, all processes together."""

    connections: int
    talkers: int
    seconds: float
    ramp_per_s: float
    ping_s: float
    kills: bool = True


class _Line(msgspec.Struct):
    arrived: bool
    open: int
    lost: int
    ping_p99_ms: float
    tally: msgspec.Raw = msgspec.Raw()
    held: int | None = None


@dataclass(slots=True)
class Callers:
    """One process of callers, and the last that it told."""

    process: asyncio.subprocess.Process
    open_now: int = 0
    lost_now: int = 0
    ping_p99_ms: float = 0.0
    has_arrived: bool = False
    held: int | None = None
    tally: Tally = field(default_factory=Tally)

    async def listen(self) -> None:
        """Until it ends. Raises ServerFailed if it does so before its time."""
        assert self.process.stdout is not None
        async for text in self.process.stdout:
            line = msgspec.json.decode(text, type=_Line)
            self.open_now, self.has_arrived, self.held = line.open, line.arrived, line.held
            self.lost_now, self.ping_p99_ms = line.lost, line.ping_p99_ms
            if line.held is not None:
                self.tally = tally_from_json(bytes(line.tally).decode())
        if self.held is None:
            raise ServerFailed(f"a process of callers ended early, with code {await self.process.wait()}")

    def go(self, seconds: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f'{{"seconds": {seconds}}}\n'.encode())

    async def stop(self) -> None:
        """Idempotent."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 5.0)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


def server_settings(order: Order, needs: Needs) -> dict[str, str | int | float]:
    return {
        "server.processes": needs.servers,
        "stages.vad.engine": "silero",
        "stages.stt.engine": "none",
        "stages.reply.engine": "echo",
        "stages.tts.engine": "none",
        "session.output_rate_hz": 16_000,
        "backpressure.max_talkers": order.connections * 2,  # everybody may talk; the question is who is held
    }


def first_source(index: int, sources: int) -> int:
    """Where the ``sources`` addresses of a calling process begin. Of very many some share: an address has ports enough."""
    return 1 + index * sources % (MAX_SOURCES - sources + 1)


class Soak:
    """One run: ``await run()`` gives the evidence. Everything started here ends here, also when it is cancelled."""

    def __init__(self, order: Order, needs: Needs, console: Console) -> None:
        self.order = order
        self.needs = needs
        self._server = LocalServer(server_settings(order, needs))
        self._callers: list[Callers] = []
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[seen]}"), TimeElapsedColumn(),
            console=console, transient=True,
        )  # fmt: skip

    async def run(self) -> Evidence:
        async with self._server:
            try:
                with self._progress:
                    return await self._run()
            finally:
                await asyncio.gather(*(callers.stop() for callers in self._callers))

    async def _run(self) -> Evidence:
        order = self.order
        task = self._progress.add_task("starting", total=order.connections, seen="")
        await self._wait_ready()
        before_bytes = find_processes(self._server.pid).memory_bytes()
        await self._start_callers()
        async with asyncio.TaskGroup() as group:
            listening = [group.create_task(callers.listen()) for callers in self._callers]
            await self._watch_arrival(task)
            idle_bytes = find_processes(self._server.pid).memory_bytes()
            lag_before = await histogram_of(self._server, LOOP_LAG)
            cpu_before = cpu_by_process(self._server.pid)
            for callers in self._callers:
                callers.go(order.seconds)
            await self._hold(task, order.seconds / 2)
            processes = find_processes(self._server.pid)
            memory_bytes, workers_bytes = processes.memory_bytes(), processes.workers_memory_bytes()
            killed = self._kill_one(processes) if order.kills else 0
            await self._hold(task, order.seconds / 2 - MEMORY_SETTLES_S)
            lag_after = await histogram_of(self._server, LOOP_LAG)
            cpu_s = sum(cpu_by_process(self._server.pid).values()) - sum(cpu_before.values())
            self._progress.update(task, description="leaving")
            await asyncio.wait_for(asyncio.gather(*listening), LEAVE_TIMEOUT_S)
        tally = self._tally()
        return Evidence(
            connections=order.connections,
            talkers=order.talkers,
            seconds=order.seconds,
            held=sum(callers.held or 0 for callers in self._callers),
            tally=tally,
            memory_before_bytes=before_bytes,
            idle_memory_bytes=idle_bytes,
            memory_bytes=memory_bytes,
            workers_bytes=workers_bytes,
            loop_lag_ms={bound: lag_after[bound] - lag_before.get(bound, 0.0) for bound in lag_after},
            cpu_s=cpu_s,
            server_processes=self.needs.servers,
            killed_pid=killed,
        )

    async def _wait_ready(self) -> None:
        await self._server.wait_ready()
        wanted = self.needs.servers * STAGES
        deadline_s = asyncio.get_running_loop().time() + READY_TIMEOUT_S
        while asyncio.get_running_loop().time() < deadline_s:
            samples = await samples_of(self._server, "voiceserver_workers")
            if sum(value for labels, value in samples if labels["state"] == "ready") >= wanted:
                return
            await asyncio.sleep(0.2)
        raise ServerFailed(f"not all workers are ready after {READY_TIMEOUT_S:.0f} s")

    async def _start_callers(self) -> None:
        order, needs = self.order, self.needs
        count = needs.callers
        for index in range(count):
            talkers = order.talkers // count + (index < order.talkers % count)
            idle = order.connections - order.talkers
            share = {
                "url": self._server.url,
                "talkers": talkers,
                "connections": idle // count + (index < idle % count),
                "ramp": order.ramp_per_s / count,
                "ping-s": order.ping_s,
                "sources": needs.sources,
                "first-source": first_source(index, needs.sources),
                "seed": index + 1,
            }
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "benchmarks.callers.soak_callers",
                *(f"--{name}={value}" for name, value in share.items()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for us
                limit=2**22,
            )
            self._callers.append(Callers(process))

    async def _watch_arrival(self, task: TaskID) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self.order.connections / self.order.ramp_per_s + ARRIVAL_SLACK_S
        while not all(callers.has_arrived for callers in self._callers):
            if loop.time() > deadline_s:
                raise ServerFailed("not everybody arrived in time")
            self._show(task, "arriving")
            await asyncio.sleep(0.5)

    async def _hold(self, task: TaskID, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        while loop.time() < end_s:
            self._show(task, f"holding, {end_s - loop.time():.0f} s to the next step")
            await asyncio.sleep(min(0.5, max(0.0, end_s - loop.time())))

    def _kill_one(self, processes: ServerProcesses) -> int:
        if not processes.workers:
            raise ServerFailed("there is no worker to kill")
        pid = max(processes.workers, key=cpu_seconds)  # the busiest: talkers depend on it just now
        os.kill(pid, signal.SIGKILL)
        return pid

    def _tally(self) -> Tally:
        total = Tally()
        for callers in self._callers:
            total.add(callers.tally)
        return total

    def _show(self, task: TaskID, what: str) -> None:
        is_open = sum(callers.open_now for callers in self._callers)
        lost = sum(callers.lost_now for callers in self._callers)
        seen = f"{is_open:,} of {self.order.connections:,} in, {lost} lost"
        worst_ms = max((callers.ping_p99_ms for callers in self._callers), default=0.0)
        if worst_ms:
            seen += f", ping p99 {worst_ms:.1f} ms"
        self._progress.update(task, description=what, completed=is_open, seen=seen)


async def run_to_end(soak: Soak) -> Evidence:
    """Raises ServerFailed."""
    try:
        return await soak.run()
    except ExceptionGroup as group:  # of the tasks that listen to the callers: the first tells it all
        failed = group.subgroup(ServerFailed)
        if failed is None:
            raise
        raise ServerFailed(str(failed.exceptions[0])) from None


def soak(
    connections: Annotated[int, typer.Option(min=1)] = 50_000,
    talkers: Annotated[int, typer.Option(min=0, help="How many of them talk.")] = 500,
    minutes: Annotated[float, typer.Option(min=0.1)] = 10.0,
    ramp: Annotated[float, typer.Option(min=1, help="How many arrive per second.")] = 2_000.0,
    ping_s: Annotated[float, typer.Option(min=1)] = 20.0,
    processes: Annotated[int, typer.Option(min=0, help="Of servers; 0: as many as are needed.")] = 0,
    kill: Annotated[bool, typer.Option(help="Kill a worker half-way.")] = True,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also on a machine that is too small.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where the result goes; default: among the results.")
    ] = None,
) -> None:
    """Hold many connections, and say how it went."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    machine = Machine.look()
    try:
        needs = work_out(machine, connections, processes)
    except ValueError as error:
        raise typer.Exit(complain(str(error))) from None
    for finding in needs.findings:
        console.print(finding)
    for problem in (*needs.problems, *needs.warnings):
        console.print(f"[yellow]{problem}")
    if needs.problems and not anyway:
        fits = fitting(machine, connections, processes)
        words = f"good for --connections {fits}" if fits else "too small for any run"
        raise typer.Exit(complain(f"this machine is {words}; --anyway tries what was asked for"))
    order = Order(connections, min(talkers, connections), minutes * 60, ramp, ping_s, kill)
    # Not 1, which is a verdict.
    evidence = run_until_done(run_to_end(Soak(order, needs, console)), failure=2)
    checks = judge(evidence)
    show(evidence, checks)
    payload = evidence.to_payload(checks)
    print(f"stored in {store_at(out, 'soak', payload) if out else store('soak', payload)}")
    if not all(check.is_good for check in checks if check.is_promise):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(soak)
