"""The soak in small: two thousand connections for twenty seconds, and a run that is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.soak_needs import Machine, work_out

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")


@contextmanager
def started(*flags: str) -> Iterator[subprocess.Popen[str]]:
    # A shell has what it runs in the background ignore Ctrl-C, and so would all that this starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        soak = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.soak", *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with soak:
        try:
            yield soak
        finally:
            soak.kill()


@pytest.mark.timeout(240)
def test_two_thousand_connections_are_held_and_talkers_are_answered(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    flags = ("--connections=2000", "--talkers=20", "--minutes=0.3333", "--ramp=500", "--ping-s=5")
    with started(*flags, "--processes=2", f"--out={out}") as soak:
        said, _ = soak.communicate()
    assert soak.returncode == 0, said
    found = json.loads(out.read_text())
    assert found["held"] == found["connections"] == 2_000
    assert found["lost"] == 0
    assert found["unaccounted_ms"] == 0
    assert found["pings"] > 2_000
    assert 0 < found["turns"] <= found["replies"]
    assert found["worker_lost_told"] > 0
    assert found["server_processes"] == 2
    assert found["machine"]["cpu_model"]


def children_of(pid: int) -> set[int]:
    """Everything that descends from ``pid``, whatever sessions it is in."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(number: signal.Signals) -> None:
    deadline_s = time.monotonic() + 90
    with started("--connections=200", "--talkers=2", "--minutes=5", "--ramp=100") as soak:
        while not any(b"soak_callers" in command(pid) for pid in children_of(soak.pid)):
            assert soak.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        family = children_of(soak.pid)
        assert len(family) >= 4  # server, forkserver or workers, callers
        os.kill(soak.pid, number)
        said, _ = soak.communicate(timeout=60)
    assert soak.returncode == 130, said
    while any(map(is_alive, family)):
        assert time.monotonic() < deadline_s + 30
        time.sleep(0.05)


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


class TestNeeds:
    def test_the_open_file_limit_decides_how_many_processes(self) -> None:
        machine = Machine(files=20_000, ports=28_232, backlog=4_096, memory_bytes=2**35, cores=2)
        needs = work_out(machine, 50_000)
        assert (needs.servers, needs.callers, needs.sources) == (3, 3, 1)
        assert work_out(machine, 2_000).servers == 1
        assert not needs.problems

    def test_every_calling_process_has_ports_enough(self) -> None:
        machine = Machine(files=1_000_000, ports=28_232, backlog=4_096, memory_bytes=2**36, cores=64)
        needs = work_out(machine, 100_000)
        assert (needs.servers, needs.callers) == (1, 1)
        assert needs.sources * 28_232 * 0.7 >= 100_000

    def test_what_is_missing_is_said_with_the_remedy(self) -> None:
        machine = Machine(files=20_000, ports=28_232, backlog=128, memory_bytes=2**29, cores=2)
        memory, backlog = work_out(machine, 50_000).problems
        assert "GiB" in memory
        assert "--connections" in memory
        assert "sysctl" in backlog

    def test_a_limit_that_is_hopeless(self) -> None:
        with pytest.raises(ValueError, match="ulimit"):
            work_out(Machine(files=256, ports=28_232, backlog=4_096, memory_bytes=2**35, cores=2), 10)
