"""The server dies: its workers go by themselves, and neither process, memory nor file stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.local_bench import GIVE_UP_S, is_alive

ROOT = Path(__file__).parents[2]
Server = tuple["subprocess.Popen[str]", list[int]]


@pytest.fixture(params=["linux", "portable"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server in a process group of its own, and the pids of its forkserver and two workers. Once with what only
    Linux has, once without."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.pool_server", request.param],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    yield process, pids
    process.kill()
    process.wait()
    process.stdout.close()
    for pid in pids:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def named_files() -> set[str]:
    """Everything with a name that a server could leave behind."""
    places = [Path("/dev/shm"), Path(tempfile.gettempdir())]
    return {str(path) for place in places if place.exists() for path in place.glob("voice*")}


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + GIVE_UP_S
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still alive: {[pid for pid in pids if is_alive(pid)]}"
        time.sleep(0.005)


def test_workers_and_forkserver_go_with_a_killed_server(server: Server) -> None:
    process, pids = server
    assert len(pids) == 3
    assert all(is_alive(pid) for pid in pids)
    before = named_files()
    process.kill()
    process.wait()
    wait_until_gone(pids)
    assert named_files() <= before


def test_a_killed_process_group_leaves_nothing(server: Server) -> None:
    process, pids = server
    before = named_files()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_until_gone(pids)
    assert named_files() <= before


@pytest.mark.parametrize("server", ["linux"], indirect=True)
@pytest.mark.parametrize("frozen", ["forkserver", "worker"])
def test_not_even_a_stopped_process_stays(server: Server, frozen: str) -> None:
    process, pids = server
    os.kill(pids[0] if frozen == "forkserver" else pids[1], signal.SIGSTOP)
    process.kill()
    process.wait()
    wait_until_gone(pids)
