"""Several server processes on one port: one dies and comes back, the supervisor dies and nobody is left, all drain."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.serving import ENVIRONMENT, SMALL, ServerProcess
from voiceserver.errors import StartError
from voiceserver.server import admin
from voiceserver.server.auth import CLIENT_SECRETS, new_key
from voiceserver.server.multiprocess.supervisor import _hold_port

PROCESSES = 2


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    process = ServerProcess(f"server.processes={PROCESSES}", "server.log_level=info", *SMALL)
    try:
        process.wait_for("all processes started")
        yield process
    finally:
        process.end()


def children(server: ServerProcess) -> list[int]:
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    pids = [pid for task in tasks for pid in _children(task)]
    return sorted(pids)


def _children(task: Path) -> list[int]:
    return [int(pid) for pid in (task / "children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > give_up_s:
            raise AssertionError(f"never: {what}")
        time.sleep(0.02)


@pytest.fixture
async def connections(server: ServerProcess) -> AsyncIterator[list[ClientConnection]]:
    """So many that the kernel has given some to each process."""
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connect(server.url)) for _ in range(64)]
        for connection in connections:
            json.loads(await connection.recv())
        yield connections


def samples(server: ServerProcess) -> dict[str, float]:
    _, text = server.get("/metrics")
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


async def close_code_of(connection: ClientConnection) -> int | None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await asyncio.wait_for(connection.recv(), 30.0)
    return connection.close_code


async def until(is_so: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, is_so, what)


async def test_any_process_answers_for_all(
    server: ServerProcess, connections: list[ClientConnection]
) -> None:
    sessions = 'voiceserver_sessions_opened_total{wire="native"}'
    await until(lambda: samples(server).get("voiceserver_sessions") == len(connections), "all are counted")
    assert samples(server)[sessions] == len(connections)
    _, capacity = await asyncio.to_thread(server.get, "/v1/capacity")
    assert capacity["stages"]["reply"]["workers"] == PROCESSES
    workers = [name for name in samples(server) if name.startswith("voiceserver_worker_state")]
    assert len(workers) == PROCESSES
    assert samples(server)["voiceserver_process_restarts_total"] == 0
    for connection in connections:
        await connection.close()
    await until(lambda: samples(server)["voiceserver_sessions"] == 0, "all have left")
    assert samples(server)[sessions] == len(connections)


async def test_a_process_that_dies_is_started_again_and_the_others_go_on(
    server: ServerProcess, connections: list[ClientConnection]
) -> None:
    sessions = 'voiceserver_sessions_opened_total{wire="native"}'
    await until(lambda: samples(server).get(sessions) == len(connections), "all are counted")
    before = children(server)
    os.kill(before[0], signal.SIGKILL)
    entry = await asyncio.to_thread(server.wait_for, "server process lost")
    assert entry["pid"] == before[0]
    survived = 0
    for connection in connections:
        with contextlib.suppress(ConnectionClosed):
            await connection.send('{"type":"session.update","event_id":"still there?"}')
            await asyncio.wait_for(connection.recv(), 10.0)
            survived += 1
    assert 0 < survived < len(connections)
    await until(lambda: len(children(server)) == PROCESSES, "there are as many as before")
    assert before[0] not in children(server)
    # What the dead process had counted is not forgotten.
    assert samples(server)[sessions] >= len(connections)
    assert samples(server)["voiceserver_process_restarts_total"] == 1
    for connection in connections:
        await connection.close()


async def test_all_drain_and_the_exit_code_is_0(
    server: ServerProcess, connections: list[ClientConnection]
) -> None:
    pids = children(server)
    server.signal(signal.SIGTERM)
    for connection in connections:
        assert await close_code_of(connection) == 1012
    assert await asyncio.to_thread(server.wait) == 0
    assert not any(map(is_alive, pids))


async def test_the_drain_button_of_one_process_drains_all(server: ServerProcess) -> None:
    status, _ = await asyncio.to_thread(_press, server)
    assert status == 202
    assert await asyncio.to_thread(server.wait) == 0


def _press(server: ServerProcess) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    token = admin.read(server.port)
    headers = {"X-Voiceserver-Action": "drain", "Authorization": f"Bearer {token}"}
    connection.request("POST", "/v1/drain", headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def test_nobody_outlives_the_supervisor(server: ServerProcess) -> None:
    pids = children(server)
    workers = [pid for child in pids for pid in _children(Path(f"/proc/{child}/task/{child}"))]
    assert workers
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(map(is_alive, [*pids, *workers])), "children and their workers end")


def test_a_setting_that_no_process_can_serve_with_ends_the_supervisor_with_2() -> None:
    settings = ("server.processes=2", "stages.reply.engine=voiceserver.testing.engines:Nothing")
    server = ServerProcess(*SMALL[:2], SMALL[3], *settings)
    try:
        assert server.wait() == 2
        assert any("error:" in line for line in server.plain)
    finally:
        server.end()


async def test_a_process_that_hangs_is_noticed_and_replaced(
    server: ServerProcess, connections: list[ClientConnection]
) -> None:
    before = children(server)
    os.kill(before[0], signal.SIGSTOP)
    entry = await asyncio.to_thread(server.wait_for, "server process hung")
    assert entry["pid"] == before[0]
    await asyncio.to_thread(server.wait_for, "server process lost")
    # Its callers hear of it, the others are served on.
    ended = served = 0
    for connection in connections:
        try:
            await connection.send('{"type":"session.update","event_id":"still there?"}')
            await asyncio.wait_for(connection.recv(), 30.0)
            served += 1
        except ConnectionClosed:
            ended += 1
    assert ended > 0
    assert served > 0
    await until(lambda: len(children(server)) == PROCESSES, "there are as many as before")
    assert before[0] not in children(server)


def test_a_process_that_hangs_does_not_keep_the_server_from_ending(server: ServerProcess) -> None:
    pids = children(server)
    os.kill(pids[0], signal.SIGSTOP)
    server.signal(signal.SIGTERM)
    assert server.wait() == 1
    assert not any(map(is_alive, pids))


def test_a_process_that_hangs_does_not_outlive_the_supervisor(server: ServerProcess) -> None:
    pids = children(server)
    os.kill(pids[0], signal.SIGSTOP)
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(map(is_alive, pids)), "children end")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
def test_a_supervisor_without_descriptors_goes_on_and_starts_again_later(server: ServerProcess) -> None:
    supervisor, pids = server.process.pid, children(server)
    limits = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{supervisor}/fd"))
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (used - 1, limits[1]))
    os.kill(pids[0], signal.SIGKILL)
    entry = server.wait_for("server process cannot be started")
    assert entry["reason"] == "Too many open files"
    assert entry["retry_after_ms"] > 0
    assert is_alive(pids[1])
    status, _ = server.get("/healthz")
    assert status == 200
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, limits)
    wait_until(lambda: len(children(server)) == PROCESSES, "there are as many as before")


async def test_keys_and_their_limits_are_those_of_the_whole_server(tmp_path: Path) -> None:
    key, kept = new_key()
    keys_file = tmp_path / "keys.toml"
    keys_file.write_text(f'[keys.app]\nhash = "{kept}"\nmax_sessions = 1\n')
    settings = (f"server.processes={PROCESSES}", f"auth.keys_file={keys_file}", "session.resume_window_ms=0")
    server = ServerProcess(*settings, *SMALL)
    try:
        await asyncio.to_thread(server.wait_for, "all processes started")
        token = await asyncio.to_thread(_client_token, server, key)
        for count in range(12):
            bearer = token if count % 2 else key
            async with contextlib.AsyncExitStack() as stack:
                headers = {"Authorization": f"Bearer {bearer}"}
                first = await _connect_when_free(server, headers)
                await stack.enter_async_context(first)
                for _ in range(4):
                    with pytest.raises(InvalidStatus) as caught:
                        await connect(server.url, additional_headers=headers)
                    assert caught.value.response.status_code == 429
    finally:
        server.end()


async def _connect_when_free(server: ServerProcess, headers: dict[str, str]) -> ClientConnection:
    """Who left a moment ago may still be counted."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(InvalidStatus):
                return await connect(server.url, additional_headers=headers)


