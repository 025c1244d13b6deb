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
MAX_SOURCES = 254  # of 127.0.0.x
SERVERS_PER_CORE = 4  # more only wait for each other
# Measured: both ends of a connection in the kernel, the server's side, the caller's side.
BYTES_PER_CONNECTION = 24_000
BYTES_PER_PROCESS = 450_000_000  # with its two workers


@dataclass(frozen=True, slots=True)
class Needs:
    """servers, callers: processes on each side; sources: addresses 127.0.0.x that each calling process uses.
    findings: what this machine has; problems: what it lacks for the run, with the remedy; warnings: what only slows it down."""

    servers: int
    callers: int
    sources: int
    findings: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


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


def work_out(machine: Machine, connections: int, servers: int = 0) -> Needs:
    """How many processes (``servers`` at least) and addresses ``connections`` take on ``machine``. Raises ValueError if no number
    would do."""
    room = machine.files - SPARE_FILES
    if room < 100:
        raise ValueError(
            f"{machine.files} open files per process are too few for anything:"
            f" ulimit -n {_files_for(machine, connections)}"
        )
    at_least = max(1, -(-int(connections * SHARE_SPREAD) // room))
    servers = max(servers, at_least)
    callers = max(1, -(-connections // room))
    per_source = max(1, min(PORTS_PER_SOURCE, int(machine.ports * 0.7)))
    sources = min(max(1, -(-connections // (callers * per_source))), MAX_SOURCES)
    wanted_bytes = connections * BYTES_PER_CONNECTION + servers * BYTES_PER_PROCESS
    problems, warnings = [], []
    if at_least > machine.cores * SERVERS_PER_CORE:
        problems.append(
            f"{machine.files:,} open files per process take {at_least} server processes, too many for {machine.cores}"
            f" cores: ulimit -n {_files_for(machine, connections)}"
        )
    if wanted_bytes > machine.memory_bytes:
        problems.append(
            f"about {wanted_bytes / 2**30:.1f} GiB of memory are needed, {machine.memory_bytes / 2**30:.1f} are free:"
            f" ask for fewer --connections"
        )
    if connections > MAX_SOURCES * per_source:
        problems.append(
            f"{MAX_SOURCES} addresses with {machine.ports:,} ports each are too few: widen net.ipv4.ip_local_port_range"
        )
    if machine.backlog < 1_024:
        warnings.append(f"net.core.somaxconn is {machine.backlog}: sysctl -w net.core.somaxconn=4096")
    findings = (
        f"{machine.files:,} open files per process: {servers} server and {callers} calling processes for"
        f" {connections:,} connections",
        f"{machine.ports:,} ports per address: each calling process uses {sources} of 127.0.0.x",
        f"{machine.cores} cores, {machine.memory_bytes / 2**30:.1f} GiB free, about {wanted_bytes / 2**30:.1f} wanted",
    )
    return Needs(servers, callers, sources, findings, tuple(problems), tuple(warnings))


def fitting(machine: Machine, most: int, servers: int = 0) -> int:
    """The largest number of connections up to ``most`` that meets no problem, to two digits."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if work_out(machine, middle, servers).problems:
            high = middle - 1
        else:
            low = middle
    digit = int("1".ljust(len(str(low)) - 1, "0"))
    return low // digit * digit


def _files_for(machine: Machine, connections: int) -> int:
    """Open files per process that let one server process for each core do, in thousands."""
    files = int(connections * SHARE_SPREAD) // machine.cores + SPARE_FILES
    return -(-files // 1_000) * 1_000


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
