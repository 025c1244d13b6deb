"""The cores that this server may use, and how much of them it uses: its own process and its workers. Linux tells; elsewhere
nothing is told of the use.

What others do on the machine is not counted: they may give way, and where they do not, steps take longer and work waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final

CPU_QUOTA: Final = "/sys/fs/cgroup/cpu.max"  # microseconds of a period, or max; cgroup v2


class Cores:
    """processes: of this server, which share the cores. read: CPU seconds of a process so far; None for one that is gone."""

    def __init__(self, processes: int = 1, read: Callable[[int], float | None] | None = None) -> None:
        self._read = read or _cpu_seconds
        self._seen: dict[int, float] = {}
        self._seen_ms = 0.0
        cores = usable_cores()
        self.share = max(cores / processes, min(cores, 1.0))

    def busy(self, workers: Iterable[int], now_ms: float) -> float | None:
        """The part of the cores used since the last call by this process and ``workers``; None the first time, and where it is
        not known."""
        read = {pid: self._read(pid) for pid in (os.getpid(), *workers)}
        seen = {pid: seconds for pid, seconds in read.items() if seconds is not None}
        before, self._seen = self._seen, seen
        elapsed_s, self._seen_ms = (now_ms - self._seen_ms) / 1000.0, now_ms
        if not before or not seen or elapsed_s <= 0:
            return None
        spent_s = sum(seconds - before[pid] for pid, seconds in seen.items() if pid in before)
        return spent_s / elapsed_s / self.share


def usable_cores(read: Callable[[str], str] | None = None) -> float:
    """Those that this process may run on; less where a control group grants less of their time, as a container's limit does.
    read: the text of a file, empty if there is none."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = (read or _text_of)(CPU_QUOTA).partition(" ")
    return (
        min(float(count), int(quota) / int(period))
        if quota.isdigit() and period.strip().isdigit()
        else float(count)
    )


def _text_of(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _cpu_seconds(pid: int) -> float | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    # proc(5): fields 14 and 15, in ticks; those before the third hold the command's name, which may hold anything.
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
