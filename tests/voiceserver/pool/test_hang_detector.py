"""Stopped, starved or simply quiet: what the kernel says of a worker decides whether a long step is a hang."""

from __future__ import annotations

import os

import pytest

from voiceserver.pool.hang_detector import KNOWN_STEPS, PATIENCE, HangDetector, Limits, Verdict, read_stat

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
    hang_detector = HangDetector(500.0, kernel.read)
    hang_detector.feel(7, 1, 250)
    kernel.state, kernel.cpu_ms = state, kernel.cpu_ms + used_ms
    assert hang_detector.feel(7, 1, quiet_ms) == verdict


KNOWN = Limits.of(KNOWN_STEPS, 40.0, 500.0)


@pytest.mark.parametrize(
    ("state", "used_ms", "quiet_ms", "limits", "verdict"),
    [
        ("S", 0, 600, KNOWN, "stalled"),
        ("S", 0, 490, KNOWN, "quiet"),
        ("S", 20, 600, KNOWN, "quiet"),  # it gets on
        ("R", 0, 600, KNOWN, "starved"),
        ("R", 1_990, 2_500, KNOWN, "starved"),
        ("R", 2_000, 2_500, KNOWN, "spinning"),  # fifty times the longest step
        ("S", 0, 690, Limits.of(KNOWN_STEPS, 70.0, 500.0), "quiet"),
        ("S", 0, 700, Limits.of(KNOWN_STEPS, 70.0, 500.0), "stalled"),  # ten times the longest step
        ("S", 0, 4_000, Limits.of(KNOWN_STEPS - 1, 1.0, 500.0), "quiet"),  # not known yet
        ("S", 0, 4_000, Limits.of(KNOWN_STEPS, 1.0, 0.0), "quiet"),  # not wanted
    ],
)
def test_a_verdict_on_an_engine_whose_steps_are_known(
    state: str, used_ms: float, quiet_ms: float, limits: Limits, verdict: Verdict
) -> None:
    kernel = Kernel()
    hang_detector = HangDetector(5_000.0, kernel.read)
    hang_detector.feel(7, 1, 150, limits)
    kernel.state, kernel.cpu_ms = state, kernel.cpu_ms + used_ms
    assert hang_detector.feel(7, 1, quiet_ms, limits) == verdict


def test_who_is_seen_for_the_first_time_is_looked_at_again() -> None:
    """The server itself may have been away: after a pause of the whole machine everybody looks dead."""
    kernel = Kernel()
    kernel.state = "S"
    hang_detector = HangDetector(5_000.0, kernel.read)
    assert hang_detector.feel(7, 1, 3_000, KNOWN) == "quiet"
    assert hang_detector.feel(7, 1, 3_100, KNOWN) == "quiet"
    assert hang_detector.feel(7, 1, 3_150, KNOWN) == "stalled"


def test_every_step_and_every_worker_begins_afresh() -> None:
    kernel = Kernel()
    hang_detector = HangDetector(500.0, kernel.read)
    hang_detector.feel(7, 1, 250)
    kernel.cpu_ms += 600
    assert hang_detector.feel(7, 2, 600) == "starved"
    kernel.cpu_ms += 600
    assert hang_detector.feel(8, 2, 600) == "starved"
    assert hang_detector.feel(8, 2, 600) == "starved"


def test_a_worker_of_which_nothing_is_known_is_quiet() -> None:
    assert HangDetector(500.0, lambda pid: b"").feel(7, 1, 9_999) == "quiet"
    assert read_stat(2**22 + 1) == b""
    assert HangDetector(500.0).feel(os.getpid(), 1, 0) in ("starved", "quiet")
