"""Accepts TLS connections, and bounds their handshakes in time and in number, like all connections without a request.

::

    accept --> handshake, at most ``handshake_timeout_ms`` --> ``Connection``
                  '--> too late, not TLS, one too many: dropped
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Iterable
from typing import Final, Protocol

from voiceserver.transport.connection import Connection
from voiceserver.transport.services import Services

# Without a free descriptor, the kernel would say again and again that somebody waits.
_REST_S: Final = 0.1


class BoundSocket(Protocol):
    def fileno(self) -> int: ...


class TlsListener:
    """Listens on ``bound`` sockets from its making to ``close``; they stay the caller's."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bound: Iterable[BoundSocket],
        backlog: int,
        tls: ssl.SSLContext,
        services: Services,
    ) -> None:
        self._loop = loop
        self._tls = tls
        self._services = services
        self._sockets = [socket.socket(fileno=os.dup(one.fileno())) for one in bound]
        self._handshakes: set[_Handshake] = set()
        for one in self._sockets:
            one.setblocking(False)
            one.listen(backlog)
            loop.add_reader(one.fileno(), self._accept, one)

    def close(self) -> None:
        """Accept no more, and end the handshakes under way. Idempotent."""
        for one in self._sockets:
            self._loop.remove_reader(one.fileno())
            one.close()
        self._sockets = []
        for handshake in self._handshakes:
            handshake.abort()

    def _accept(self, listening: socket.socket) -> None:
        """One of those who wait: others have their turn of the loop between two of them."""
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError:
            self._loop.remove_reader(listening.fileno())
            self._loop.call_later(_REST_S, self._accept_again, listening)
            return
        accepted.setblocking(False)
        handshake = _Handshake(self._loop.create_task(self._shake_hands(accepted)))
        self._handshakes.add(handshake)
        handshake.task.add_done_callback(lambda done: self._forget(handshake))
        state = self._services.state
        state.unopened.add(handshake, state.sessions)

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    async def _shake_hands(self, accepted: socket.socket) -> None:
        timeout_s = self._services.config.server.handshake_timeout_ms / 1000.0
        try:
            await self._loop.connect_accepted_socket(
                lambda: Connection(self._services), accepted, ssl=self._tls, ssl_handshake_timeout=timeout_s
            )
        except OSError:  # of TLS, of the socket, and of time
            accepted.close()

    def _forget(self, handshake: _Handshake) -> None:
        self._handshakes.discard(handshake)
        self._services.state.unopened.discard(handshake)


class _Handshake:
    """One that is under way."""

    __slots__ = ("task",)

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task

    def abort(self) -> None:
        """Drop the connection."""
        self.task.cancel()