def _client_token(server: ServerProcess, key: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", CLIENT_SECRETS, headers={"Authorization": f"Bearer {key}"})
        return str(json.loads(connection.getresponse().read())["value"])


def refusal(*settings: str, port: int = 0) -> str:
    """What ``serve`` says that has to end with 2."""
    flags = [f"--set={setting}" for setting in ("server.processes=2", *SMALL, *settings)]
    command = [sys.executable, "-m", "voiceserver", "serve", f"--port={port}", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)
    assert ended.returncode == 2, ended.stderr
    return ended.stderr


def test_a_second_server_does_not_join_the_port_of_the_first(server: ServerProcess) -> None:
    said = refusal(port=server.port)
    assert said == f"voiceserver: error: cannot listen on 127.0.0.1:{server.port}: Address already in use\n"


class TestHoldingThePort:
    def test_a_port_whose_server_does_not_listen_yet_is_refused(self) -> None:
        with _hold_port("127.0.0.1", 0) as held:
            port = held.getsockname()[1]
            with pytest.raises(StartError, match=f"{port}: Address already in use"):
                _hold_port("127.0.0.1", port)

    def test_a_child_may_share_the_port_that_is_held(self) -> None:
        with _hold_port("127.0.0.1", 0) as held, socket.socket() as child:
            child.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            child.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            child.bind(held.getsockname())
            child.listen()

    @pytest.mark.parametrize("was_shared", [False, True])
    def test_callers_of_a_server_that_has_ended_do_not_keep_the_port(self, was_shared: bool) -> None:
        with socket.socket() as past:
            past.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            past.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, was_shared)
            past.bind(("127.0.0.1", 0))
            past.listen()
            address = past.getsockname()
            with socket.create_connection(address) as caller:
                past.accept()[0].close()  # who closes first lingers
                assert caller.recv(1) == b""
        _hold_port(*address).close()


def test_a_certificate_that_cannot_be_used_is_told_once() -> None:
    said = refusal("server.tls_cert=/nowhere/cert.pem")
    assert said.count("server.tls_cert") == 1, said
