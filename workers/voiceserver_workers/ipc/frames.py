"""Messages with file descriptors over a Unix stream socket: how the server talks to its forkserver.

A frame is ``length (4 bytes), number of fds (1 byte), body``; the bodies are structs of ``messages``.
The fds travel beside the first byte (SCM_RIGHTS) and arrive
in order, so the reader keeps one queue of bytes and one of fds, however the kernel cuts the stream.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

_HEAD = struct.Struct("<IB")
_MAX_FDS = 32


class Frame(NamedTuple):
    """One message. ``fds`` belong to the receiver."""

    body: bytes
    fds: list[int]


def send_frame(sock: socket.socket, body: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message. The fds are duplicated by the kernel; the caller still owns its own.

    Raises OSError when the peer is gone, or when a non-blocking socket is full (nothing a few small messages can do).
    """
    data = _HEAD.pack(len(body), len(fds)) + body
    sent = socket.send_fds(sock, [data], list(fds)) if fds else sock.send(data)
    if sent < len(data):
        sock.sendall(data[sent:])


class FrameReader:
    """Reads one socket; raises EOFError at its end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._bytes = bytearray()
        self._fds: deque[int] = deque()

    def read(self) -> list[Frame]:
        """What one ``recv`` completes, maybe nothing. Raises EOFError, and BlockingIOError as the socket does."""
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, 65_536, _MAX_FDS)
        except ConnectionResetError:
            data, fds = b"", []
        for fd in fds:
            os.set_inheritable(fd, False)
        self._fds.extend(fds)
        if not data:
            self.close()
            raise EOFError
        self._bytes += data
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def close(self) -> None:
        """Close fds that no message has claimed."""
        while self._fds:
            os.close(self._fds.popleft())

    def _next(self) -> Frame | None:
        buffer = self._bytes
        if len(buffer) < _HEAD.size:
            return None
        length, count = _HEAD.unpack_from(buffer)
        end = _HEAD.size + length
        if len(buffer) < end:
            return None
        body = bytes(buffer[_HEAD.size : end])
        del buffer[:end]
        return Frame(body, [self._fds.popleft() for _ in range(count)])
