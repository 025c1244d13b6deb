"""The client side of a WebSocket with nothing around it: one slotted protocol object, frames built once for all connections.

For load generators, where a library's object per connection would be the bottleneck. It speaks to well-behaved servers only:
complete unfragmented frames in, prebuilt masked frames out; anything else is counted as a fault and closes the connection.
"""

from __future__ import annotations

import asyncio
import base64
import os
from typing import Final, cast

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

ABNORMAL: Final = 1006
MAX_HEAD_BYTES: Final = 16_384


def build_frame(opcode: int, payload: bytes, mask: bytes | None = None) -> bytes:
    """One complete masked frame. The mask is random unless given; a frame may be sent any number of times."""
    mask = os.urandom(4) if mask is None else mask
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 65_536:
        head = bytes((0x80 | opcode, 0x80 | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + length.to_bytes(8, "big")
    key = (mask * (length // 4 + 1))[:length]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return head + mask + masked.to_bytes(length, "big")


def build_request(host: str, target: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


class RawConnection(asyncio.Protocol):
    """One connection. Subclasses override the ``on_*`` callbacks; ``transport`` is there from ``on_open`` on."""

    __slots__ = ("_buffer", "_request", "close_code", "is_open", "transport")

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._buffer = b""
        self.is_open = False
        self.close_code = 0
        self.transport: asyncio.Transport | None = None

    # ------------------------------------------------------------------------------------------------- to override

    def on_open(self) -> None:
        """The handshake succeeded."""

    def on_refused(self, status: int, retry_after_ms: float) -> None:
        """The server answered something else than 101."""

    def on_text(self, payload: bytes) -> None:
        """A text message."""

    def on_binary(self, size: int) -> None:
        """A binary message of ``size`` bytes."""

    def on_pong(self, payload: bytes) -> None:
        """The answer to a ping of ours."""

    def on_lost(self, code: int) -> None:
        """The connection ended after ``on_open``; 1006 when no close frame came."""

    # --------------------------------------------------------------------------------------------------- the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._request)
        self._request = b""

    def connection_lost(self, error: Exception | None) -> None:
        if self.is_open:
            self.is_open = False
            self.on_lost(self.close_code or ABNORMAL)
        self.transport = None

    def send(self, frame: bytes) -> None:  # hot
        """A frame of :func:`build_frame`. Nothing happens once the connection is gone."""
        if self.transport is not None:
            self.transport.write(frame)

    def data_received(self, data: bytes) -> None:  # hot
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        at = 0 if self.is_open else self._receive_head(data)
        if not self.is_open:
            return
        end = len(data)
        while at < end:
            start, stop = _frame_at(data, at, end)
            if stop > end or start < 0:
                self._buffer = data[at:]
                return
            self._receive_frame(data[at], data, start, stop)
            at = stop

    def _receive_head(self, data: bytes) -> int:
        """Where the frames begin, once the connection is open."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_HEAD_BYTES:
                self.abort()
            self._buffer = data
            return 0
        lines = data[:end].decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ", 2)[1]) if lines[0].startswith("HTTP/1.1 ") else 0
        if status == 101:
            self.is_open = True
            self.on_open()
            return end + 4
        self.on_refused(status, _retry_after_ms(lines))
        self.abort()
        return 0

    def _receive_frame(self, head: int, data: bytes, start: int, stop: int) -> None:
        opcode = head & 0x0F
        if opcode == BINARY:
            self.on_binary(stop - start)
        elif opcode == TEXT:
            self.on_text(data[start:stop])
        elif opcode == PONG:
            self.on_pong(data[start:stop])
        elif opcode == PING:
            self.send(build_frame(PONG, data[start:stop]))
        elif opcode == CLOSE:
            self.close_code = int.from_bytes(data[start : start + 2], "big") if stop - start >= 2 else 1005
            self.send(build_frame(CLOSE, data[start : start + 2]))
            if self.transport is not None:
                self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def _frame_at(data: bytes, at: int, end: int) -> tuple[int, int]:
    """(start, stop) of the payload; (-1, 0) when even the head is not complete."""
    if end - at < 2:
        return -1, 0
    length = data[at + 1]
    if length < 126:
        return at + 2, at + 2 + length
    if length == 126:
        if end - at < 4:
            return -1, 0
        return at + 4, at + 4 + (data[at + 2] << 8 | data[at + 3])
    if end - at < 10:
        return -1, 0
    return at + 10, at + 10 + int.from_bytes(data[at + 2 : at + 10], "big")


def _retry_after_ms(lines: list[str]) -> float:
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "retry-after" and value.strip().isdigit():
            return float(value) * 1000
    return 0.0
