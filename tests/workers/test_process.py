"""How a worker process spends the time in which it has nothing to compute."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import pytest

from voiceserver_workers import process


class Worker:
    """Ends after ``rounds`` polls that found nothing. ``waits_ms``: until its batch leaves, ``None``: it has none.
    ``streams``: that are open."""

    def __init__(
        self, rounds: int, *, waits_ms: float | None = None, is_blocked: bool = False, streams: int = 1
    ) -> None:
        self.streams = streams
        self.rounds = rounds
        self.waits_ms = waits_ms
        self.blocked = is_blocked
        self.now_ms = 0.0

    @property
    def is_stopping(self) -> bool:
        return self.rounds == 0

    def poll(self, now_ms: float) -> bool:
        self.rounds -= 1
        self.now_ms = now_ms
        return False

    def due_ms(self) -> float | None:
        return None if self.waits_ms is None else self.now_ms + self.waits_ms

    def is_blocked(self) -> bool:
        return self.blocked

    def has_streams(self) -> bool:
        return self.streams > 0


class End:
    """``rung_for``: how long it was willing to sleep until its bell rings, each time."""

    def __init__(self) -> None:
        self.rung_for: list[float] = []

    def wait(self, timeout_ms: float, extra_fds: Sequence[int] = ()) -> list[int]:
        self.rung_for.append(timeout_ms)
        return []


def spend(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], list[float]]:
    """(naps, waits for the bell), in ms."""
    end, naps = End(), list[float]()
    monkeypatch.setattr("voiceserver_workers.process.time.sleep", lambda seconds: naps.append(seconds * 1000))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop: Any = process._loop
        loop(worker, end, theirs.fileno())
    return naps, end.rung_for


def test_a_worker_without_work_sleeps_until_it_is_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spend(Worker(3), monkeypatch) == ([], [process.IDLE_WAIT_MS] * 3)


def test_a_worker_without_streams_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spend(Worker(3, streams=0), monkeypatch) == ([], [process.REST_MS] * 3)


def test_while_a_batch_waits_for_company_nobody_need_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    naps, rung_for = spend(Worker(2, waits_ms=50.0), monkeypatch)
    assert naps == [process.NAP_MS] * 2
    assert rung_for == []


def test_a_nap_ends_when_the_batch_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    naps, rung_for = spend(Worker(1, waits_ms=process.NAP_MS / 4), monkeypatch)
    assert naps == [pytest.approx(process.NAP_MS / 4)]
    assert rung_for == []


def test_a_batch_that_is_due_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spend(Worker(2, waits_ms=0.0), monkeypatch) == ([], [])


def test_a_worker_whose_results_wait_for_room_looks_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    naps, rung_for = spend(Worker(2, is_blocked=True), monkeypatch)
    assert naps == [process.ROOM_WAIT_MS] * 2
    assert rung_for == []


def test_a_worker_whose_server_is_gone_ends_though_its_batch_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(10 * process.LIFELINE_EVERY, waits_ms=50.0)
    monkeypatch.setattr("voiceserver_workers.process.time.sleep", lambda seconds: None)
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        loop: Any = process._loop
        loop(worker, End(), theirs.fileno())
    assert not worker.is_stopping
