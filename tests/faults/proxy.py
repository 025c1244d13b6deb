"""A TCP proxy with bad manners, between a caller and a server: it delays, throttles, swallows and cuts.

::

    async with Proxy(server.port) as proxy:
        ... call proxy.url ...
        proxy.cut()

Every change holds for the connections that are there and for those that come.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self

CHUNK_BYTES = 4_096


class Proxy:
    """delay_ms: added to each direction; bytes_per_s: of each direction, 0 for no limit; cut_after: bytes from the caller,
    after which its connection is cut, once."""

    def __init__(self, port: int, *, delay_ms: float = 0.0, bytes_per_s: float = 0.0) -> None:
        self._to_port = port
        self.delay_ms = delay_ms
        self.bytes_per_s = bytes_per_s
        self.cut_after: int | None = None
        self.is_swallowing = False  # takes from both sides and gives to neither: a half-open connection
        self.swallows_answers = False  # what the server says from now on does not arrive
        self.accepts = True
        self.connections = 0
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    def cut(self) -> None:
        """Reset every connection, on both sides."""
        for pair in self._pairs:
            for writer in pair:
                _reset(writer)
        self._pairs.clear()

    def vanish(self) -> None:
        """The caller's side is reset; the server hears nothing of it."""
        self.is_swallowing = True
        for caller, _ in self._pairs:
            _reset(caller)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        if not self.accepts:
            _reset(writer)
            return
        out_reader, out_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        pair = (writer, out_writer)
        self._pairs.add(pair)
        try:
            await asyncio.gather(
                self._pump(reader, out_writer, writer, is_up=True),
                self._pump(out_reader, writer, writer, is_up=False),
            )
        finally:
            self._pairs.discard(pair)
            for one in pair:
                one.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        caller: asyncio.StreamWriter,
        *,
        is_up: bool,
    ) -> None:
        is_broken = False  # what has once lost something never recovers
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if self.delay_ms:
                    await asyncio.sleep(self.delay_ms / 1000)
                if self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                if is_up and self.cut_after is not None:
                    self.cut_after -= len(data)
                    if self.cut_after <= 0:
                        self.cut_after = None
                        self.cut()
                        return
                if self.is_swallowing or (self.swallows_answers and not is_up):
                    is_broken = True
                elif is_broken and is_up:  # the network is back, and knows nothing of this connection
                    _reset(caller)
                    return
                elif not is_broken:
                    writer.write(data)
                    await writer.drain()
            if not is_broken and writer.can_write_eof():
                writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
