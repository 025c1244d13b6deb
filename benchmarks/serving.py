"""One model of one's own, served: what of the processor's time is left for the model, and how long do callers wait?

``python -m benchmarks.serving [--seconds 10]``. A convolution and two layers of GRU on 100 ms of audio, for 32, 100, 250 and 400
sessions in real time: by us (an engine, through the whole server), by Mosec and LitServe (dynamic batching; ``make bench-venv``)
and by the usual asyncio server with a process pool. One process with the model each. *audio s per CPU s* is over all processes of
a server; the limit is the bare model in a loop, in batches of 64 without a pause, and *as served*, in batches as large as ours
and at their pace (a processor that rests between batches is slower in each). The callers run in this process.

Then the same with a model ten times as heavy and twice as many sessions as one core carries of it: who is told, and how long are
the others behind without a word? Ours decides by itself how many it lets in.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.callers.serving_callers import OverHttp, OverWebSocket, Session, Told
from benchmarks.callers.speech import speech
from benchmarks.report.results import cpu_seconds, print_table, pss_bytes, store
from benchmarks.running import run_until_done
from benchmarks.sides.server_process import cpu_by_process, mean_batch_of
from benchmarks.sides.serving_model import CHUNK_BYTES, CHUNK_MS, RATE_HZ, WAIT, WEIGHT
from voiceserver_clients import lifeline
from voiceserver_clients.callers import Schedule
from voiceserver_clients.histogram import Histogram
from voiceserver_clients.local_server import LocalServer, ServerFailed, free_port

SESSIONS: Final = (32, 100, 250, 400)
BARE_BATCH: Final = 64
BARE_S: Final = 2.0
HEAVY: Final = 10
OVERLOAD: Final = 2.0
TURN: Final = 5  # chunks
RAMP_S: Final = 2.0
START_TIMEOUT_S: Final = 60.0
ROOT = Path(__file__).resolve().parents[1]
PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
OURS: Final[dict[str, str | int | float]] = {
    "stages.vad.engine": "none",
    "stages.stt.engine": "benchmarks.sides.serving_model:Engine",
    "stages.stt.workers": 1,
    "stages.stt.max_batch_size": 256,
    "stages.reply.engine": "none",
    "stages.tts.engine": "none",
}


@dataclass(frozen=True, slots=True)
class Row:
    """memory_mib: PSS of all processes. told: sessions that were told that the server is behind or full; told_at_p99_ms: how old
    their oldest chunk was then. untold_s: session time behind without a word of it. answered: share of the chunks that were due.
    mean_batch: 0 where the server does not tell."""

    side: str
    sessions: int
    audio_s_per_cpu_s: float
    p50_ms: float
    p99_ms: float
    answered: float
    told: int
    memory_mib: float
    lateness_p99_ms: float
    mean_batch: float
    told_at_p99_ms: float
    untold_s: float


@dataclass(frozen=True, slots=True)
class Side:
    """connect(port, index, chunk, told): a session. command: what starts the server, which leads its own session of processes;
    none: ours, with ``settings``."""

    name: str
    connect: Callable[[int, int, bytes, Told], asyncio.Protocol]
    command: tuple[str, ...] = ()
    settings: Mapping[str, int] = field(default_factory=dict)


def _ours(port: int, index: int, chunk: bytes, told: Told) -> asyncio.Protocol:
    return OverWebSocket(f"127.0.0.1:{port}", f"/v1/stream?rate={RATE_HZ}", chunk, told, is_ours=True)


def _in_turns(port: int, index: int, chunk: bytes, told: Told) -> asyncio.Protocol:
    target = f"/v1/stream?rate={RATE_HZ}"
    return OverWebSocket(f"127.0.0.1:{port}", target, chunk, told, is_ours=True, turn=TURN)


def _naive(port: int, index: int, chunk: bytes, told: Told) -> asyncio.Protocol:
    return OverWebSocket(f"127.0.0.1:{port}", "/", chunk, told, is_ours=False)


def _mosec(port: int, index: int, chunk: bytes, told: Told) -> asyncio.Protocol:
    return OverHttp(f"127.0.0.1:{port}", "/inference", chunk, told, session=index, is_json=False)


def _litserve(port: int, index: int, chunk: bytes, told: Told) -> asyncio.Protocol:
    return OverHttp(f"127.0.0.1:{port}", "/predict", chunk, told, session=index, is_json=True)


# How many it lets in is its own affair; and when it is late it tells no more partial transcripts, so there must be turns.
IN_TURNS: Final = Side("ours", _in_turns)


def sides() -> list[Side]:
    """Those that can run here."""
    found = [
        Side("ours", _ours, settings={"backpressure.max_talkers": 100_000}),
        Side("asyncio + process pool", _naive, (sys.executable, "-m", "benchmarks.sides.serving_naive")),
    ]
    for name, connect in (("mosec", _mosec), ("litserve", _litserve)):
        python = _python_with(name)
        if python is None:
            print(f"{name} is not installed: make bench-venv", file=sys.stderr)
        else:
            found.append(Side(name, connect, (python, "-m", f"benchmarks.sides.serving_{name}")))
    return found


def _python_with(package: str) -> str | None:
    if importlib.util.find_spec(package) is not None:
        return sys.executable
    if not PEERS_PYTHON.exists():
        return None
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return (
        str(PEERS_PYTHON)
        if subprocess.run([str(PEERS_PYTHON), "-c", code], check=False).returncode == 0
        else None
    )


@asynccontextmanager
async def running(side: Side) -> AsyncIterator[tuple[int, int, LocalServer | None]]:
    """(port, pid of the leader, ours) of a server that answers. Raises ServerFailed."""
    if not side.command:
        os.environ["PYTHONPATH"] = str(ROOT)  # for the engine, which is a module of ours
        wait = {"stages.stt.max_wait_ms": int(os.environ[WAIT])}
        async with LocalServer({**OURS, **wait, **side.settings}) as server:
            await server.wait_ready()
            yield server.port, server.pid, server
        return
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *lifeline.bound([*side.command, str(port)]),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await _answers(side, port, process)
        yield port, process.pid, None
    finally:
        for pid in cpu_by_process(process.pid):  # workers may outlive their parent
            if pid != process.pid:
                _end(pid)
        _end(process.pid)
        await process.wait()


def _end(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return


async def _answers(side: Side, port: int, process: asyncio.subprocess.Process) -> None:
    """Until one chunk was answered."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + START_TIMEOUT_S
    while loop.time() < deadline_s:
        if process.returncode is not None:
            raise ServerFailed(f"{side.name} ended by itself with {process.returncode}")
        session = side.connect(port, 0, bytes(CHUNK_BYTES), Told(_now_ms))
        try:
            await loop.create_connection(lambda: session, "127.0.0.1", port)  # noqa: B023
        except OSError:
            await asyncio.sleep(0.2)
            continue
        one: Session = session  # type: ignore[assignment]
        await asyncio.sleep(0.2)
        one.step(_now_ms())
        end_s = loop.time() + 2.0
        while not one.answered and loop.time() < end_s:
            await asyncio.sleep(0.02)
        answered = one.answered
        one.stop()
        if answered:
            return
    raise ServerFailed(f"{side.name} did not answer within {START_TIMEOUT_S:.0f} s")


