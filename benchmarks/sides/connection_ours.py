"""The whole server as one side of ``benchmarks.connection``, and on ports of their own its connections without a session."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.report.results import cpu_seconds
from benchmarks.sides.connection_engines import RATE_HZ

if TYPE_CHECKING:
    from voiceserver.config.schema import Config
    from voiceserver.events.events import Accounting
    from voiceserver.server.server import Server
    from voiceserver.transport.call import Call
    from voiceserver.transport.services import Services
    from voiceserver.transport.upgrade import PendingCaller

BACKLOG = 4_096
HOST = "127.0.0.1"
TALK_MESSAGES = 100
_STAGES = {
    "vad": ("Taker", {}),
    "reply": ("Asked", {}),
    "tts": ("Talker", {"messages": str(TALK_MESSAGES)}),
}


class Counted:
    """A caller whose binary messages make no call. ``caller``: the one that it stands for."""

    def __init__(self, caller: PendingCaller, take: Callable[[list[bytes]], bool]) -> None:
        self._caller = caller
        self.codec = caller.codec
        self.active_ms, self.opened_ms = caller.active_ms, caller.opened_ms
        self.receive_run = take

    def receive_binary(self, payload: bytes) -> None:
        self.receive_run([payload])

    def begin(self) -> Call | None:
        return self._caller.begin()

    def receive_text(self, payload: bytes) -> None: ...

    def receive_pong(self, payload: bytes) -> None: ...

    def receive_close(self, code: int, reason: str) -> None: ...

    def receive_violation(self, code: int, reason: str) -> None: ...

    def on_outage(self, now_ms: float) -> None: ...

    def leave(self) -> None: ...


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
            flags.append((f"stages.{stage}.engine", f"benchmarks.sides.connection_engines:{engine}", "--set"))
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

            def open(self, caller: Call | PendingCaller, now_ms: float) -> None:
                super().open(caller, now_ms)
                if self.pending is not None:
                    self.pending = Counted(self.pending, self.take)

            def take(self, payloads: list[bytes]) -> bool:
                side._counted += len(payloads)
                return True

        class Echo(Callback):
            __slots__ = ()

            def take(self, payloads: list[bytes]) -> bool:
                side._counted += len(payloads)
                for payload in payloads:
                    self.write(build_frame(payload))
                return True

        return {"callback": Callback, "echo": Echo}

    def received(self) -> int:
        return self._counted + round(sum(one.consumed_ms for one in self._books()) / 100)

    def _books(self) -> list[Accounting]:
        """Of open connections; calls that are kept for a resume come to an end some time."""
        sessions = [one.call.session for one in self.services.state.connections if one.call is not None]
        return [session.accounting() for session in sessions if session.audio_input is not None]

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
