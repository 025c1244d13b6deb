"""TLS connections before their handshake is done: bounded in time and number, and nothing of what they send is lost."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import uvloop

from tests.voiceserver.shell import upgrade
from voiceserver.config.schema import Config, ServerConfig
from voiceserver.server.server import Server
from voiceserver.testing.server import inline_pool, small_config
from voiceserver.transport.unopened import SocketLimits

TLS = Path(__file__).resolve().parents[2] / "e2e" / "tls"
HELLO = b"\x16\x03\x01\x00\xff"  # of a handshake that never goes on


def encrypted(**more: int) -> Config:
    server = ServerConfig(
        port=0, host="127.0.0.1", tls_cert=str(TLS / "cert.pem"), tls_key=str(TLS / "key.pem"), **more
    )
    return msgspec.structs.replace(small_config(), server=server)


@asynccontextmanager
async def serving(**more: int) -> AsyncIterator[Server]:
    server = Server(encrypted(**more), make_pool=inline_pool)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        await asyncio.sleep(0)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30.0):
        while not is_so():
            await asyncio.sleep(0.01)


async def call(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    trusting = ssl.create_default_context(cafile=str(TLS / "cert.pem"))
    return await asyncio.open_connection("127.0.0.1", server.port, ssl=trusting, server_hostname="localhost")


async def half_open(server: Server, count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    ends = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(count)]
    for _, writer in ends:
        writer.write(HELLO)
    return ends


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    return request.param  # type: ignore[no-any-return]


def test_a_handshake_that_never_ends_is_dropped_in_time(run: Callable[..., None]) -> None:
    async def scenario() -> None:
        async with serving(handshake_timeout_ms=300) as server:
            ends = await half_open(server, 5)
            for reader, writer in ends:
                async with asyncio.timeout(10.0):
                    assert not (await reader.read()).startswith(b"HTTP")
                writer.close()
            await until(lambda: len(server.services.state.unopened) == 0)

    run(scenario())


def test_a_flood_of_handshakes_is_bounded_and_a_caller_comes_through(run: Callable[..., None]) -> None:
    async def scenario() -> None:
        async with serving(handshake_timeout_ms=60_000) as server:
            state = server.services.state
            state.unopened.limit_to(SocketLimits(100, 6))
            ends = await half_open(server, 20)
            await until(lambda: b'reason="no_request"} 14.0' in server.services.metrics.to_text())
            reader, writer = await call(server)
            writer.write(upgrade())
            assert (await reader.readline()).startswith(b"HTTP/1.1 101")
            await until(lambda: state.sessions == 1)
            assert len(state.unopened) <= 5
            for _, one in [*ends, (reader, writer)]:
                one.close()

    run(scenario())


def test_what_comes_with_the_end_of_the_handshake_is_read(run: Callable[..., None]) -> None:
    async def scenario() -> None:
        async with serving() as server:
            # The client's last message of the handshake and its request in one packet.
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            trusting = ssl.create_default_context(cafile=str(TLS / "cert.pem"))
            tls = trusting.wrap_bio(incoming, outgoing, server_hostname="localhost")
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            while True:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
                    incoming.write(await reader.read(65_536))
                else:
                    break
            tls.write(upgrade())
            writer.write(outgoing.read())
            answer = b""
            while b"101" not in answer:
                incoming.write(await reader.read(65_536))
                try:
                    answer += tls.read()
                except ssl.SSLWantReadError:
                    continue
            writer.close()

    run(scenario())
