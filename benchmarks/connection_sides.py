"""The servers that ``benchmarks.connection`` compares, one process each: ``python -m benchmarks.connection_sides ours``.

=============  ======================================================================================================
ours           the whole server: session, codec, shared-memory ring to a worker; beside it, on ports of their own,
               the same connection with the session left out (``callback``, ``echo``)
websockets     ``websockets.asyncio.server.serve`` with its defaults, on uvloop: a coroutine per connection
picows         ``picows.ws_create_server``: a callback per frame
ours_unfrozen  ours, with the collector as Python has it; ours_with_tls: see ``benchmarks.connection_tls``
=============  ======================================================================================================

It prints one JSON line with its ports, then answers each line of standard input with one of its own figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import uvloop

from benchmarks.connection_engines import RATE_HZ
from benchmarks.report import cpu_seconds, pss_bytes
from voiceserver_clients.command import raise_file_limit

if TYPE_CHECKING:
    from voiceserver.config.schema import Config
    from voiceserver.events.events import Accounting
    from voiceserver.server.server import Server
    from voiceserver.transport.services import Services

BACKLOG = 4_096
HOST = "127.0.0.1"
TALK_MESSAGES = 100
_STAGES = {
    "vad": ("Taker", {}),
    "reply": ("Asked", {}),
    "tts": ("Talker", {"messages": str(TALK_MESSAGES)}),
}


class Side(Protocol):
    """ports: by what they serve."""

    ports: dict[str, int]

    async def start(self) -> None: ...

    def received(self) -> int:
        """Messages that arrived where they belong, ever."""


class Ours:
    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self._counted = 0

    async def start(self) -> None:
        from voiceserver.config.loader import load
        from voiceserver.observability.logs import configure

        configure("error", "json")
        flags = [
            ("server.port", "0", "--port"),
            ("server.log_level", "error", "--set"),
            ("session.output_rate_hz", str(RATE_HZ), "--set"),
            ("stages.stt.engine", "none", "--set"),
            ("backpressure.max_talkers", "1000000", "--set"),
            ("backpressure.max_backlog_ms", "600000", "--set"),  # messages come faster than speech
        ]
        for stage, (engine, params) in _STAGES.items():
            flags.append((f"stages.{stage}.engine", f"benchmarks.connection_engines:{engine}", "--set"))
            flags += [(f"stages.{stage}.params.{name}", value, "--set") for name, value in params.items()]
        self._server = server = self.make_server(load(None, {}, flags).config)
        await server.start()
        while not server.is_ready:
            await asyncio.sleep(0.05)
        self.ports["ring"] = server.port
        loop = asyncio.get_running_loop()
        for name, kind in self.without_session().items():
            listener = await loop.create_server(partial(kind, server.services), HOST, 0, backlog=BACKLOG)
            self.ports[name] = listener.sockets[0].getsockname()[1]

    def make_server(self, config: Config) -> Server:
        from voiceserver.server.server import Server

        return Server(config)

    @property
    def services(self) -> Services:
        return self._server.services

    def without_session(self) -> dict[str, Callable[..., asyncio.Protocol]]:
        from voiceserver.transport.connection import Connection
        from voiceserver.wire.frames import build_frame

        side = self

        class Callback(Connection):
            __slots__ = ()

            def receive_run(self, payloads: list[bytes]) -> None:
                side._counted += len(payloads)

        class Echo(Connection):
            __slots__ = ()

            def receive_run(self, payloads: list[bytes]) -> None:
                side._counted += len(payloads)
                for payload in payloads:
                    self.write(build_frame(payload))

        return {"callback": Callback, "echo": Echo}

    def received(self) -> int:
        return self._counted + round(sum(one.consumed_ms for one in self._books()) / 100)

    def _books(self) -> list[Accounting]:
        """Of open connections; calls that are kept for a resume come to an end some time."""
        return [books for one in self.services.state.connections if (books := one.accounting()) is not None]

    def ring(self) -> dict[str, float]:
        """Messages that open connections have received, and those that the worker has taken. Asking costs time: take what
        happened between ``cpu_after_s`` of one answer and ``cpu_before_s`` of the next."""
        before_s = cpu_seconds()
        books = self._books()
        received_ms, consumed_ms = (
            sum(one.received_ms for one in books),
            sum(one.consumed_ms for one in books),
        )
        return {
            "received": round(received_ms / 100),
            "consumed": round(consumed_ms / 100),
            "cpu_before_s": before_s,
            "cpu_after_s": cpu_seconds(),
        }

    def hold_worker(self, is_held: bool) -> None:
        """Stop the worker that takes audio, or let it go on: what it answers is then not measured with what it is given."""
        for worker in self.services.places.pools["vad"].stats().workers:
            os.kill(worker.pid, signal.SIGSTOP if is_held else signal.SIGCONT)


class OursUnfrozen(Ours):
    """The same, with a collector that looks at every connection each time."""

    def make_server(self, config: Config) -> Server:
        from voiceserver.server.server import Server
        from voiceserver.server.upkeep import CollectorFreeze

        class Unfrozen(CollectorFreeze):
            def freeze(self, connections: int) -> None: ...

        return Server(config, freeze=Unfrozen())


def _ours_with_tls() -> Side:
    from benchmarks.connection_tls import OursWithTls

    return OursWithTls()


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
    "ours_with_tls": _ours_with_tls,
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
