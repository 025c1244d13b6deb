"""One real server with real engines for all faults that it must survive, and what it says when nothing goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.e2e.serving import STEADY, ServerProcess, serving
from tests.faults.calling import Call, hold, speech

# One recogniser, so that everybody meets the worker that dies; nobody waits for a place.
SETTINGS = (
    *STEADY,
    "session.reply_timeout_ms=60000",
    "server.check_laws=true",
    "server.ping_interval_ms=1000",
    "server.ping_timeout_ms=1000",
)


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    with serving(*SETTINGS) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="session")
def undisturbed(server: ServerProcess) -> Call:
    """The same call with no fault."""
    call = asyncio.run(hold(server.url, speech(), Call()))
    assert len(call.finals) == 1
    assert call.endings == ["completed"]
    return call