async def measure(side: Side, count: int, seconds: float, chunk: bytes) -> Row:
    """``count`` paced sessions for ``seconds``, once all are there."""
    loop = asyncio.get_running_loop()
    told, lateness = Told(_now_ms), Histogram()
    told_at = told.told_at
    schedule = Schedule(_now_ms, lateness)
    async with running(side) as (port, pid, ours):
        ticking = asyncio.create_task(schedule.run())
        sessions: list[Session] = []
        for index in range(count):
            protocol = side.connect(port, index, chunk, told)
            await loop.create_connection(lambda: protocol, "127.0.0.1", port)  # noqa: B023
            session: Session = protocol  # type: ignore[assignment]
            sessions.append(session)
            schedule.join(session, CHUNK_MS)
            await asyncio.sleep(RAMP_S / count)
        await asyncio.sleep(1.0)
        told.begin()
        lateness.clear()
        answered, cpu = sum(one.answered for one in sessions), sum(cpu_by_process(pid).values())
        began_s = loop.time()
        await asyncio.sleep(seconds)
        took_s = loop.time() - began_s
        processes = cpu_by_process(pid)
        answered, cpu = sum(one.answered for one in sessions) - answered, sum(processes.values()) - cpu
        memory = sum(pss_bytes(one) for one in processes)
        mean_batch = await mean_batch_of(ours, "stt") if ours is not None else 0.0
        ticking.cancel()
        for one in sessions:
            one.stop()
    latency = told.latency
    return Row(
        side=side.name,
        sessions=count,
        audio_s_per_cpu_s=round(answered * CHUNK_MS / 1000 / cpu, 1) if cpu else 0.0,
        p50_ms=round(latency.percentile(50), 2) if latency.count else float("inf"),
        p99_ms=round(latency.percentile(99), 2) if latency.count else float("inf"),
        answered=round(answered * CHUNK_MS / 1000 / (count * took_s), 3),
        told=sum(one.is_told for one in sessions),
        memory_mib=round(memory / 2**20, 1),
        lateness_p99_ms=round(lateness.percentile(99), 2),
        mean_batch=round(mean_batch, 1),
        told_at_p99_ms=round(told_at.percentile(99), 1) if told_at.count else 0.0,
        untold_s=round(told.untold_ms / 1000, 1),
    )


