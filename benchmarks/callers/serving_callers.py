"""Paced sessions for the serving benchmark: 100 ms of audio every 100 ms, and how long each took to be answered.

Latency counts from when a chunk was due. Over HTTP the chunks of a session wait for each other, because its state must move on in
order; over WebSockets they are sent when due.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, cast

from benchmarks.sides import serving_model
from voiceserver_clients.histogram import Histogram
from voiceserver_clients.raw import BINARY, TEXT, RawConnection, build_frame, build_request

_FINAL: Final = b'{"type":"transcript.final"'
_HEARD: Final = (b'{"type":"transcript.partial"', _FINAL)
_TEXT: Final = b'"text":"'
_COMMIT: Final = build_frame(TEXT, b'{"type":"input.commit"}')
_BUSY: Final = b'{"type":"server.busy"'
BEHIND_MS: Final = 1_000.0  # a chunk that is unanswered for longer is late
TOLD_FOR_MS: Final = 1_500.0  # who was told so counts as told for so long; ours repeats it every second


class Session(Protocol):
    answered: int
    is_lost: bool
    is_told: bool  # it was told in so many words that the server is behind or full

    def step(self, due_ms: float) -> None: ...

    def stop(self) -> None: ...


class Told:
    """What sessions share: the clock, and the figures of the time that counts. untold_ms: session time behind without a word
    of it; told_at: how late a session was when it was first told, in ms."""

    def __init__(self, clock_ms: Callable[[], float]) -> None:
        self.clock_ms = clock_ms
        self.begin()

    def begin(self) -> None:
        self.latency = Histogram()
        self.told_at = Histogram()
        self.untold_ms = 0.0

    def look(self, due: deque[float], told_ms: float, now_ms: float, for_ms: float) -> None:
        """At a session every ``for_ms``. told_ms: when it was last told that the server is behind."""
        if due and now_ms - due[0] > BEHIND_MS and now_ms - told_ms > TOLD_FOR_MS:
            self.untold_ms += for_ms


class OverWebSocket(RawConnection):
    """Every text message answers one chunk; of ours, which may answer several at once, the text has a dot for each: then the
    last of them counts. turn: chunks after which the caller says that the turn is over; 0: never."""

    def __init__(
        self, host: str, target: str, chunk: bytes, told: Told, *, is_ours: bool, turn: int = 0
    ) -> None:
        super().__init__(build_request(host, target))
        self._frame = build_frame(BINARY, chunk)
        self._due: deque[float] = deque()
        self._told = told
        self._is_ours = is_ours
        self._dots = self._sent = 0
        self._turn = turn
        self._told_ms = -math.inf
        self.answered = 0
        self.is_lost = False
        self.is_told = False

    def step(self, due_ms: float) -> None:
        if self.is_open:
            self._told.look(self._due, self._told_ms, due_ms, serving_model.CHUNK_MS)
            self._due.append(due_ms)
            self.send(self._frame)
            self._sent += 1
            if self._turn and self._sent % self._turn == 0:
                self.send(_COMMIT)

    def on_refused(self, status: int, retry_after_ms: float) -> None:
        self.is_told = status == 503

    def on_text(self, payload: bytes) -> None:
        count = 1
        if self._is_ours:
            if payload.startswith(_BUSY):
                self._be_told(payload)
            if not payload.startswith(_HEARD):
                return
            start = payload.find(_TEXT) + len(_TEXT)
            dots = payload.count(b".", start, payload.find(b'"', start))
            count, self._dots = dots - self._dots, 0 if payload.startswith(_FINAL) else dots
        now_ms = self._told.clock_ms()
        count = min(count, len(self._due))
        for left in range(count, 0, -1):
            due_ms = self._due.popleft()
            if left == 1:
                self._told.latency.record(now_ms - due_ms)
        self.answered += count

    def _be_told(self, payload: bytes) -> None:
        now_ms = self._told.clock_ms()
        if not self.is_told and self._due:
            self._told.told_at.record(now_ms - self._due[0])
        self.is_told, self._told_ms = True, now_ms
        shed = round(json.loads(payload)["dropped_ms"] / serving_model.CHUNK_MS)
        for _ in range(min(shed, len(self._due))):
            self._due.popleft()

    def on_lost(self, code: int) -> None:
        self.is_lost = True

    def stop(self) -> None:
        self.is_lost = False
        self.abort()


class OverHttp(asyncio.Protocol):
    """One connection kept alive, one request at a time. ``is_json``: the body is ``{"audio": base64}``."""

    def __init__(
        self, host: str, path: str, chunk: bytes, told: Told, *, session: int, is_json: bool
    ) -> None:
        body = session.to_bytes(4, "little") + chunk
        kind = "application/octet-stream"
        if is_json:
            body = json.dumps({"audio": base64.b64encode(body).decode()}).encode()
            kind = "application/json"
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body
        self._due: deque[float] = deque()
        self._told = told
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._is_asking = False
        self.answered = 0
        self.is_lost = False
        self.is_told = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = self._transport is not None
        self._transport = None

    def step(self, due_ms: float) -> None:
        self._told.look(self._due, -math.inf, due_ms, serving_model.CHUNK_MS)
        self._due.append(due_ms)
        self._ask()

    def _ask(self) -> None:
        if self._due and not self._is_asking and self._transport is not None:
            self._is_asking = True
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        size = (
            int(head[at + 15 : (head.find(b"\r\n", at) if b"\r\n" in head[at:] else len(head))])
            if at >= 0
            else 0
        )
        if len(self._buffer) < end + 4 + size:
            return
        is_good = head.startswith(b"http/1.1 200")
        self._buffer = self._buffer[end + 4 + size :]
        self._is_asking = False
        due_ms = self._due.popleft()
        if is_good:
            self._told.latency.record(self._told.clock_ms() - due_ms)
            self.answered += 1
        else:
            self.is_told = True
        self._ask()

    def stop(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
