"""The far end of ``benchmarks.connection``: raw sockets and prepared bytes, so that the client is never what is measured."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Sequence

MESSAGE_BYTES = 3_200
PATH = "/v1/stream"
_HEAD_END = b"\r\n\r\n"
_CONCURRENCY = 256


class ClientFailed(Exception):
    """The server closed a connection, or did not answer in time."""


def frame(payload: bytes, opcode: int = 2) -> bytes:
    """A masked frame, as a client must send it."""
    mask = b"\x11\xa2\x03\xf4"
    length = len(payload)
    head = (
        bytes((0x80 | opcode, 0x80 | length))
        if length < 126
        else struct.pack("!BBH", 0x80 | opcode, 0xFE, length)
    )
    masked = int.from_bytes(payload, "big") ^ int.from_bytes((mask * (length // 4 + 1))[:length], "big")
    return head + mask + masked.to_bytes(length, "big")


def request_head(port: int, *, deflate: bool = False) -> bytes:
    """deflate: offer compression, as browsers do."""
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n" if deflate else ""
    return (
        f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{offer}"
        "User-Agent: Python/3.11 websockets/15.0\r\n\r\n"
    ).encode()


def connect(port: int, count: int, timeout_s: float = 600.0, *, deflate: bool = False) -> list[socket.socket]:
    """``count`` open WebSockets; ``_CONCURRENCY`` handshakes are in progress at any time."""
    request = request_head(port, deflate=deflate)
    poll = select.epoll()
    coming: dict[int, socket.socket] = {}
    heads: dict[int, bytes] = {}
    done: list[socket.socket] = []
    give_up_s = time.monotonic() + timeout_s
    while len(done) < count:
        while len(coming) < _CONCURRENCY and len(done) + len(coming) < count:
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                sock.connect(("127.0.0.1", port))
            coming[sock.fileno()] = sock
            poll.register(sock, select.EPOLLOUT)
        for fd, events in poll.poll(1.0):
            sock = coming[fd]
            if events & select.EPOLLOUT and fd not in heads:
                sock.sendall(request)
                heads[fd] = b""
                poll.modify(fd, select.EPOLLIN)
            elif events & select.EPOLLIN:
                heads[fd] += sock.recv(4096)
                if _HEAD_END in heads[fd]:
                    if not heads[fd].startswith(b"HTTP/1.1 101"):
                        raise ClientFailed(heads[fd].split(b"\r\n")[0].decode())
                    poll.unregister(fd)
                    done.append(coming.pop(fd))
                    del heads[fd]
        if time.monotonic() > give_up_s:
            raise ClientFailed(f"{len(done)} of {count} connections after {timeout_s:.0f} s")
    poll.close()
    return done


def close(sockets: Sequence[socket.socket]) -> None:
    """Reset them: nothing is to linger in the kernel between two measurements."""
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


def send_bursts(
    sockets: Sequence[socket.socket], burst: int, rounds: int, period_s: float, *, reads: bool
) -> int:
    """``burst`` messages at once on each socket, ``rounds`` times, every ``period_s``; the messages sent. reads: wait for as
    many bytes to come back."""
    data = frame(bytes(MESSAGE_BYTES)) * burst
    expected = (MESSAGE_BYTES + 4) * burst
    due_s = time.monotonic()
    for _ in range(rounds):
        for sock in sockets:
            sock.setblocking(True)
            sock.sendall(data)
        if reads:
            for sock in sockets:
                _read(sock, expected)
        due_s += period_s
        time.sleep(max(due_s - time.monotonic(), 0.0))
    return len(sockets) * burst * rounds


def _read(sock: socket.socket, size: int) -> None:
    sock.settimeout(30.0)
    while size > 0:
        data = sock.recv(min(size, 262_144))
        if not data:
            raise ClientFailed("the server closed a connection")
        size -= len(data)


def drain_greetings(sockets: Sequence[socket.socket]) -> None:
    """Read what a server says first."""
    time.sleep(0.2)
    for sock in sockets:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.recv(65_536)


def receive_all(sockets: Sequence[socket.socket], bytes_each: int, timeout_s: float = 60.0) -> None:
    """Read until each socket has had ``bytes_each``."""
    poll = select.epoll()
    left = {sock.fileno(): bytes_each for sock in sockets}
    by_fd = {sock.fileno(): sock for sock in sockets}
    for sock in sockets:
        sock.setblocking(False)
        poll.register(sock, select.EPOLLIN)
    give_up_s = time.monotonic() + timeout_s
    while left:
        for fd, _ in poll.poll(1.0):
            with contextlib.suppress(BlockingIOError):
                data = by_fd[fd].recv(262_144)
                if not data:
                    raise ClientFailed("the server closed a connection")
                left[fd] -= len(data)
            if left[fd] <= 0:
                del left[fd]
                poll.unregister(fd)
        if time.monotonic() > give_up_s:
            raise ClientFailed(f"{len(left)} sockets miss bytes")
    poll.close()
