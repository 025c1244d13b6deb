"""A running server seen from outside: its processes by kind, their CPU time and memory, and its pages (Linux).

``LocalServer`` starts a server as the leader of a session of its own, so everything in that session belongs to it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.report.results import cpu_seconds, pss_bytes
from voiceserver_clients.local_server import LocalServer, ServerFailed

PATIENCE_S = 15.0
_HELPERS = ("forkserver", "resource_tracker")


@dataclass(frozen=True, slots=True)
class ServerProcesses:
    """servers: the loops, and their supervisor where there is one; workers: the processes with engines in them."""

    servers: tuple[int, ...]
    workers: tuple[int, ...]

    def memory_bytes(self) -> int:
        """PSS of the servers, the workers apart."""
        return sum(pss_bytes(pid) for pid in self.servers)

    def workers_memory_bytes(self) -> int:
        return sum(pss_bytes(pid) for pid in self.workers)


def find_processes(session: int) -> ServerProcesses:
    """The processes of the server whose leader is ``session``."""
    parents = {pid: fields[1] for pid, fields in _stats(session).items()}
    commands = {pid: _command(pid) for pid in parents}
    helpers = {pid for pid, command in commands.items() if any(name in command for name in _HELPERS)}
    workers = tuple(pid for pid in helpers if int(parents[pid]) in helpers)
    return ServerProcesses(tuple(pid for pid in parents if pid not in helpers), workers)


def cpu_by_process(session: int) -> dict[int, float]:
    """CPU seconds of every process of the server whose leader is ``session``."""
    found: dict[int, float] = {}
    for pid in _stats(session):
        try:
            found[pid] = cpu_seconds(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while being looked at
    return found


def _stats(session: int) -> dict[int, list[str]]:
    """pid -> the fields of /proc/PID/stat behind the name: state, parent, group, session, ..."""
    found: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found[int(entry.name)] = fields
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def get_page(server: LocalServer, path: str) -> bytes:
    """A busy server may answer late. Raises ServerFailed when it does not at all."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + PATIENCE_S
    while loop.time() < deadline_s:
        status, body = await server.get(path)
        if status == 200:
            return body
        await asyncio.sleep(0.1)
    raise ServerFailed(f"{path} was not answered within {PATIENCE_S:.0f} s")


class _Stage(msgspec.Struct):
    mean_batch: float


class _Capacity(msgspec.Struct):
    stages: dict[str, _Stage]


async def mean_batch_of(server: LocalServer, stage: str) -> float:
    """How many items a batch of ``stage`` had so far."""
    body = await get_page(server, "/v1/capacity")
    return msgspec.json.decode(body, type=_Capacity).stages[stage].mean_batch


async def samples_of(server: LocalServer, name: str) -> list[tuple[dict[str, str], float]]:
    """(labels, value) of every sample called ``name`` in /metrics."""
    body = await get_page(server, "/metrics")
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == name
    ]


async def histogram_of(server: LocalServer, name: str) -> dict[float, float]:
    """Upper bound in ms -> samples at or below it, of a histogram in seconds."""
    found: dict[float, float] = {}
    for labels, value in await samples_of(server, f"{name}_bucket"):
        bound_ms = float(labels["le"]) * 1000
        found[bound_ms] = found.get(bound_ms, 0.0) + value
    return found


def bucket_percentile(buckets: dict[float, float], rank: float) -> float:
    """Upper end of the bucket that holds the rank: the true value is not above it. Infinite where there is nothing."""
    total = max(buckets.values(), default=0.0)
    for bound in sorted(buckets):
        if total and buckets[bound] >= total * rank / 100:
            return bound
    return float("inf")
