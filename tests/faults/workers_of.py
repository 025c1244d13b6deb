"""Which processes a server has, from its log and from the kernel."""

from __future__ import annotations

import time
from pathlib import Path

from tests.e2e.serving import ServerProcess
from tests.faults.local_bench import GIVE_UP_S, is_alive


def pid_of(server: ServerProcess, stage: str, worker: int = 0) -> int:
    """Of a worker that is ready; waits for one."""
    deadline = time.monotonic() + GIVE_UP_S
    while True:
        pids = [
            int(entry["pid"])
            for entry in server.log
            if entry["event"] == "worker ready" and (entry["stage"], entry["worker"]) == (stage, worker)
        ]
        if pids and is_alive(pids[-1]):
            return pids[-1]
        assert time.monotonic() < deadline, f"no {stage} worker: {server.log}"
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in children for one in (int(child), *descendants(int(child)))]


def resident_mib(pid: int) -> float:
    """Memory of one process; PSS, so that shared pages are not counted for each."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the kernel reports no PSS")
