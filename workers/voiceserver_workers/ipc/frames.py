"""Messages with file descriptors over a Unix stream socket: how the server talks to its forkserver.

A frame is ``length (4 bytes), number of fds (1 byte), body``; the bodies are structs of ``messages``.
The fds travel beside the first byte (SCM_RIGHTS) and arrive in order, those of one frame together, so the reader keeps one
queue of bytes and one of fds, however the kernel cuts the stream. A receiver that has no descriptor free gets the bytes alone:
the frame says so by its number of fds.
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
    """One message. ``fds`` belong to the receiver. ``is_complete`` False: fds came with it, and could not be received."""

    body: bytes
    fds: list[int]
    is_complete: bool = True


def send_frame(sock: socket.socket, body: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message. The fds are duplicated by the kernel; the caller still owns its own.

    Raises OSError when nothing was sent: a non-blocking socket is full, or too many fds are on their way. Raises
    ConnectionError when the peer is gone, or has half of the message and does not take the rest.
    """
    data = _HEAD.pack(len(body), len(fds)) + body
    sent = socket.send_fds(sock, [data], list(fds)) if fds else sock.send(data)
    if sent < len(data):
        try:
            sock.sendall(data[sent:])
        except OSError as error:
            raise BrokenPipeError("half a message was sent") from error


class FrameReader:
    """Reads one socket; raises EOFError at its end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._bytes = bytearray()
        self._fds: deque[list[int]] = deque()  # by frame

    def read(self) -> list[Frame]:
        """What one ``recv`` completes, maybe nothing. Raises EOFError, and BlockingIOError as the socket does."""
        try:
            data, fds, flags, _ = socket.recv_fds(self._sock, 65_536, _MAX_FDS)
        except ConnectionResetError:
            data, fds, flags = b"", [], 0
        for fd in fds:
            os.set_inheritable(fd, False)
        if fds or flags & socket.MSG_CTRUNC:
            self._fds.append(fds)
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
            _close_all(self._fds.popleft())

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
        if not count:
            return Frame(body, [])
        fds = self._fds.popleft() if self._fds else []
        if len(fds) == count:
            return Frame(body, fds)
        _close_all(fds)
        return Frame(body, [], is_complete=False)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
