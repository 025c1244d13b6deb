"""The exchange: a caller who comes back to the wrong process is handed to the one that keeps its call.

::

    caller --resume=sess_1_....--> process 0 --its socket (SCM_RIGHTS) and what it sent--> process 1

The kernel gives a new connection to any process, and a resume token names the one that made it. Each process has a mailbox that
the supervisor keeps open: what was sent to one that died is answered by the supervisor (503, ``CALL_IS_ELSEWHERE``), what is sent
while there is none is read by its successor (which answers 404). Encryption does not travel with a socket: a TLS connection stays
where it came in and is relayed. Rule: a mailbox that is full is an answer (503).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Transport

MAX_HANDED_BYTES: Final = 131_072
_WRITE_LIMIT_BYTES: Final = 65_536

Welcome = Callable[[bytes], asyncio.Protocol]


def mailbox() -> tuple[socket.socket, socket.socket]:
    """``(read end, write end)``. A message is whole or not there, whoever else writes."""
    kind = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
    ends = socket.socketpair(socket.AF_UNIX, kind)
    for end in ends:
        end.setblocking(False)
    return ends


def answer_waiting(own_mailbox: socket.socket, answer: bytes) -> int:
    """Answer everybody who waits in the mailbox of a process that is gone; how many."""
    answered = 0
    while True:
        try:
            _, fds, _, _ = socket.recv_fds(own_mailbox, MAX_HANDED_BYTES, 1)
        except OSError:
            return answered
        if not fds:
            return answered
        with socket.socket(fileno=fds[0]) as caller, contextlib.suppress(OSError):
            caller.setblocking(False)
            caller.send(answer)
            caller.shutdown(socket.SHUT_WR)
        answered += 1


class Handoff:
    """``index``: this process; ``mailboxes``: where to write to each; ``own_mailbox``: the read end of its own;
    ``is_silent(process)``: it hangs, so nothing is handed to it."""

    def __init__(
        self,
        index: int,
        own_mailbox: socket.socket,
        mailboxes: Sequence[socket.socket],
        is_silent: Callable[[int], bool] = lambda process: False,
    ) -> None:
        self.index = index
        self.processes = len(mailboxes)
        self._own_mailbox = own_mailbox
        self._mailboxes = mailboxes
        self._is_silent = is_silent
        self._loop: AbstractEventLoop | None = None
        self._welcome: Welcome | None = None
        self._arriving: set[asyncio.Task[None]] = set()
        self._relays: set[_Relay] = set()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def listen(self, loop: AbstractEventLoop, welcome: Welcome) -> None:
        """``welcome(data)``: the protocol of a connection whose first bytes were ``data``."""
        self._loop, self._welcome = loop, welcome
        loop.add_reader(self._own_mailbox.fileno(), self._on_readable)

    def close(self) -> None:
        """Take no more. Idempotent."""
        if self._loop is not None:
            self._loop.remove_reader(self._own_mailbox.fileno())
            self._loop = None
        for task in self._arriving:
            task.cancel()

    async def wait_idle(self) -> None:
        """Until no connection is carried on any more: the calls of other processes that came in here."""
        await self._is_idle.wait()

    def hand_on(self, transport: Transport, process: int, data: bytes) -> bool:
        """Give the connection away; ``data``: all that it sent so far. The transport must not be used after True.

        False: that process cannot take it now, and the connection is as it was."""
        if len(data) > MAX_HANDED_BYTES or self._loop is None or self._is_silent(process):
            return False
        if transport.get_extra_info("sslcontext") is not None:
            return self._relay(transport, process, data)
        if not self._send(process, data, transport.get_extra_info("socket").fileno()):
            return False
        transport.set_protocol(asyncio.Protocol())
        transport.abort()  # closes our descriptor; the connection lives on in the other one
        return True

    def _send(self, process: int, data: bytes, fd: int) -> bool:
        try:
            socket.send_fds(self._mailboxes[process], [data], [fd])
        except OSError:
            return False
        return True

    def _relay(self, transport: Transport, process: int, data: bytes) -> bool:
        assert self._loop is not None
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            return False
        ours.setblocking(False)
        with theirs:
            if not self._send(process, data, theirs.fileno()):
                ours.close()
                return False
        near, far = _Relay(self._relay_ended), _Relay(lambda relay: None)
        self._relays.add(near)
        self._is_idle.clear()
        near.other, far.other = far, near
        transport.set_protocol(near)
        near.connection_made(transport)
        transport.pause_reading()
        self._run(self._join(far, near, ours))
        return True

    def _relay_ended(self, relay: _Relay) -> None:
        self._relays.discard(relay)
        if not self._relays:
            self._is_idle.set()

    async def _join(self, far: _Relay, near: _Relay, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: far, sock=ours)
        except OSError:
            near.end()
            return
        near.resume()

    # ------------------------------------------------------------------------------------------------- arriving

    def _on_readable(self) -> None:
        while self._loop is not None:
            try:
                data, fds, _, _ = socket.recv_fds(self._own_mailbox, MAX_HANDED_BYTES, 1)
            except OSError:
                return
            if not fds:
                return
            self._run(self._take(socket.socket(fileno=fds[0]), data))

    async def _take(self, sock: socket.socket, data: bytes) -> None:
        assert self._welcome is not None
        protocol = self._welcome(data)
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # it has gone meanwhile
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: protocol, sock)
            protocol.data_received(b"")

    def _run(self, coroutine: object) -> None:
        task = asyncio.ensure_future(cast("asyncio.Future[None]", coroutine))
        self._arriving.add(cast("asyncio.Task[None]", task))
        task.add_done_callback(lambda done: self._arriving.discard(cast("asyncio.Task[None]", done)))


class _Relay(asyncio.Protocol):
    """One end of a connection that is carried on to another process; what comes in goes out at ``other``."""

    def __init__(self, on_end: Callable[[_Relay], None]) -> None:
        self.other: _Relay | None = None
        self._on_end = on_end
        self._transport: Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("Transport", transport)
        self._transport.set_write_buffer_limits(_WRITE_LIMIT_BYTES)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other._transport is not None:
            self.other._transport.write(data)

    def eof_received(self) -> bool:
        return False  # the transport closes, and the other one after it

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_end(self)
        if self.other is not None:
            self.other.end()

    def pause_writing(self) -> None:
        other = self.other
        if other is not None and other._transport is not None and other._transport.is_reading():
            other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.resume()

    def resume(self) -> None:
        """Read on."""
        transport = self._transport
        if transport is not None and not transport.is_closing() and not transport.is_reading():
            transport.resume_reading()

    def end(self) -> None:
        """Send what is left, then close."""
        if self._transport is not None:
            self._transport.close()
