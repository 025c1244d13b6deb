"""What a soak needs of this machine, found out before anything is started.

Rule: a limit that would end the run is said beforehand, with what helps.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path

SPARE_FILES = 400  # of each process: logs, rings, pages, and connections that came to this process by chance
SHARE_SPREAD = (
    1.04  # the kernel spreads callers over processes by chance: the fullest has a little more than its share
)
PORTS_PER_SOURCE = 20_000
# Measured: both ends of a connection in the kernel, the server's side, the caller's side.
BYTES_PER_CONNECTION = 24_000
BYTES_PER_PROCESS = 450_000_000  # with its two workers


@dataclass(frozen=True, slots=True)
class Needs:
    """servers, callers: processes on each side; sources: addresses 127.0.0.x that each calling process uses.
    findings: what this machine has; problems: what it lacks, with the remedy."""

    servers: int
    callers: int
    sources: int
    findings: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    files: int  # open files per process, the hard limit
    ports: int  # ephemeral ports of one address
    backlog: int
    memory_bytes: int
    cores: int

    @classmethod
    def look(cls) -> Machine:
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        low, high = (int(part) for part in _kernel("net/ipv4/ip_local_port_range", "32768 60999").split())
        return cls(
            files=files if files != resource.RLIM_INFINITY else 1_048_576,
            ports=high - low + 1,
            backlog=int(_kernel("net/core/somaxconn", "4096")),
            memory_bytes=_free_memory(),
            cores=len(os.sched_getaffinity(0)),
        )


def work_out(machine: Machine, connections: int) -> Needs:
    """How many processes and addresses ``connections`` take on ``machine``. Raises ValueError if no number would do."""
    room = machine.files - SPARE_FILES
    if room < 100:
        raise ValueError(f"{machine.files} open files per process are too few for anything: ulimit -n")
    servers = max(1, -(-int(connections * SHARE_SPREAD) // room))
    callers = max(1, -(-connections // room))
    per_source = min(PORTS_PER_SOURCE, int(machine.ports * 0.7))
    sources = max(1, -(-connections // (callers * per_source)))
    wanted_bytes = connections * BYTES_PER_CONNECTION + servers * BYTES_PER_PROCESS
    problems = []
    if wanted_bytes > machine.memory_bytes:
        problems.append(
            f"about {wanted_bytes / 2**30:.1f} GiB of memory are needed, {machine.memory_bytes / 2**30:.1f} are free:"
            f" ask for fewer --connections"
        )
    if machine.backlog < 1_024:
        problems.append(f"net.core.somaxconn is {machine.backlog}: sysctl -w net.core.somaxconn=4096")
    findings = (
        f"{machine.files:,} open files per process: {servers} server and {callers} calling processes for"
        f" {connections:,} connections",
        f"{machine.ports:,} ports per address: each calling process uses {sources} of 127.0.0.x",
        f"{machine.cores} cores, {machine.memory_bytes / 2**30:.1f} GiB free, about {wanted_bytes / 2**30:.1f} wanted",
    )
    return Needs(servers, callers, sources, findings, tuple(problems))


def _kernel(name: str, default: str) -> str:
    try:
        return Path("/proc/sys", name).read_text()
    except OSError:
        return default


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
