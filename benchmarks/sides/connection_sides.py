"""The servers that ``benchmarks.connection`` compares, one process each: ``python -m benchmarks.sides.connection_sides ours``.

=============  ======================================================================================================
ours           the whole server: session, codec, shared-memory ring to a worker; beside it, on ports of their own,
               the same connection with the session left out (``callback``, ``echo``)
websockets     ``websockets.asyncio.server.serve`` with its defaults, on uvloop: a coroutine per connection
picows         ``picows.ws_create_server``: a callback per frame
ours_unfrozen  ours, with the collector as Python has it; ours_with_tls: see ``benchmarks.sides.connection_tls``
=============  ======================================================================================================

It prints one JSON line with its ports, then answers each line of standard input with one of its own figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import uvloop

from benchmarks.report.results import cpu_seconds, pss_bytes
from benchmarks.sides.connection_ours import BACKLOG, HOST, Ours, OursUnfrozen
from benchmarks.sides.connection_tls import OursWithTls
from voiceserver_clients.command import raise_file_limit


class Side(Protocol):
    """ports: by what they serve."""

    ports: dict[str, int]

    async def start(self) -> None: ...

    def received(self) -> int:
        """Messages that arrived where they belong, ever."""


class Websockets:
    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self._counted = 0

    async def start(self) -> None:
        from websockets.asyncio.server import ServerConnection, serve
        from websockets.exceptions import ConnectionClosed

        async def take(connection: ServerConnection) -> None:
            with contextlib.suppress(ConnectionClosed):
                async for _ in connection:
                    self._counted += 1

        async def echo(connection: ServerConnection) -> None:
            with contextlib.suppress(ConnectionClosed):
                async for message in connection:
                    self._counted += 1
                    await connection.send(message)

        for name, handler in (("callback", take), ("echo", echo)):
            server = await serve(handler, HOST, 0, backlog=BACKLOG)
            self.ports[name] = next(iter(server.sockets)).getsockname()[1]

    def received(self) -> int:
        return self._counted


class Picows:
    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self._counted = 0

    async def start(self) -> None:
        import picows

        side = self

        class Take(picows.WSListener):
            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                frame.get_payload_as_bytes()
                side._counted += 1

        class Echo(picows.WSListener):
            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                side._counted += 1
                transport.send(frame.msg_type, frame.get_payload_as_bytes())

        def made(kind: type[picows.WSListener], request: object) -> picows.WSListener:
            return kind()

        for name, kind in (("callback", Take), ("echo", Echo)):
            server = await picows.ws_create_server(partial(made, kind), HOST, 0, backlog=BACKLOG)
            self.ports[name] = server.sockets[0].getsockname()[1]

    def received(self) -> int:
        return self._counted


SIDES: dict[str, Callable[[], Side]] = {
    "ours": Ours,
    "ours_unfrozen": OursUnfrozen,
    "ours_with_tls": OursWithTls,
    "websockets": Websockets,
    "picows": Picows,
}


class Pauses:
    """The longest full collection so far."""

    def __init__(self) -> None:
        self.worst_ms = 0.0
        self._began_s = 0.0
        gc.callbacks.append(self._on_collection)

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began_s = time.perf_counter()
        elif info["generation"] == 2:
            self.worst_ms = max(self.worst_ms, (time.perf_counter() - self._began_s) * 1000.0)


def _timed_collection_ms() -> float:
    began_s = time.perf_counter()
    gc.collect()
    return (time.perf_counter() - began_s) * 1000.0


def _collections() -> dict[str, float]:
    """One full collection as things are, one of all that lives, and one after a freeze. Leaves the collector as it was."""
    was_frozen = gc.get_freeze_count() > 0
    figures = {"as_it_runs_ms": _timed_collection_ms()}
    gc.unfreeze()
    figures["plain_ms"] = _timed_collection_ms()
    gc.freeze()
    figures["frozen_ms"] = _timed_collection_ms()
    if not was_frozen:
        gc.unfreeze()
    return figures


async def _run(side: Side) -> None:
    raise_file_limit()
    pauses = Pauses()
    await side.start()
    loop = asyncio.get_running_loop()
    commands: asyncio.Queue[str] = asyncio.Queue()
    os.set_blocking(0, False)
    loop.add_reader(0, lambda: commands.put_nowait(os.read(0, 4096).decode()))
    _say(side.ports)
    while command := await commands.get():
        what = command.strip()
        if what == "collect":
            _say(_collections())
        elif what == "ring" and isinstance(side, Ours):
            _say(side.ring())
        elif what in ("hold", "release") and isinstance(side, Ours):
            side.hold_worker(what == "hold")
            _say({})
        else:
            memory = {"memory_bytes": pss_bytes()} if what == "memory" else {}
            _say(
                {
                    "cpu_s": cpu_seconds(),
                    **memory,
                    "received": side.received(),
                    "worst_collection_ms": pauses.worst_ms,
                }
            )


def _say(figures: object) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    uvloop.run(_run(SIDES[sys.argv[1]]()))
    os._exit(0)  # thousands of sockets need no goodbye
