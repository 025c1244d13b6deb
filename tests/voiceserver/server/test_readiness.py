"""``/readyz`` says 200 when a caller would be served at once: not before, and not much later."""

from __future__ import annotations

import json

from tests.voiceserver.shell import Shell
from voiceserver.capacity.calibration import GIVE_UP_MS, Calibration
from voiceserver.capacity.limit import LOOK_MS
from voiceserver.config.cores import Cores
from voiceserver.pool import PoolStats, WorkerStats
from voiceserver.server.upkeep import MOST_DISTURBED, CapacityWatch
from voiceserver.transport.http import Response
from voiceserver_workers.ipc.messages import ResultKind

MEASURING = [{"reason": "the engines are being measured"}]
GET = b"GET /readyz HTTP/1.1\r\nHost: test\r\n\r\n"


class Starting:
    """A server with workers for speech and its recognition, before its first caller."""

    def __init__(self) -> None:
        self.shell = Shell("stt", "tts")
        for name, pool in self.shell.pools.items():
            worker = WorkerStats(0, 1, "ready", 1, 0, 0, 0.0, 0, 0, 0.0)
            stats = PoolStats(name, "answered", (worker,), 0, None, 0.0, 0, 0.0)
            pool.stats = lambda stats=stats: stats  # type: ignore[method-assign,misc]
        self.watch = CapacityWatch(self.shell.services, Cores(1))
        self.shell.services.state.begin_measuring()
        self.pass_time(3 * LOOK_MS)

    def pass_time(self, by_ms: float) -> None:
        end_ms = self.shell.loop.now_ms + by_ms
        while self.shell.loop.now_ms < end_ms:
            self.watch.look()
            self.shell.loop.advance(LOOK_MS)

    def why(self) -> list[dict[str, str]]:
        answer = self.shell.router.answer(GET, self.shell.loop.now_ms)
        assert isinstance(answer, Response)
        why: list[dict[str, str]] = json.loads(answer.body)["why"]
        assert answer.status == (503 if why else 200)
        return why

    def lose_measured_streams(self) -> None:
        for pool in self.shell.pools.values():
            for stream in pool.streams:
                if not stream.is_closed and isinstance(stream.owner, Calibration):
                    stream.owner.on_stream_lost(pool.stage, "worker_lost")
                    stream.is_closed = True

    def places_taken(self) -> int:
        """By the measurement."""
        return sum(
            not stream.is_closed and isinstance(stream.owner, Calibration)
            for pool in self.shell.pools.values()
            for stream in pool.streams
        )


def test_while_the_engines_are_measured_it_is_not_ready() -> None:
    server = Starting()
    assert server.why() == MEASURING
    speech = server.shell.pools["tts"].streams[-1]
    speech.answer(ResultKind.AUDIO, 1, 1, bytes(32_000))
    speech.answer(ResultKind.DONE, 1, 1, b"{}")
    server.pass_time(LOOK_MS)
    assert server.why() == MEASURING
    while not server.shell.pools["stt"].streams[-1].is_closed:
        server.shell.loop.advance(900.0)
        server.shell.pools["stt"].streams[-1].answer(ResultKind.FINAL, 1, 16_000, b"please hold")
    server.pass_time(LOOK_MS)
    assert server.why() == []


def test_a_measurement_that_never_ends_is_given_up() -> None:
    server = Starting()
    server.pass_time(GIVE_UP_MS + 3 * LOOK_MS)
    assert server.why() == []


def test_a_caller_who_comes_meanwhile_goes_first() -> None:
    server = Starting()
    assert server.places_taken() >= 1
    caller = server.shell.call()
    server.pass_time(LOOK_MS)
    assert server.places_taken() == 0
    assert server.why() == []
    # The engines are measured when it has gone; the server stays ready.
    caller.lose()
    server.pass_time(3 * LOOK_MS)
    assert server.places_taken() >= 1
    assert server.why() == []


def test_workers_that_die_while_they_are_measured_keep_nobody_out_for_ever() -> None:
    server = Starting()
    for _ in range(MOST_DISTURBED):
        assert server.why() == MEASURING
        server.lose_measured_streams()
        server.pass_time(3 * LOOK_MS)
    assert server.why() == []
