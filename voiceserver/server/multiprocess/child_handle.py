"""A server process as its supervisor sees it: running or due, and whether it hangs.

::

    due --start--> running --death, hang (then SIGKILL)--> due, after a while
       '--OSError--> due, after a while

The first death is an accident: back at once. Who dies again and again, or cannot be started, waits longer each time.
"""

from __future__ import annotations

import math
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Final

from voiceserver.pool.hang_detector import NO_LIMITS, HangDetector, Limits, read_stat

# A child that lived so long starts with a clean record.
HEALTHY_MS: Final = 10_000.0
FIRST_BACKOFF_MS: Final = 100.0
MAX_BACKOFF_MS: Final = 5_000.0
# Without a beat, after which the kernel is asked what became of a process.
SUSPICIOUS_MS: Final = 150.0
# Of processor time that one turn of the loop may take, and of time without a beat for one that had its chance.
TURN_TIMEOUT_MS: Final = 5_000.0
# A loop that should beat ten times a second, and sleeps so long without a tick of processor time, is blocked.
STALL_MS: Final = 2_000.0
# From the start of the process to the first beat; importing takes 15 s on a busy machine.
START_TIMEOUT_MS: Final = 60_000.0
# After a pause of the whole machine everybody gets a chance to move first.
LOOKS_TO_BE_SURE: Final = 2


class Child:
    """``read``: ``/proc/PID/stat`` of a process. ``process`` None: it is to start at ``due_ms``."""

    __slots__ = (
        "_hang_detector",
        "_looks",
        "_started_ms",
        "crashes",
        "due_ms",
        "index",
        "is_ready",
        "is_killed",
        "lifeline",
        "process",
        "was_ready",
    )

    def __init__(self, index: int, read: Callable[[int], bytes] = read_stat) -> None:
        self.index = index
        self.process: subprocess.Popen[bytes] | None = None
        self.lifeline: socket.socket | None = None
        self.due_ms = 0.0
        # In a row, without a healthy life between them.
        self.crashes = 0
        self.is_ready = self.was_ready = self.is_killed = False
        self._started_ms = 0.0
        self._hang_detector = HangDetector(TURN_TIMEOUT_MS, read)
        self._looks = 0

    def begin(self, process: subprocess.Popen[bytes], lifeline: socket.socket, now_ms: float) -> None:
        """It runs."""
        self.process, self.lifeline = process, lifeline
        self._started_ms = now_ms
        self.is_ready = self.is_killed = False
        self._looks = 0

    def finish(self, now_ms: float, *, is_started: bool = True) -> None:
        """It has ended, or could not be started: say when to try again."""
        self.process = None
        self.is_ready = False
        is_healthy = is_started and now_ms - self._started_ms >= HEALTHY_MS
        self.crashes = 1 if is_healthy else self.crashes + 1
        backoff_ms = min(FIRST_BACKOFF_MS * 2 ** min(self.crashes - 1, 10), MAX_BACKOFF_MS)
        self.due_ms = now_ms + (backoff_ms if self.crashes > 1 or not is_started else 0.0)

    def is_due(self, now_ms: float) -> bool:
        return self.process is None and now_ms >= self.due_ms

    def is_hung(self, pid: int, beat_ns: int, now_ms: float) -> bool:
        """Look at a running process whose loop last ran at ``beat_ns`` (0: never). Call it about every ``SUSPICIOUS_MS``."""
        last_ms = max(beat_ns / 1e6, self._started_ms)
        quiet_ms = now_ms - last_ms
        if quiet_ms < SUSPICIOUS_MS:
            self._looks = 0
            return False
        limits = Limits(STALL_MS, math.inf) if beat_ns else NO_LIMITS
        verdict = self._hang_detector.feel(pid, int(last_ms * 1e6), quiet_ms, limits)
        timeout_ms = TURN_TIMEOUT_MS if beat_ns else START_TIMEOUT_MS
        is_late = quiet_ms > timeout_ms and (verdict != "starved" or not beat_ns)
        if verdict in ("stopped", "stalled", "spinning") or is_late:
            self._looks += 1
        else:
            self._looks = 0
        return self._looks >= LOOKS_TO_BE_SURE

    def kill(self) -> None:
        """SIGKILL; its end is told by the kernel. Idempotent."""
        if self.process is not None:
            self.is_killed = True
            self.process.kill()

    def reload(self) -> None:
        """Have it read its files again. One that is not ready yet has just read them, and would end by the signal."""
        if self.process is not None and self.is_ready:
            self.process.send_signal(signal.SIGHUP)

    def terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()
