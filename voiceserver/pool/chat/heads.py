"""The head of an answer, bounded before the HTTP library reads it.

An endpoint may send any number of interim answers (100, 103) before the one that counts, and the library reads all that came at
once without giving the loop back: 64 KiB of them take some 70 ms, and there is no end to them. Rule: an answer has at most
MAX_INTERIM interim ones, and they and its own head MAX_HEAD_BYTES together.

``HeadLimit`` is pure; the backend and its streams ask it about what comes from the network.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpcore
import httpx

MAX_INTERIM: Final = 16
MAX_HEAD_BYTES: Final = 32_768
_END: Final = re.compile(rb"\n\r?\n")
_INTERIM: Final = re.compile(rb"HTTP/1\.[0-9] 1(?!01)[0-9]{2}")
_BEGINNING: Final = b"HTTP/1."
_SocketOptions = Iterable[
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
]


class HeadTooLong(Exception):
    """More comes before the answer than any answer has before it."""


class HeadLimit:
    """``expect`` when a request was sent, ``feed`` what comes."""

    __slots__ = ("_head", "_interims", "_is_expected", "_taken_bytes")

    def __init__(self) -> None:
        self._is_expected = False
        self.expect()

    def expect(self) -> None:
        if not self._is_expected:
            self._is_expected = True
            self._head = bytearray()
            self._taken_bytes = 0
            self._interims = 0

    def feed(self, data: bytes) -> None:
        """Raises HeadTooLong."""
        if not self._is_expected:
            return
        self._head += data
        while self._may_be_head() and (end := _END.search(self._head)) is not None:
            if _INTERIM.match(self._head) is None:
                self._end()
                return
            self._interims += 1
            self._taken_bytes += end.end()
            del self._head[: end.end()]
            self._check(0)
        if not self._may_be_head():  # a body, or nothing of HTTP: the library judges
            self._end()
        else:
            self._check(len(self._head))

    def _check(self, open_bytes: int) -> None:
        if self._interims > MAX_INTERIM or self._taken_bytes + open_bytes > MAX_HEAD_BYTES:
            raise HeadTooLong

    def _may_be_head(self) -> bool:
        return self._head.startswith(_BEGINNING) or _BEGINNING.startswith(self._head)

    def _end(self) -> None:
        self._is_expected = False
        self._head = bytearray()


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._limit = HeadLimit()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # the library's
        data = await self._stream.read(max_bytes, timeout)
        try:
            self._limit.feed(data)
        except HeadTooLong:
            raise httpcore.RemoteProtocolError("the head of its answer has no end") from None
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._limit.expect()
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, backend: httpcore.AsyncNetworkBackend) -> None:
        self._backend = backend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _SocketOptions | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._backend.connect_tcp(host, port, timeout, local_address, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


def bound_heads(transport: httpx.AsyncHTTPTransport) -> httpx.AsyncHTTPTransport:
    """``transport`` itself, whose connections have the limit. Only its pool takes a backend, and httpx passes none on."""
    pool = transport._pool
    pool._network_backend = _Backend(pool._network_backend)
    return transport
