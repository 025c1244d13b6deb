"""When a server process is taken to hang, and when the next one starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from voiceserver.server.multiprocess.child_handle import (
    HEALTHY_MS,
    MAX_BACKOFF_MS,
    STALL_MS,
    START_TIMEOUT_MS,
    SUSPICIOUS_MS,
    TURN_TIMEOUT_MS,
    Child,
)
from voiceserver.server.multiprocess.supervisor import LOOK_MS

TICK_MS = 10.0
START_MS = 1_000_000.0


class Machine:
    """A process of which the kernel says ``state`` and the processor time used, on a manual clock."""

    def __init__(self) -> None:
        self.state = "S"
        self.cpu_ms = 0.0
        self.now_ms = START_MS
        self.beat_ms = 0.0
        self.child = Child(0, lambda pid: self.stat())

    def stat(self) -> bytes:
        fields = [self.state, *["0"] * 10, str(int(self.cpu_ms / TICK_MS)), "0", "0"]
        return f"7 (python) {' '.join(fields)}".encode()

    def hangs_after_ms(self, within_ms: float, *, uses: float = 0.0) -> float | None:
        """How long after now it is found to hang; ``uses``: the share of a processor that it has. None: not ``within_ms``."""
        began_ms = self.now_ms
        while self.now_ms < began_ms + within_ms:
            self.now_ms += LOOK_MS
            self.cpu_ms += LOOK_MS * uses
            if self.child.is_hung(7, int(self.beat_ms * 1e6), self.now_ms):
                return self.now_ms - began_ms
        return None


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen([sys.executable, "-c", ""])
    yield started
    started.wait()


@pytest.fixture
def machine(process: subprocess.Popen[bytes]) -> Iterator[Machine]:
    import socket

    ours, theirs = socket.socketpair()
    machine = Machine()
    machine.child.begin(process, ours, machine.now_ms)
    machine.beat_ms = machine.now_ms
    yield machine
    ours.close()
    theirs.close()


def test_a_stopped_process_is_found_in_half_a_second(machine: Machine) -> None:
    machine.state = "T"
    after_ms = machine.hangs_after_ms(10_000)
    assert after_ms is not None
    assert after_ms <= SUSPICIOUS_MS + 3 * LOOK_MS


def test_a_stopped_process_is_found_before_its_first_beat(machine: Machine) -> None:
    machine.beat_ms, machine.state = 0.0, "T"
    assert machine.hangs_after_ms(1_000) is not None


def test_a_blocked_loop_is_found(machine: Machine) -> None:
    after_ms = machine.hangs_after_ms(10_000)
    assert after_ms is not None
    assert STALL_MS <= after_ms <= STALL_MS + 4 * LOOK_MS


def test_a_loop_that_computes_for_long_is_found(machine: Machine) -> None:
    machine.state = "R"
    after_ms = machine.hangs_after_ms(60_000, uses=1.0)
    assert after_ms is not None
    assert TURN_TIMEOUT_MS <= after_ms <= 1.2 * TURN_TIMEOUT_MS


def test_a_process_that_gets_no_processor_is_left_alone(machine: Machine) -> None:
    machine.state = "R"
    assert machine.hangs_after_ms(5 * TURN_TIMEOUT_MS, uses=0.1) is None


def test_a_process_that_is_being_started_has_its_time(machine: Machine) -> None:
    machine.beat_ms = 0.0
    assert machine.hangs_after_ms(START_TIMEOUT_MS - LOOK_MS, uses=0.1) is None
    assert machine.hangs_after_ms(3 * LOOK_MS) is not None


def test_one_late_look_after_a_pause_of_the_machine_is_no_verdict(machine: Machine) -> None:
    machine.now_ms += 3_600_000.0
    assert not machine.child.is_hung(7, int(machine.beat_ms * 1e6), machine.now_ms)
    machine.beat_ms = machine.now_ms
    assert machine.hangs_after_ms(2 * LOOK_MS) is None


def test_the_first_death_is_an_accident_and_those_that_follow_wait_longer(
    process: subprocess.Popen[bytes], machine: Machine
) -> None:
    child = machine.child
    now_ms, waits = machine.now_ms, []
    for _ in range(12):
        child.finish(now_ms)
        waits.append(child.due_ms - now_ms)
        now_ms = child.due_ms
        assert child.lifeline is not None
        child.begin(process, child.lifeline, now_ms)
    assert waits[0] == 0.0
    assert waits[1:] == sorted(waits[1:])
    assert waits[-1] == MAX_BACKOFF_MS
    child.finish(now_ms + HEALTHY_MS)
    assert child.due_ms == now_ms + HEALTHY_MS


def test_a_start_that_fails_is_tried_again_after_a_while(machine: Machine) -> None:
    child = machine.child
    waits = []
    for _ in range(3):
        child.finish(START_MS, is_started=False)
        waits.append(child.due_ms - START_MS)
    assert 0.0 < waits[0] < waits[1] < waits[2]
