"""A forkserver answers what it cannot do, and goes on."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from voiceserver_workers.forkserver import ForkServer
from voiceserver_workers.ipc.frames import Frame, FrameReader
from voiceserver_workers.ipc.messages import (
    Fork,
    ForkFailed,
    ForkServerAnswer,
    Ping,
    Pong,
    WorkerSpec,
    decode_forkserver_answer,
    encode,
)

FORK = encode(Fork(7, WorkerSpec("echo", {})))


class Bench:
    """A forkserver in this process, which must not fork."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self._reader = FrameReader(ours)
        self.forkserver = ForkServer(theirs)

    def ask(self, body: bytes, fds: list[int], *, is_complete: bool = True) -> list[ForkServerAnswer]:
        self.forkserver._obey(Frame(body, fds, is_complete))
        return [decode_forkserver_answer(frame.body) for frame in self._reader.read()]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5.0)
        yield Bench(ours, theirs)


def test_a_fork_that_fails_is_an_answer_and_no_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    fds = list(os.pipe())
    [answer] = bench.ask(FORK, fds)
    assert isinstance(answer, ForkFailed)
    assert answer.id == 7
    assert "temporarily unavailable" in answer.message
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_request_whose_descriptors_were_lost_is_answered(bench: Bench) -> None:
    [answer] = bench.ask(FORK, [], is_complete=False)
    assert isinstance(answer, ForkFailed)
    assert answer.id == 7


def test_a_ping_is_answered(bench: Bench) -> None:
    assert bench.ask(encode(Ping()), []) == [Pong()]
