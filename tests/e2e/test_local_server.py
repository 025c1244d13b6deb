"""The server that a demo or a benchmark has for a while ends with it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.e2e.serving import ENVIRONMENT, SMALL

PROGRAM = """
import asyncio, sys
from clients.local_server import LocalServer

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


@pytest.mark.timeout(120)
def test_a_program_that_is_ended_by_sigterm_stops_its_servers_first() -> None:
    run = [sys.executable, "-c", textwrap.dedent(PROGRAM), *SMALL]
    with subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as program:
        assert program.stdout is not None
        servers = [int(pid) for pid in program.stdout.readline().split()]
        assert len(servers) == 2
        assert all(map(is_there, servers))
        program.send_signal(signal.SIGTERM)
        _, complaints = program.communicate(timeout=60)
        assert program.returncode == 128 + signal.SIGTERM
        assert "Traceback" not in complaints
    assert not any(map(is_there, servers))
