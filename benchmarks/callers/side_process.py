"""A server that ``benchmarks.connection`` compares, in a process of its own: it is asked for its figures on standard input."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.callers.connection_clients import ClientFailed

Figures = dict[str, Any]


class SideProcess:
    def __init__(self, name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sides.connection_sides", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ports: dict[str, int] = self._read()

    def _read(self) -> Figures:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ClientFailed(f"the {self.name} server ended")
        figures: Figures = json.loads(line)
        return figures

    def ask(self, what: str = "stats") -> Figures:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._read()

    def settle(self, received: int | None = None) -> Figures:
        """Its figures once it has nothing left to do: all of ``received`` messages are in, and its CPU time stands still."""
        before = self.ask()
        for _ in range(200):
            time.sleep(0.1)
            figures = self.ask()
            is_in = received is None or figures["received"] >= received
            if is_in and figures["cpu_s"] - before["cpu_s"] < 0.02:
                return figures
            before = figures
        raise ClientFailed(f"{self.name} took {before['received']} of {received} messages")

    def ring_seconds(self, base: Figures, key: str, expected: int, idle_rate: float) -> float:
        """CPU seconds since ``base`` until ``key`` of the ring's figures is ``expected``."""
        before, began_s, spent_s = base, time.monotonic(), 0.0
        for _ in range(200):
            time.sleep(0.03)
            figures = self.ask("ring")
            spent_s += figures["cpu_before_s"] - before["cpu_after_s"]
            before = figures
            if figures[key] >= expected:
                return float(spent_s - idle_rate * (time.monotonic() - began_s))
        raise ClientFailed(f"{before[key]} of {expected} messages were {key}")

    def idle_rate(self) -> float:
        """CPU seconds a second that it takes to do nothing."""
        before, began_s = self.settle(), time.monotonic()
        time.sleep(1.0)
        return float(self.ask()["cpu_s"] - before["cpu_s"]) / (time.monotonic() - began_s)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def running(name: str) -> Iterator[SideProcess]:
    side = SideProcess(name)
    try:
        yield side
    finally:
        side.end()
