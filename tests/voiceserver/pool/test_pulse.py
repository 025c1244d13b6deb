"""Stopped, starved or simply quiet: what the kernel says of a worker decides whether a long step is a hang."""

from __future__ import annotations

import os

import pytest

from voiceserver.pool.pulse import PATIENCE, Pulse, Verdict, read_stat

TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


class Kernel:
    def __init__(self) -> None:
        self.state = "R"
        self.cpu_ms = 1_000.0

    def read(self, pid: int) -> bytes:
        ticks = int(self.cpu_ms / TICK_MS)
        return f"{pid} (a) b) {self.state} 1 2 3 4 5 6 7 8 9 10 {ticks} 0 0 0".encode()


@pytest.mark.parametrize(
    ("state", "used_ms", "quiet_ms", "verdict"),
    [
        ("T", 0, 300, "stopped"),
        ("R", 0, 600, "starved"),
        ("D", 0, 600, "starved"),
        ("S", 0, 600, "quiet"),  # waits for something that is no processor
        ("R", 500, 600, "quiet"),  # had its time, and used it
        ("R", 0, 500 * PATIENCE, "quiet"),
    ],
)
def test_a_verdict(state: str, used_ms: float, quiet_ms: float, verdict: Verdict) -> None:
    kernel = Kernel()
    pulse = Pulse(500.0, kernel.read)
    pulse.feel(7, 1, 250)
    kernel.state, kernel.cpu_ms = state, kernel.cpu_ms + used_ms
    assert pulse.feel(7, 1, quiet_ms) == verdict


def test_every_step_and_every_worker_begins_afresh() -> None:
    kernel = Kernel()
    pulse = Pulse(500.0, kernel.read)
    pulse.feel(7, 1, 250)
    kernel.cpu_ms += 600
    assert pulse.feel(7, 2, 600) == "starved"
    kernel.cpu_ms += 600
    assert pulse.feel(8, 2, 600) == "starved"
    assert pulse.feel(8, 2, 600) == "starved"


def test_a_worker_of_which_nothing_is_known_is_quiet() -> None:
    assert Pulse(500.0, lambda pid: b"").feel(7, 1, 9_999) == "quiet"
    assert read_stat(2**22 + 1) == b""
    assert Pulse(500.0).feel(os.getpid(), 1, 0) in ("starved", "quiet")
