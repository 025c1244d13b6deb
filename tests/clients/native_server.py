"""A small server of the native wire for client tests: it does exactly what a test scripts, on a real socket.

It shares the vocabulary (``voiceserver.events.events``) with the product and nothing else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from voiceserver.events.events import ClientEvent, ServerEvent

_decode = msgspec.json.Decoder(ClientEvent).decode


@dataclass
class Caller:
    """One accepted connection, as a script sees it."""

    socket: ServerConnection
    query: dict[str, str]
    audio: bytearray = field(default_factory=bytearray)
    events: list[ClientEvent] = field(default_factory=list)

    async def say(self, *events: ServerEvent | bytes) -> None:
        for event in events:
            await self.socket.send(event if isinstance(event, bytes) else msgspec.json.encode(event).decode())

    async def receive(self) -> ClientEvent | bytes:
        """The next message; audio is also gathered in ``audio``."""
        message = await self.socket.recv()
        if isinstance(message, bytes):
            self.audio += message
            return message
        event = _decode(message)
        self.events.append(event)
        return event

    async def receive_audio(self, size: int) -> None:
        """Until ``size`` bytes of audio are here."""
        while len(self.audio) < size:
            await self.receive()


Script = Callable[[Caller], Awaitable[None]]


@dataclass
class NativeServer:
    url: str
    refusals: list[tuple[int, str, str]]
    callers: list[Caller]
    faults: list[BaseException]


@asynccontextmanager
async def native_server(
    *scripts: Script, refusals: tuple[tuple[int, str, str], ...] = (), tls: ssl.SSLContext | None = None
) -> AsyncIterator[NativeServer]:
    """Run ``scripts``, one per connection in order (the last one again for any more).

    ``refusals`` answer the next handshakes instead: (HTTP status, Retry-After or "", body).
    """
    state = NativeServer("", list(refusals), [], [])

    def answer(_: ServerConnection, __: Request) -> Response | None:
        if not state.refusals:
            return None
        status, retry_after, body = state.refusals.pop(0)
        headers = Headers({"Content-Length": str(len(body))})
        if retry_after:
            headers["Retry-After"] = retry_after
        return Response(status, HTTPStatus(status).phrase, headers, body.encode())

    async def handle(socket: ServerConnection) -> None:
        assert socket.request is not None
        caller = Caller(socket, dict(parse_qsl(urlsplit(socket.request.path).query)))
        script = scripts[min(len(state.callers), len(scripts) - 1)]
        state.callers.append(caller)
        try:
            await script(caller)
        except ConnectionClosed:
            pass
        except Exception as fault:
            state.faults.append(fault)
            raise

    server: Server
    async with serve(
        handle, "127.0.0.1", 0, process_request=answer, compression=None, close_timeout=1, ssl=tls
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        state.url = f"ws://127.0.0.1:{port}/v1/stream" if tls is None else f"wss://localhost:{port}/v1/stream"
        async with asyncio.timeout(20):
            yield state
    assert not state.faults, state.faults
