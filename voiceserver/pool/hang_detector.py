"""What the kernel knows of a worker that gives no sign of life: stopped, stalled, spinning, kept from the processor, or nothing.

A step that takes too long is a hang only if the worker had its chance: on a machine with ten times the load a good step takes
ten times as long, and to kill its worker would make things worse. Rules:

- Time that a worker spent waiting for a processor does not count as a step's time, up to ``PATIENCE`` times the longest allowed.
- An engine whose steps are known is given up sooner than the longest allowed: when it does nothing at all (asleep, and not a
  tick of processor time between two looks) for ``STALL_FACTOR`` times its longest step, or computes for ``SPIN_FACTOR`` times
  that. Who advances is slow, and no more.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

PATIENCE: Final = 10
STALL_FACTOR: Final = 10.0
SPIN_FACTOR: Final = 50.0
LEAST_SPIN_MS: Final = 1_000.0
KNOWN_STEPS: Final = 20  # that an engine has done before its longest one says something about the next
_LOOKS_APART_MS: Final = 150.0
# Between two looks at a worker that rests: whether it was stopped matters before the next caller comes, and not sooner.
REST_LOOK_MS: Final = 500.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")

Verdict = Literal["stopped", "stalled", "spinning", "starved", "quiet"]
ReadStat = Callable[[int], bytes]


def read_stat(pid: int) -> bytes:
    """``/proc/PID/stat``; empty where there is none: another system, or a worker that has just died."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read()
    except OSError:
        return b""


class _Look(NamedTuple):
    pid: int
    beat_ns: int
    cpu_ms: float
    quiet_ms: float


class Limits(NamedTuple):
    """Of one look. stall_ms: without a tick; spin_ms: of processor time in one step."""

    stall_ms: float
    spin_ms: float

    @classmethod
    def of(cls, steps: int, longest_ms: float, stall_timeout_ms: float) -> Limits:
        """For an engine that has done ``steps``, the longest of ``longest_ms``. ``stall_timeout_ms`` 0: none."""
        if steps < KNOWN_STEPS or not stall_timeout_ms:
            return NO_LIMITS
        return cls(
            max(stall_timeout_ms, STALL_FACTOR * longest_ms), max(LEAST_SPIN_MS, SPIN_FACTOR * longest_ms)
        )


NO_LIMITS: Final = Limits(math.inf, math.inf)


class HangDetector:
    """Of one lane's worker. ``step_timeout_ms``: processor time that a step may take."""

    __slots__ = ("_first", "_read", "_rest_look_ms", "_step_timeout_ms")

    def __init__(self, step_timeout_ms: float, read: ReadStat = read_stat) -> None:
        self._step_timeout_ms = step_timeout_ms
        self._read = read
        self._first: _Look | None = None
        self._rest_look_ms = -math.inf

    def is_stopped(self, pid: int, now_ms: float) -> bool:
        """Look at a worker that owes no sign of life; at most once in ``REST_LOOK_MS``."""
        if now_ms < self._rest_look_ms + REST_LOOK_MS:
            return False
        self._rest_look_ms = now_ms
        return self._read(pid).rpartition(b") ")[2][:1] == b"T"

    def feel(self, pid: int, beat_ns: int, quiet_ms: float, limits: Limits = NO_LIMITS) -> Verdict:
        """Look at a worker whose last sign of life was at ``beat_ns``, ``quiet_ms`` ago."""
        fields = self._read(pid).rpartition(b") ")[2].split()
        if len(fields) < 13:
            return "quiet"
        state, cpu_ms = fields[0], (int(fields[11]) + int(fields[12])) * 1000.0 / _TICKS_PER_S
        if state == b"T":
            return "stopped"
        first = self._first
        if first is None or (first.pid, first.beat_ns) != (pid, beat_ns):
            first = self._first = _Look(pid, beat_ns, cpu_ms, quiet_ms)
        used_ms = cpu_ms - first.cpu_ms
        if (
            state == b"S"
            and not used_ms
            and quiet_ms >= max(limits.stall_ms, first.quiet_ms + _LOOKS_APART_MS)
        ):
            return "stalled"
        if used_ms >= limits.spin_ms:
            return "spinning"
        wants_processor = state in (b"R", b"D")
        has_had_it = used_ms >= self._step_timeout_ms
        if wants_processor and not has_had_it and quiet_ms < PATIENCE * self._step_timeout_ms:
            return "starved"
        return "quiet"