def bare(chunk: bytes, seconds: float, batch: int = BARE_BATCH, every_ms: float = 0.0) -> float:
    """The limit: audio seconds per CPU second of the model alone; ``every_ms``: from one batch to the next, 0 for no pause."""
    from benchmarks.sides.serving_model import Server

    server = Server()
    requests = [row.to_bytes(4, "little") + chunk for row in range(batch)]
    server.answer(requests)
    began_s, cpu, steps = time.monotonic(), cpu_seconds(), 0
    while time.monotonic() < began_s + seconds:
        server.answer(requests)
        steps += 1
        time.sleep(max(began_s + steps * every_ms / 1000 - time.monotonic(), 0.0))
    return steps * batch * CHUNK_MS / 1000 / (cpu_seconds() - cpu)


def bare_as_served(chunk: bytes, seconds: float, row: Row) -> float:
    """``bare`` in batches as large, and as far apart, as ``row`` had them."""
    batch = max(round(row.mean_batch), 1)
    return bare(chunk, seconds, batch, batch * CHUNK_MS / row.sessions)


def show_overloaded(rows: list[Row], carried: float) -> None:
    """carried: sessions of the heavy model that one core carries at most."""
    columns = (
        "",
        "answered",
        "p50 (ms)",
        "p99 (ms)",
        "told",
        "told when late by (p99, ms)",
        "behind, untold (s)",
    )
    cells = [
        (
            f"{row.sessions} sessions, {row.side}",
            f"{row.answered:.0%}",
            row.p50_ms,
            row.p99_ms,
            row.told,
            row.told_at_p99_ms if row.told else "-",
            row.untold_s,
        )
        for row in rows
    ]
    note = f"one core carries {carried:,.0f} sessions of this model at most; untold: summed over sessions"
    print_table("Twice what one worker carries", columns, cells, note)


def _now_ms() -> float:
    return time.monotonic() * 1000


def serving(
    seconds: Annotated[float, typer.Option(min=1, help="For each side and number of sessions.")] = 10.0,
    wait_ms: Annotated[
        int, typer.Option(min=0, help="How long a batch waits, on every side that batches.")
    ] = 20,
    sessions: Annotated[list[int] | None, typer.Option(help="How many; may be given several times.")] = None,
) -> None:
    """Serve one model in several ways."""
    os.environ[WAIT] = str(wait_ms)  # inherited by all servers
    pcm = speech(RATE_HZ)[0].pcm
    chunk = pcm[len(pcm) // 2 :][:CHUNK_BYTES].ljust(CHUNK_BYTES, b"\0")
    limit = bare(chunk, BARE_S)
    os.environ[WEIGHT] = str(HEAVY)
    carried = bare(chunk, BARE_S)
    del os.environ[WEIGHT]
    rows: list[Row] = []
    overloaded: list[Row] = []

    async def run() -> None:
        for count in sessions or SESSIONS:
            for side in chosen:
                rows.extend(await tried(side, count))
        os.environ[WEIGHT] = str(HEAVY)
        # LitServe carries less than that already with the light model.
        for side in (side for side in chosen if side.name != "litserve"):
            overloaded.extend(await tried(side if side.command else IN_TURNS, round(carried * OVERLOAD)))

    async def tried(side: Side, count: int) -> list[Row]:
        try:
            return [await measure(side, count, seconds, chunk)]
        except (ServerFailed, OSError) as error:
            print(f"{side.name}, {count} sessions: {error}", file=sys.stderr)
            return []

    chosen = sides()
    run_until_done(run())
    del os.environ[WEIGHT]
    if not any(row.side == "ours" for row in rows):
        raise typer.Exit(1)
    as_served = {row.sessions: bare_as_served(chunk, BARE_S, row) for row in rows if row.mean_batch}
    cells = [
        (
            f"{row.sessions} sessions, {row.side}",
            row.audio_s_per_cpu_s,
            f"{row.audio_s_per_cpu_s / limit:.0%}",
            f"{row.audio_s_per_cpu_s / as_served[row.sessions]:.0%}" if row.sessions in as_served else "",
            row.p50_ms,
            row.p99_ms,
            f"{row.answered:.0%}",
            row.told,
            row.memory_mib,
        )
        for row in rows
    ]
    columns = (
        "",
        "audio s per CPU s",
        "of the bare model",
        "as served",
        "p50 (ms)",
        "p99 (ms)",
        "answered",
        "told",
        "memory (MiB)",
    )
    told = ", ".join(f"{found:,.0f} at {count} sessions" for count, found in as_served.items())
    note = f"the bare model in batches of {BARE_BATCH}: {limit:,.0f}; in our batches, at their pace: {told}"
    print_table("One model, served", columns, cells, note)
    show_overloaded(overloaded, carried)
    payload = {
        "seconds": seconds,
        "wait_ms": wait_ms,
        "bare_audio_s_per_cpu_s": round(limit, 1),
        "bare_as_served_audio_s_per_cpu_s": {str(n): round(found, 1) for n, found in as_served.items()},
        "rows": [asdict(row) for row in rows],
        "heavy_sessions_carried": round(carried, 1),
        "overloaded": [asdict(row) for row in overloaded],
    }
    print(f"stored in {store('serving', payload)}")


if __name__ == "__main__":
    typer.run(serving)
