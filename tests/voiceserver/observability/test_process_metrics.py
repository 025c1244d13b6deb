"""What this process says of itself is what prometheus_client's own collector says."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

from voiceserver.observability.process_metrics import ProcessMetrics

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")


def values(families: Iterable[Metric]) -> dict[str, float]:
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_it_tells_what_the_library_tells() -> None:
    ours, theirs = values(ProcessMetrics().collect()), values(ProcessCollector(registry=None).collect())
    assert ours.keys() == theirs.keys()
    for name in ("process_max_fds", "process_start_time_seconds"):
        assert ours[name] == pytest.approx(theirs[name])
    assert ours["process_resident_memory_bytes"] == pytest.approx(
        theirs["process_resident_memory_bytes"], rel=0.1
    )
    assert ours["process_cpu_seconds_total"] == pytest.approx(theirs["process_cpu_seconds_total"], abs=0.5)


def test_every_open_file_counts() -> None:
    before = values(ProcessMetrics().collect())["process_open_fds"]
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(25)]
    try:
        assert values(ProcessMetrics().collect())["process_open_fds"] == before + 25
    finally:
        for fd in opened:
            os.close(fd)
