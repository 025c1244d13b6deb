"""A connection without a network: a manual loop and clock, a transport that remembers, pools that a test answers for."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from websockets.frames import Frame, Opcode

from voiceserver.config.schema import (
    AuthConfig,
    BackpressureConfig,
    Config,
    ServerConfig,
    SessionConfig,
    StageConfig,
    StagesConfig,
    TwilioConfig,
)
from voiceserver.errors import Refusal
from voiceserver.observability.logs import Log
from voiceserver.pool import Pool, PoolStats, Speech, StreamOwner
from voiceserver.server.build import Host, build
from voiceserver.server.multiprocess.peer import Peer
from voiceserver.testing import ManualClock
from voiceserver.transport.connection import Connection
from voiceserver.wire.registry import WIRES
from voiceserver.wire.request import Wire
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind, StreamParams

UPGRADE = (
    b"GET {path} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)


def upgrade(path: str = "/v1/stream", more: str = "") -> bytes:
    return UPGRADE.replace(b"{path}", path.encode()).replace(b"{more}", more.encode())


def masked(opcode: Opcode, payload: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin).serialize(mask=True)


def text(event: object) -> bytes:
    return masked(Opcode.TEXT, json.dumps(event).encode())


def audio(pcm: bytes) -> bytes:
    return masked(Opcode.BINARY, pcm)


class MemoryTransport:
    """What an ``asyncio.Transport`` would have been asked to do."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.writes = 0
        self.is_closed = False
        self.is_ended = False  # our half is closed
        self.is_aborted = False
        self.is_reading_now = True
        self.high = 0
        self.unread = 0  # bytes that the peer has not read

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        assert not self.is_ended
        self.data += data
        self.writes += 1

    def close(self) -> None:
        self.is_closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_ended = True

    def abort(self) -> None:
        self.is_aborted = True

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.is_closed or self.is_aborted

    def is_reading(self) -> bool:
        return self.is_reading_now

    def pause_reading(self) -> None:
        assert self.is_reading_now
        self.is_reading_now = False

    def resume_reading(self) -> None:
        assert not self.is_reading_now
        self.is_reading_now = True

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return ("192.0.2.1", 4711)


class AnsweredPool(Pool):
    """A pool whose streams remember what they were sent; the test gives the results."""

    speech: Speech = Speech()  # type: ignore[assignment]  # set by tests

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.refusal: Refusal | None = None
        self.streams: list[AnsweredStream] = []
        self.room = 10**9
        self.ready = True
        self.forgotten: list[StreamOwner] = []

    def try_open(
        self, owner: StreamOwner, params: StreamParams, *, key: str = "", is_lighter: bool = False
    ) -> AnsweredStream | Refusal:
        if self.refusal is not None:
            return self.refusal
        self.streams.append(AnsweredStream(self, owner, params, is_lighter))
        return self.streams[-1]

    def forget(self, owner: StreamOwner) -> None:
        self.forgotten.append(owner)

    def is_ready(self) -> bool:
        return self.ready

    def back_in_ms(self) -> float | None:
        return None if self.ready else 700.0

    def stats(self) -> PoolStats:
        return PoolStats(self.stage, "answered", (), len(self.streams), None, 0.0, 0, 0.0)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class AnsweredStream:
    def __init__(
        self, pool: AnsweredPool, owner: StreamOwner, params: StreamParams, is_lighter: bool
    ) -> None:
        self.pool = pool
        self.owner = owner
        self.params = params
        self.is_lighter = is_lighter
        self.sent: list[tuple[RequestKind, int, int, bytes]] = []
        self.is_closed = False

    def send(self, kind: RequestKind, turn: int, seq: int, payload: bytes | memoryview = b"") -> bool:
        assert not self.is_closed
        if len(self.sent) >= self.pool.room:
            return False
        self.sent.append((kind, turn, seq, bytes(payload)))
        return True

    def close(self) -> None:
        self.is_closed = True

    def answer(self, kind: ResultKind, turn: int = 0, seq: int = 0, payload: bytes = b"") -> None:
        self.owner.on_result(self.pool.stage, Record(kind, 1, turn, seq, payload))
        self.owner.on_tick()


