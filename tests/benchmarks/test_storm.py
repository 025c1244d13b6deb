"""A storm of connects in small, and what counts as an answer."""

from __future__ import annotations

import asyncio
import sys

import pytest

from benchmarks.connection_storm import is_calm, outcome, storm

READY = b'HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x20{"type":"session.ready","session_id":"s"}'


@pytest.mark.parametrize(
    ("heard", "means"),
    [
        (b"HTTP/1.1 101 Switching Pro", ""),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", ""),
        (READY, "in"),
        (READY + b'\x81\x20{"type":"server.busy","stage":"admission","position":12}', "queued"),
        (READY + b'\x81\x20{"type":"server.busy","stage":"vad","position":0}', "in"),
        (b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\n\r\n{}", "refused"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}", "broken"),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", "broken"),
    ],
)
def test_a_caller_is_in_or_has_a_place_in_the_queue_or_knows_when_to_come_back(
    heard: bytes, means: str
) -> None:
    assert outcome(heard) == means


@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform != "linux", reason="callers wait with epoll")
def test_when_everybody_connects_at_once_nobody_hangs() -> None:
    figures = asyncio.run(storm(300, room=50))
    assert is_calm(figures), figures
    assert (figures["in"], figures["queued"], figures["refused"]) == (150, 50, 100)
