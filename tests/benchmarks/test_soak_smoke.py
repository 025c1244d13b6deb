"""The soak in small: two thousand connections for twelve seconds, and a run that is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from benchmarks.report.soak_needs import MAX_SOURCES, Machine, fitting, work_out
from benchmarks.report.soak_verdict import MEMORY_OF_ONE, Evidence, judge, show
from benchmarks.soak import first_source, soak
from voiceserver_clients.callers import Tally

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")


@contextmanager
def started(*flags: str, logs: Path) -> Iterator[subprocess.Popen[str]]:
    # A shell has what it runs in the background ignore Ctrl-C, and so would all that this starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        soak = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.soak", *flags],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(logs)},
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
    flags = ("--connections=2000", "--talkers=20", "--minutes=0.2", "--ramp=1000", "--ping-s=5")
    with started(*flags, "--processes=2", f"--out={out}", logs=tmp_path) as run:
        said, _ = run.communicate()
    assert run.returncode == 0, said
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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    deadline_s = time.monotonic() + 90
    flags = ("--connections=200", "--talkers=2", "--minutes=5", "--ramp=100", "--processes=2")
    with started(*flags, logs=tmp_path) as run:
        while not any(b"soak_callers" in command(pid) for pid in children_of(run.pid)):
            assert run.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        family = children_of(run.pid)
        assert len(family) >= 4  # server, forkserver or workers, callers
        os.kill(run.pid, number)
        said, _ = run.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert run.returncode == -signal.SIGKILL
    else:
        assert run.returncode == 130, said
        assert said.splitlines()[-1] == "interrupted"
        assert "Traceback" not in said
        assert not list(tmp_path.iterdir())
    while any(map(is_alive, family)):
        assert time.monotonic() < deadline_s + 30
        time.sleep(0.05)


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


MACHINE = Machine(files=20_000, ports=28_232, backlog=4_096, memory_bytes=2**35, cores=2)


class TestNeeds:
    def test_the_open_file_limit_decides_how_many_processes(self) -> None:
        needs = work_out(MACHINE, 50_000)
        assert (needs.servers, needs.callers, needs.sources) == (3, 3, 1)
        assert work_out(MACHINE, 2_000).servers == 1
        assert work_out(MACHINE, 2_000, servers=2).servers == 2
        assert not needs.problems

    def test_every_calling_process_has_ports_enough(self) -> None:
        machine = Machine(files=1_000_000, ports=28_232, backlog=4_096, memory_bytes=2**36, cores=64)
        needs = work_out(machine, 100_000)
        assert (needs.servers, needs.callers) == (1, 1)
        assert needs.sources * 28_232 * 0.7 >= 100_000

    def test_what_is_missing_is_said_with_the_remedy(self) -> None:
        needs = work_out(replace(MACHINE, backlog=128, memory_bytes=2**29), 50_000)
        (memory,), (backlog,) = needs.problems, needs.warnings
        assert "GiB" in memory
        assert "--connections" in memory
        assert "sysctl" in backlog

    def test_a_limit_that_is_hopeless(self) -> None:
        with pytest.raises(ValueError, match=r"^450 open files .* ulimit -n 27000$"):
            work_out(replace(MACHINE, files=450), 50_000)

    def test_more_server_processes_than_the_cores_can_drive_are_a_problem(self) -> None:
        (problem,) = work_out(replace(MACHINE, files=1_024, memory_bytes=2**40), 50_000).problems
        assert "84 server processes" in problem
        assert problem.endswith("ulimit -n 27000")
        assert not work_out(replace(MACHINE, files=27_000), 50_000).problems

    @pytest.mark.parametrize("files", [512, 1_024, 20_000])
    @pytest.mark.parametrize("memory_bytes", [2**30, 2**35])
    def test_what_fits_has_no_problem_and_a_little_more_has(self, files: int, memory_bytes: int) -> None:
        machine = replace(MACHINE, files=files, memory_bytes=memory_bytes)
        fits = fitting(machine, 1_000_000)
        assert not work_out(machine, fits).problems
        assert work_out(machine, int(fits * 1.11)).problems
        assert str(fits)[2:].strip("0") == ""

    def test_nothing_fits_where_there_is_no_memory(self) -> None:
        assert fitting(replace(MACHINE, memory_bytes=0), 50_000) == 0

    def test_no_more_addresses_than_there_are(self) -> None:
        needs = work_out(replace(MACHINE, files=500, ports=10), 50_000)
        assert needs.sources <= MAX_SOURCES
        assert any("ip_local_port_range" in problem for problem in needs.problems)
        for sources in (1, 3, 100, MAX_SOURCES):
            firsts = {first_source(index, sources) for index in range(600)}
            assert min(firsts) == 1
            assert max(firsts) + sources - 1 <= MAX_SOURCES
        assert [first_source(index, 2) for index in range(3)] == [1, 3, 5]

    def test_a_machine_that_is_too_small_is_told_and_nothing_is_started(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(Machine, "look", lambda: replace(MACHINE, files=1_024))
        with pytest.raises(typer.Exit) as left:
            soak()
        assert left.value.exit_code == 2
        said = capsys.readouterr()
        assert "ulimit -n 27000" in said.out
        assert said.err == "this machine is good for --connections 4800; --anyway tries what was asked for\n"


class TestVerdict:
    @staticmethod
    def evidence(connections: int, talkers: int = 0) -> Evidence:
        return Evidence(
            connections=connections,
            talkers=talkers,
            seconds=20.0,
            held=connections,
            tally=Tally(),
            memory_before_bytes=100_000_000,
            idle_memory_bytes=100_000_000 + 2_400 * connections,
            memory_bytes=200_000_000,
            workers_bytes=0,
            loop_lag_ms={1.0: 10.0},
            cpu_s=1.0,
            server_processes=1,
            killed_pid=0,
        )

    def test_the_memory_of_one_connection_is_told_where_there_are_many(self) -> None:
        evidence = self.evidence(2_000)
        (check,) = [check for check in judge(evidence) if check.name == MEMORY_OF_ONE]
        assert (check.value, check.is_good) == ("2,400 bytes", True)
        assert evidence.to_payload([])["bytes_per_connection"] == 2_400

    def test_of_few_connections_it_is_not_measured(self, capsys: pytest.CaptureFixture[str]) -> None:
        evidence = self.evidence(1_999)
        checks = judge(evidence)
        assert MEMORY_OF_ONE not in {check.name for check in checks}
        assert evidence.to_payload(checks)["bytes_per_connection"] is None
        show(evidence, checks)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if MEMORY_OF_ONE in line]
        assert "not measured" in line
