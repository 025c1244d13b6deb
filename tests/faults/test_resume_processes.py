"""A caller who comes back to another process than the one that keeps its call: it is handed on, over plain TCP and over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tests.e2e.serving import SMALL, STEADY, ServerProcess
from tests.faults.calling import Call, speech, with_fault
from tests.faults.proxy import Proxy
from voiceserver.events.events import TranscriptFinal
from voiceserver_clients.voice import Reconnect

TLS = Path(__file__).resolve().parents[1] / "e2e" / "tls"
PROCESSES = 2
COMES_BACK = 14  # so often that the kernel has surely given it to the other process


def started(*settings: str) -> Iterator[ServerProcess]:
    process = ServerProcess(f"server.processes={PROCESSES}", "server.log_level=info", *settings)
    try:
        process.wait_for("all processes started")
        yield process
    finally:
        process.end()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    yield from started(*SMALL, "server.check_laws=true")


@pytest.fixture(scope="module")
def safe_server() -> Iterator[ServerProcess]:
    yield from started(
        *SMALL,
        f"server.tls_cert={TLS / 'cert.pem'}",
        f"server.tls_key={TLS / 'key.pem'}",
        "server.check_laws=true",
    )


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=TLS / "cert.pem")


def figure(server: ServerProcess, name: str) -> float:
    _, text = server.get("/metrics")
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


async def hear(socket: ClientConnection, kind: str) -> dict[str, object]:
    async with asyncio.timeout(30):
        while True:
            message = await socket.recv()
            if isinstance(message, str) and (event := json.loads(message))["type"] == kind:
                return dict(event)


async def ask(socket: ClientConnection, words: str) -> str:
    await socket.send(json.dumps({"type": "item.append", "item": {"role": "user", "text": words}}))
    await socket.send(json.dumps({"type": "reply.create"}))
    return str((await hear(socket, "reply.done"))["text"])


async def come_and_go(url: str, tls: ssl.SSLContext | None) -> list[str]:
    """The answers of a call whose connection breaks after each of them."""
    socket = await connect(url, compression=None, ssl=tls)
    token = (await hear(socket, "session.ready"))["resume_token"]
    answers = []
    for count in range(COMES_BACK):
        answers.append(await ask(socket, f"what is {count} plus one"))
        socket.transport.abort()
        socket = await connect(f"{url}?resume={token}", compression=None, ssl=tls)
        ready = await hear(socket, "session.ready")
        assert ready["is_resumed"]
        assert ready["received_events"] == 2 * (count + 1)
        token = ready["resume_token"]
    await socket.send(json.dumps({"type": "session.close"}))
    closing = await hear(socket, "session.closing")
    assert closing["reason"] == "client"
    await socket.close()
    return answers


async def test_a_caller_is_handed_to_the_process_that_keeps_its_call(server: ServerProcess) -> None:
    answers = await come_and_go(server.url, None)
    assert answers[3].split()[-1] == "four." or "4" in answers[3]
    async with asyncio.timeout(30):  # what a process tells of the others is up to a second old
        while not (handed := figure(server, "voiceserver_calls_handed_on_total")):
            await asyncio.sleep(0.05)
    assert handed < COMES_BACK


async def test_a_connection_that_is_encrypted_is_carried_on(safe_server: ServerProcess) -> None:
    url = safe_server.url.replace("ws://127.0.0.1", "wss://localhost")
    answers = await come_and_go(url, trusting())
    assert len(answers) == COMES_BACK
    assert all(answers)


async def test_who_comes_back_to_a_process_that_died_hears_that_its_call_is_gone(
    server: ServerProcess,
) -> None:
    socket = await connect(server.url, compression=None)
    token = str((await hear(socket, "session.ready"))["resume_token"])
    assert await ask(socket, "hello")
    keeper = int(token.split("_")[1])
    pids = server.wait_for("all processes started")["pids"]
    os.kill(pids[keeper], signal.SIGKILL)
    statuses: list[int] = []
    while statuses.count(404) < COMES_BACK:
        with pytest.raises(
            (InvalidHandshake, OSError)
        ) as caught:  # reset, while the dead one still has callers queued
            await connect(f"{server.url}?resume={token}", compression=None, open_timeout=30)
        if isinstance(caught.value, InvalidStatus):
            statuses.append(caught.value.response.status_code)
    assert set(statuses) <= {404, 503}
    again = await connect(server.url, compression=None)
    assert await ask(again, "hello")
    await again.close()


async def test_a_token_that_names_no_process_is_nobodys(server: ServerProcess) -> None:
    for token in (
        "sess_7_0011223344556677.x",
        "sess_99999_00.x",
        "sess_-1_00.x",
        "sess_0_0011223344556677.x",
    ):
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"{server.url}?resume={token}", compression=None)
        assert caught.value.response.status_code == 404


@pytest.mark.timeout(180)
async def test_speech_goes_on_over_another_process_word_for_word() -> None:
    """Real engines: the connection breaks in mid-sentence again and again, and our client picks it up by itself."""
    for server in started(*STEADY, "server.check_laws=true"):
        usual = await with_fault(server.url, speech(), _nothing)
        async with Proxy(server.port) as proxy:

            async def cut(call: Call) -> None:
                for _ in range(6):
                    await call.until(lambda before=call.said_ms: call.said_ms > before + 250 or call.is_over)  # type: ignore[misc]
                    proxy.cut()

            call = await with_fault(
                proxy.url, speech(), cut, reconnect=Reconnect(attempts=20, first_ms=20, longest_ms=100)
            )
        assert call.reconnects >= 3
        assert call.lost_ms == 0
        assert call.finals == usual.finals
        assert len(call.of(TranscriptFinal)) == 1
        call.assert_books_balance()


async def _nothing(call: Call) -> None:
    await call.until(lambda: call.is_over)


async def test_calls_that_are_carried_on_hear_the_end_of_the_server_too() -> None:
    """A process without callers of its own stays as long as it carries on those of another."""
    settings = (*SMALL, f"server.tls_cert={TLS / 'cert.pem'}", f"server.tls_key={TLS / 'key.pem'}")
    for server in started(*settings):
        url = server.url.replace("ws://127.0.0.1", "wss://localhost")
        calls = []
        for _ in range(8):
            socket = await connect(url, compression=None, ssl=trusting())
            token = (await hear(socket, "session.ready"))["resume_token"]
            assert await ask(socket, "hello")
            socket.transport.abort()
            calls.append(await connect(f"{url}?resume={token}", compression=None, ssl=trusting()))
            assert (await hear(calls[-1], "session.ready"))["is_resumed"]
        server.signal(signal.SIGTERM)
        for socket in calls:
            await hear(socket, "server.draining")
            with contextlib.suppress(ConnectionClosed):
                await hear(socket, "never")
            assert socket.close_code == 1012
        assert await asyncio.to_thread(server.wait) == 0
