"""No observer can change what callers hear: a log, a metric or an event handler that raises leaves every byte as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
from prometheus_client import Counter, Gauge, Histogram

from tests.simulation.world import World
from tests.voiceserver.shell import Line, Shell, audio, text
from voiceserver.observability.metrics import Metrics
from voiceserver.pool import ignore_event
from voiceserver.pool.duty import Duty
from voiceserver_workers.ipc.messages import ResultKind

SEEDS = 20


class Broken(Exception):
    """What a broken observer raises."""


def broken_event(name: str, fields: Mapping[str, object]) -> None:
    raise Broken(name)


def heard(seed: int, on_event: Callable[[str, Mapping[str, object]], None]) -> list[str]:
    world = World(seed, on_event)
    try:
        world.run()
    finally:
        world.close()
    return world.diary


def test_worlds_with_a_raising_observer_are_the_same_worlds() -> None:
    told: list[str] = []

    def count(name: str, fields: Mapping[str, object]) -> None:
        told.append(name)
        raise Broken(name)

    for seed in range(SEEDS):
        assert heard(seed, count) == heard(seed, ignore_event), seed
    assert {"worker_lost", "worker_hung", "worker_ready"} <= set(told)


class BrokenLog:
    """A logger whose disk is full."""

    def _fail(self, event: str, **fields: object) -> None:
        raise OSError(28, "No space left on device")

    debug = info = warning = error = _fail

    def log(self, level: int, event: str, **fields: object) -> None:
        self._fail(event)

    def bind(self, **fields: object) -> BrokenLog:
        return self


@contextmanager
def broken_metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Each counter raises."""
    asked: list[str] = []

    def fail(self: Counter | Gauge | Histogram, *args: object, **labels: object) -> None:
        asked.append(self._name)
        raise Broken(self._name)

    with monkeypatch.context() as patch:
        patch.setattr(Counter, "inc", fail)
        patch.setattr(Gauge, "inc", fail)
        patch.setattr(Gauge, "dec", fail)
        patch.setattr(Histogram, "observe", fail)
        yield asked


def play(shell: Shell) -> list[Line]:
    """Calls with about everything that is logged or counted: greeted, refused, mistaken, served, lost, outage, fault, drain."""
    lines = [shell.call(), shell.call(), shell.call(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")]
    lines.append(shell.call(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
    talker, silent = lines[:2]
    talker.receive(audio(b"\x01\x00" * 1_600))
    talker.receive(b"nonsense")
    writer = shell.call()
    writer.receive(text({"type": "no.such.event"}))
    writer.receive(text({"type": "item.append", "item": {"role": "user", "text": "Hello"}}))
    writer.receive(text({"type": "reply.create"}))
    reply = shell.pools["reply"].streams[-1]
    reply.answer(ResultKind.TEXT, 1, 0, b"Yes.")
    reply.owner.on_stream_lost("reply", "worker_lost")
    reply.owner.on_tick()
    shell.pools["vad"].ready = False
    for _ in range(3):
        shell.loop.advance(400)
        shell.services.outage.look()
        shell.loop.settle()
    shell.pools["vad"].ready = True
    shell.services.outage.look()
    shell.loop.settle()
    writer.connection.on_fault(Broken("a bug"))
    shell.loop.settle()
    late = shell.call()
    shell.services.state.begin_drain()
    for line in (silent, late):
        line.connection.drain(1_000.0)
    shell.loop.advance(2_000)
    shell.loop.settle()
    return [*lines, writer, late]


def bytes_of(lines: list[Line]) -> list[bytes]:
    return [bytes(line.transport.data) for line in lines]


def test_a_log_and_metrics_that_raise_change_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    def count_tokens() -> None:
        numbers = itertools.count(1)
        monkeypatch.setattr("secrets.token_bytes", lambda size=32: next(numbers).to_bytes(size, "big"))

    count_tokens()
    well = bytes_of(play(Shell("vad", "reply")))
    assert b"server.busy" in well[1]
    assert b"server.draining" in well[1]
    count_tokens()
    with broken_metrics(monkeypatch) as asked:
        shell = Shell("vad", "reply", log=BrokenLog())
        assert bytes_of(play(shell)) == well
    assert len(set(asked)) > 5
    assert shell.metrics.faults >= len(asked) / 2


def test_metrics_count_their_own_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    with broken_metrics(monkeypatch):
        metrics.count_opened("native")
        metrics.count_http(200)
    assert b"voiceserver_metric_faults_total 2.0" in metrics.to_text()
    assert b'voiceserver_log_lines_lost_total{reason="queue_full"}' in metrics.to_text()


def test_a_duty_that_fails_comes_again() -> None:
    class Loop:
        """Keeps what is due."""

        def __init__(self) -> None:
            self.due: list[Callable[[], None]] = []
            self.faults: list[dict[str, object]] = []

        def time(self) -> float:
            return 0.0

        def call_at(self, when_s: float, callback: Callable[[], None]) -> None:
            self.due.append(callback)

        def call_exception_handler(self, context: dict[str, object]) -> None:
            self.faults.append(context)

    def fail() -> None:
        raise Broken

    loop = Loop()
    Duty(loop, 100.0, fail).start()  # type: ignore[arg-type]
    loop.due.pop()()
    assert len(loop.due) == 1
    assert len(loop.faults) == 2
