"""The server that a demo or a benchmark has for a while ends with it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.serving import ENVIRONMENT, SMALL
from voiceserver_clients import lifeline

PROGRAM = """
import asyncio, sys
from voiceserver_clients.local_server import LocalServer

async def main():
    settings = dict(one.split("=") for one in sys.argv[1:])
    async with LocalServer(settings) as first, LocalServer(settings) as second:
        await first.wait_ready()
        await second.wait_ready()
        print(first.pid, second.pid, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def started(logs: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """The program and its two servers."""
    run = [sys.executable, "-c", textwrap.dedent(PROGRAM), *SMALL]
    environment = {**ENVIRONMENT, "TMPDIR": str(logs)}
    with subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as program:
        try:
            assert program.stdout is not None
            servers = [int(pid) for pid in program.stdout.readline().split()]
            assert len(servers) == 2
            assert all(map(is_there, servers))
            yield program, servers
        finally:
            program.kill()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_is_ended_by_a_signal_stops_its_servers_first(
    number: signal.Signals, tmp_path: Path
) -> None:
    with started(tmp_path) as (program, servers):
        program.send_signal(number)
        _, complaints = program.communicate(timeout=60)
        assert program.returncode == 128 + number
        assert "Traceback" not in complaints
    assert not any(map(is_there, servers))
    assert not list(tmp_path.glob("voiceserver-*"))


@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked to tell the server")
def test_the_servers_of_a_program_that_is_killed_end_with_it(tmp_path: Path) -> None:
    with started(tmp_path) as (program, servers):
        program.kill()
        program.wait()
        give_up_s = time.monotonic() + 30
        while any(map(is_there, servers)):
            assert time.monotonic() < give_up_s
            time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked to tell the program")
def test_a_program_whose_parent_died_before_it_began_does_not_begin() -> None:
    command = lifeline.bound([sys.executable, "-c", "print('here')"])
    told = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (told.returncode, told.stdout) == (0, "here\n")
    command[3] = "1"  # as if
    told = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (told.returncode, told.stdout) == (128 + signal.SIGTERM, "")
