"""For those who use Locust: real speech in real time, at 10, 100, 1,000 and 10,000 chunks a second.

``locust -f benchmarks/callers/locustfile.py Chunks1000 --headless -u 20 -t 30s --host ws://127.0.0.1:8765``. Each user is
one caller; a scenario has as many as its rate takes, so give ``-u`` its ``fixed_count``: 1, 2, 20 or 200. In the report:

- ``chunk``: how late it was sent (this generator's trouble, not the server's),
- ``ping``: round trip of a WebSocket ping,
- ``end of turn``: from when the deciding chunk was due to ``speech.stopped``,
- ``busy``: the server said that it is behind; a refusal at the door is a failure of ``connect``.

One process of Locust on one core just carries ``Chunks10000`` (9,300 chunks a second over 8 s with their ramp, the latest 20 ms
late); where ``chunk`` grows, give it ``--processes 4``. Locust is not a dependency of voiceserver;
``voiceserver_clients.load`` carries a hundred times more callers per core.
"""

# Locust may be absent where types are checked.
# mypy: allow-subclassing-any, allow-untyped-decorators, disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import json
import math
import random
import time

import gevent
from locust import User, events, task
from locust.env import Environment
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from benchmarks.callers.speech import speech
from voiceserver_clients.recording import BYTES_PER_SAMPLE

RATE_HZ = 16_000
PING_EVERY_S = 1.0
GAP_MS = 2_000  # silence after each recording
SILENCE_MS = 500 + 32  # the default endpointing, decided at the end of a window

_script: dict[int, list[bytes]] = {}


@events.init.add_listener
def prepare(environment: Environment, **_: object) -> None:
    """Read the recordings once."""
    recordings = speech(RATE_HZ)
    for chunk_ms in (20, 100):
        size = RATE_HZ * chunk_ms // 1000 * BYTES_PER_SAMPLE
        chunks: list[bytes] = []
        for recording in recordings:
            pcm = recording.pcm
            chunks += [pcm[start : start + size].ljust(size, b"\0") for start in range(0, len(pcm), size)]
            chunks += [bytes(size)] * (GAP_MS // chunk_ms)
        _script[chunk_ms] = chunks


class Caller(User):
    """Talks until the test ends. Subclasses say in which chunks, and how many callers there are."""

    abstract = True
    host = "ws://127.0.0.1:8765"
    chunk_ms = 20
    fixed_count = 1

    @task
    def call(self) -> None:
        began_s = time.perf_counter()
        try:
            socket = connect(f"{self.host}/v1/stream?rate={RATE_HZ}", compression=None, ping_interval=None)
        except (OSError, InvalidStatus) as error:
            self._report("connect", time.perf_counter() - began_s, error=error)
            gevent.sleep(1)
            return
        self._report("connect", time.perf_counter() - began_s)
        with socket:
            self._start_s = math.nan
            listening = gevent.spawn(self._listen, socket)
            pinging = gevent.spawn(self._ping, socket)
            try:
                self._talk(socket)
            except ConnectionClosed as error:
                self._report("connection lost", 0.0, error=error)
            finally:
                gevent.killall([listening, pinging])

    def _talk(self, socket: ClientConnection) -> None:
        chunks = _script[self.chunk_ms]
        at = random.randrange(len(chunks))
        sent = 0
        self._start_s = time.perf_counter()
        while True:
            sent += 1
            due_s = self._start_s + sent * self.chunk_ms / 1000
            gevent.sleep(max(0.0, due_s - time.perf_counter()))
            socket.send(chunks[at % len(chunks)])
            at += 1
            self._report("chunk", max(0.0, time.perf_counter() - due_s))

    def _listen(self, socket: ClientConnection) -> None:
        for message in socket:
            if not isinstance(message, str):
                continue
            event = json.loads(message)
            # What has its usual value is not sent.
            if event["type"] == "speech.stopped" and event.get("reason", "silence") == "silence":
                chunks = math.ceil((event.get("at_ms", 0.0) + SILENCE_MS) / self.chunk_ms)
                due_s = self._start_s + chunks * self.chunk_ms / 1000
                self._report("end of turn", max(0.0, time.perf_counter() - due_s))
            elif event["type"] == "server.busy":
                self._report("busy", event.get("lag_ms", 0.0) / 1000)
            elif event["type"] == "error":
                self._report("error", 0.0, error=RuntimeError(event["code"]))

    def _ping(self, socket: ClientConnection) -> None:
        while True:
            gevent.sleep(PING_EVERY_S)
            began_s = time.perf_counter()
            if socket.ping().wait(timeout=10):
                self._report("ping", time.perf_counter() - began_s)
            else:
                self._report("ping", 10.0, error=TimeoutError("no pong within 10 s"))

    def _report(self, name: str, seconds: float, error: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type="WS",
            name=name,
            response_time=seconds * 1000,
            response_length=0,
            exception=error,
            context={},
        )


class Chunks10(Caller):
    """One caller in chunks of 100 ms."""

    chunk_ms = 100


class Chunks100(Caller):
    """Two callers in chunks of 20 ms."""

    fixed_count = 2


class Chunks1000(Caller):
    """Twenty callers in chunks of 20 ms."""

    fixed_count = 20


class Chunks10000(Caller):
    """Two hundred callers in chunks of 20 ms."""

    fixed_count = 200
