"""Everybody connects at once: does anybody hang?

``python -m benchmarks.connection_storm [--connections 20000]``. A server with places for half of the callers and a waiting room
for a few more is met by all of them in the same moment, from processes of their own (the open-file limit is per process). Each
caller must hear one of three things: it is in (``session.ready``), it waits (``server.busy`` with its position), or it is refused
(503 with Retry-After). Whoever hears nothing hangs; whoever hears anything else is broken. Either one fails the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Final

import typer

from benchmarks.report.results import print_table
from benchmarks.running import run_until_done
from voiceserver_clients.command import raise_file_limit
from voiceserver_clients.local_server import LocalServer, ServerFailed

CALLERS_PER_PROCESS: Final = 10_000
ROOM: Final = 1_000  # that may wait
TIMEOUT_S: Final = 60.0
OUTCOMES: Final = ("in", "queued", "refused", "broken", "hanging")
_HEAD_END: Final = b"\r\n\r\n"
_POSITION: Final = re.compile(rb'"type":"server\.busy"[^}]*"position":[1-9]')
_REQUEST: Final = (
    b"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
Figures = dict[str, Any]


def outcome(heard: bytes) -> str:
    """What a caller knows by ``heard``; empty as long as it must wait for more."""
    head, end, rest = heard.partition(_HEAD_END)
    if not end:
        return ""
    if head.startswith(b"HTTP/1.1 503"):
        return "refused" if b"\r\nretry-after:" in head.lower() else "broken"
    if not head.startswith(b"HTTP/1.1 101"):
        return "broken"
    if _POSITION.search(rest):
        return "queued"
    return "in" if b'"type":"session.ready"' in rest else ""


class Rush:
    """``count`` callers of one process, from the address ``source``."""

    def __init__(self, port: int, count: int, source: str, timeout_s: float) -> None:
        self.found = dict.fromkeys(OUTCOMES, 0)
        self.broken_by: dict[str, int] = {}  # what happened, and how often
        self.answered_s: list[float] = []
        self._callers: dict[int, socket.socket] = {}
        self._heard: dict[int, bytes] = {}  # of those who have asked
        self._kept: list[socket.socket] = []
        self._poll = select.epoll()
        self._began_s = time.monotonic()
        for _ in range(count):
            self._call(port, source)
        while self._callers and time.monotonic() < self._began_s + timeout_s:
            for fd, events in self._poll.poll(1.0):
                self._serve(fd, events)
        self.found["hanging"] = len(self._callers)

    def _call(self, port: int, source: str) -> None:
        caller = socket.socket()
        caller.setblocking(False)
        with contextlib.suppress(AttributeError):  # a port is chosen when it is known who is called
            caller.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        caller.bind((source, 0))
        code = caller.connect_ex(("127.0.0.1", port))
        self._callers[caller.fileno()] = caller
        self._poll.register(caller, select.EPOLLOUT)
        if code not in (0, errno.EINPROGRESS):
            self._end(caller.fileno(), "broken", f"connect: {os.strerror(code)}")

    def _serve(self, fd: int, events: int) -> None:
        caller = self._callers[fd]
        try:
            if fd not in self._heard:
                caller.sendall(_REQUEST)
                self._heard[fd] = b""
                self._poll.modify(fd, select.EPOLLIN)
                return
            data = caller.recv(65_536)
        except OSError as error:
            doing = f"heard {self._heard[fd][:40]!r}" if fd in self._heard else "asked"
            self._end(fd, "broken", f"{doing}, then: {error.strerror}")
            return
        self._heard[fd] += data
        what = outcome(self._heard[fd])
        if what or not data:
            self._end(fd, what or "broken", f"heard {self._heard[fd][:40]!r}")

    def _end(self, fd: int, what: str, why: str) -> None:
        self._poll.unregister(fd)
        self.found[what] += 1
        if what == "broken":
            self.broken_by[why] = self.broken_by.get(why, 0) + 1
        self.answered_s.append(time.monotonic() - self._began_s)
        caller = self._callers.pop(fd)
        if what in ("in", "queued"):
            self._kept.append(caller)  # its place is not for the others
        else:
            caller.close()


def _call_in(port: int, count: int, source: str, timeout_s: float) -> None:
    """One process of callers: waits for a line, calls, tells, and stays until the next line."""
    raise_file_limit()
    sys.stdin.readline()
    rush = Rush(port, count, source, timeout_s)
    told = {"found": rush.found, "answered_s": rush.answered_s, "broken_by": rush.broken_by}
    print(json.dumps(told), flush=True)
    sys.stdin.readline()


async def storm(connections: int, *, room: int = ROOM, timeout_s: float = TIMEOUT_S) -> Figures:
    """How many callers heard what, and after how many seconds. Raises ServerFailed."""
    processes = -(-connections // CALLERS_PER_PROCESS)
    settings: dict[str, str | int | float] = {
        "server.processes": processes,
        "server.log_level": "error",
        "backpressure.max_talkers": max(connections // 2, 1),
        "backpressure.waiting_room": room,
        "stages.vad.engine": "benchmarks.sides.connection_engines:Taker",
        **{f"stages.{stage}.engine": "none" for stage in ("stt", "reply", "tts")},
    }
    async with LocalServer(settings) as server:
        await server.wait_ready()
        sizes = [connections // processes + (index < connections % processes) for index in range(processes)]
        callers = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.connection_storm", "--call", str(server.port)),
                *(str(size), f"127.0.0.{index + 2}", str(timeout_s)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 24,
            )
            for index, size in enumerate(sizes)
        ]
        try:
            for caller in callers:
                assert caller.stdin is not None
                caller.stdin.write(b"\n")
            told = [json.loads(await _line(caller)) for caller in callers]
            status, _ = await server.get("/healthz")
        finally:
            for caller in callers:
                with contextlib.suppress(ProcessLookupError):
                    caller.kill()
                await caller.wait()
    answered_s = sorted(one for part in told for one in part["answered_s"])
    return {
        "callers": connections,
        **{name: sum(part["found"][name] for part in told) for name in OUTCOMES},
        **({"broken_by": why} if (why := _sum(part["broken_by"] for part in told)) else {}),
        "server_processes": processes,
        "is_well_after": status == 200,
        **{
            f"answered_{name}_s": round(answered_s[int((len(answered_s) - 1) * rank)], 3)
            for name, rank in (("p50", 0.5), ("p99", 0.99), ("last", 1.0))
            if answered_s
        },
    }


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


async def _line(caller: asyncio.subprocess.Process) -> bytes:
    assert caller.stdout is not None
    line = await caller.stdout.readline()
    if not line:
        raise ServerFailed("a process of callers ended")
    return line


def is_calm(figures: Figures) -> bool:
    """Everybody heard something that it can act on, and the server is still there."""
    return not figures["hanging"] and not figures["broken"] and figures["is_well_after"]


def main(connections: Annotated[int, typer.Option(min=10)] = 20_000) -> None:
    """Have everybody connect at once."""
    figures = run_until_done(storm(connections))
    print_table(
        "Everybody at once", ("", ""), [(name.replace("_", " "), value) for name, value in figures.items()]
    )
    if not is_calm(figures):
        raise typer.Exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--call"]:
        _call_in(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5]))
    else:
        typer.run(main)
