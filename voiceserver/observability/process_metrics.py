"""What the operating system says of this process, under the names that every Prometheus client uses.

prometheus_client's own collector lists ``/proc/self/fd``: at 16,000 connections that held the loop for 16 ms at every look. Since
Linux 6.2 the size of that directory is the number of its entries, and asking for it costs nothing; older kernels are asked the
old way. Without ``/proc`` nothing is told.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class ProcessMetrics(Collector):
    def __init__(self) -> None:
        self._page_bytes = resource.getpagesize()
        self._started_s = _started_s()

    def collect(self) -> Iterator[Metric]:
        sizes = _read("/proc/self/statm").split()
        if not sizes:
            return
        used = os.times()
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield CounterMetricFamily(
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds.",
            value=used.user + used.system,
        )
        gauges = {
            "virtual_memory_bytes": ("Virtual memory size in bytes.", float(sizes[0]) * self._page_bytes),
            "resident_memory_bytes": ("Resident memory size in bytes.", float(sizes[1]) * self._page_bytes),
            "start_time_seconds": ("Start time of the process since unix epoch in seconds.", self._started_s),
            "max_fds": ("Maximum number of open file descriptors.", float(most)),
            "open_fds": ("Number of open file descriptors.", float(_open_files())),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"process_{name}", text, value=value)


def _open_files() -> int:
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))


def _started_s() -> float:
    stat, system = _read("/proc/self/stat"), _read("/proc/stat")
    if not stat or "btime " not in system:
        return 0.0
    # proc(5): field 22, in ticks since the boot; the command's name before it may hold anything, also spaces and brackets.
    ticks = float(stat.rpartition(")")[2].split()[19])
    return float(system.partition("btime ")[2].split()[0]) + ticks / os.sysconf("SC_CLK_TCK")


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
