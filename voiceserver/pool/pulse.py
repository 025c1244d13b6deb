"""What the kernel knows of a worker that gives no sign of life: it is stopped, it is kept from the processor, or neither.

A step that takes too long is a hang only if the worker had its chance: on a machine with ten times the load a good step takes
ten times as long, and to kill its worker would make things worse. Rule: time that a worker spent waiting for a processor
does not count as a step's time, up to ``PATIENCE`` times the longest step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

PATIENCE: Final = 10
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")

Verdict = Literal["stopped", "starved", "quiet"]
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


class Pulse:
    """Of one lane's worker. ``step_timeout_ms``: processor time that a step may take."""

    __slots__ = ("_first", "_read", "_step_timeout_ms")

    def __init__(self, step_timeout_ms: float, read: ReadStat = read_stat) -> None:
        self._step_timeout_ms = step_timeout_ms
        self._read = read
        self._first: _Look | None = None

    def feel(self, pid: int, beat_ns: int, quiet_ms: float) -> Verdict:
        """Look at a worker whose last sign of life was at ``beat_ns``, ``quiet_ms`` ago."""
        fields = self._read(pid).rpartition(b") ")[2].split()
        if len(fields) < 13:
            return "quiet"
        state, cpu_ms = fields[0], (int(fields[11]) + int(fields[12])) * 1000.0 / _TICKS_PER_S
        if state == b"T":
            return "stopped"
        first = self._first
        if first is None or (first.pid, first.beat_ns) != (pid, beat_ns):
            first = self._first = _Look(pid, beat_ns, cpu_ms)
        wants_processor = state in (b"R", b"D")
        has_had_it = cpu_ms - first.cpu_ms >= self._step_timeout_ms
        if wants_processor and not has_had_it and quiet_ms < PATIENCE * self._step_timeout_ms:
            return "starved"
        return "quiet"