_LIMITS = BackpressureConfig()


class Shell:
    """A server with one pool per stage in ``stages``, on a manual loop. ``call()`` makes a connection."""

    def __init__(
        self,
        *stages: str,
        limits: BackpressureConfig = _LIMITS,
        twilio: TwilioConfig = TwilioConfig(),  # noqa: B008  # frozen
        session: SessionConfig = SessionConfig(),  # noqa: B008  # frozen
        wires: Sequence[Wire] = WIRES,
        auth: AuthConfig = AuthConfig(),  # noqa: B008  # frozen
        wall_s: Callable[[], float] = time.time,
        peer: Peer | None = None,
        log: Log | None = None,
        **server: Any,
    ) -> None:
        one, none = StageConfig(engine="answered"), StageConfig(engine="none")
        names = ("vad", "stt", "reply", "tts")
        self.config = Config(
            server=ServerConfig(**{"check_laws": True, **server}),
            session=session,
            backpressure=limits,
            twilio=twilio,
            auth=auth,
            stages=StagesConfig(**{name: one if name in stages else none for name in names}),
        )
        self.pools = {name: AnsweredPool(name) for name in stages}
        self.loop = ManualClock()
        self.logged: list[dict[str, Any]] = []
        kept = structlog.wrap_logger(None, processors=[self._log], wrapper_class=structlog.stdlib.BoundLogger)
        host = Host(log=log or kept, peer=peer, jitter=random.Random(1), wall_s=wall_s, wires=wires)
        self.services = build(self.config, self.pools, self.loop, lambda: self.loop.now_ms, host)
        self.admission = self.services.places.admission
        self.metrics = self.services.metrics
        self.router = self.services.router

    def _log(self, logger: object, name: str, event: Any) -> Any:
        self.logged.append(dict(event))
        raise structlog.DropEvent

    def call(self, head: bytes | None = None) -> Line:
        line = Line(self)
        line.receive(upgrade() if head is None else head)
        return line


class Line:
    """One connection of a Shell, seen from the far end."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.transport = MemoryTransport()
        self.connection = Connection(shell.services)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        self.is_lost = False

    def receive(self, data: bytes) -> None:
        self.connection.data_received(data)
        self.shell.loop.settle()

    def lose(self) -> None:
        self.is_lost = True
        self.connection.connection_lost(None)
        self.shell.loop.settle()

    @property
    def status(self) -> int:
        return int(bytes(self.transport.data).split(b" ", 2)[1])

    @property
    def body(self) -> Any:
        return json.loads(bytes(self.transport.data).partition(b"\r\n\r\n")[2])

    def frames(self) -> list[Frame]:
        """All frames so far, after the 101."""
        _, _, data = bytes(self.transport.data).partition(b"\r\n\r\n")
        frames: list[Frame] = []
        at = 0

        def read_exact(size: int) -> Any:
            nonlocal at
            assert at + size <= len(data), "a frame is cut"
            at += size
            return data[at - size : at]
            yield

        while at < len(data):
            try:
                next(Frame.parse(read_exact, mask=False))
            except StopIteration as done:
                frames.append(done.value)
        return frames

    def events(self) -> list[dict[str, Any]]:
        """The JSON events so far."""
        return [json.loads(bytes(frame.data)) for frame in self.frames() if frame.opcode is Opcode.TEXT]

    def types(self) -> list[str]:
        return [event["type"] for event in self.events()]

    @property
    def close_code(self) -> int | None:
        """Of the close frame that the server sent."""
        for frame in self.frames():
            if frame.opcode is Opcode.CLOSE:
                return int.from_bytes(bytes(frame.data)[:2], "big")
        return None
