"""The supervisor of ``serve --processes N``: it starts the children, starts dead ones again, and drains them all.

It holds the port (bound, never listening, so that no caller lands here) and serves nobody. Each child lives as long as its
lifeline: when the supervisor is killed, they all end.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from voiceserver.config.schema import Config
from voiceserver.errors import StartError
from voiceserver.observability.logs import configure, get_logger
from voiceserver.server.multiprocess.handoff import mailbox
from voiceserver.server.multiprocess.lifeline import DRAIN, READY, send_config
from voiceserver.server.multiprocess.merge import Figures, decode, lasting, restarts
from voiceserver.server.multiprocess.shared_stats import SharedStats
from voiceserver.server.tls import tls_context

if TYPE_CHECKING:
    from types import FrameType

HEALTHY_MS: Final = 10_000.0  # a child that lived so long starts with a clean record
FIRST_BACKOFF_MS: Final = 100.0
MAX_BACKOFF_MS: Final = 5_000.0
_MISCONFIGURED: Final = 2
_LISTED_ONCE: Final = ("max_connections", "max_talkers")


@dataclass(slots=True)
class _Child:
    """``process`` None: it is to start at ``due_ms``."""

    index: int
    process: subprocess.Popen[bytes] | None = None
    lifeline: socket.socket | None = None
    started_ms: float = 0.0
    due_ms: float = 0.0
    crashes: int = 0
    is_ready: bool = False


def share_of(config: Config, index: int) -> Config:
    """The configuration of one child: limits of the whole server are divided among the processes."""
    count = config.server.processes
    limits = {}
    for name in _LISTED_ONCE:
        total = getattr(config.backpressure, name)
        if total:  # 0 is "no limit", and stays so
            limits[name] = max(total // count + (index < total % count), 1)
    limits["waiting_room"] = -(-config.backpressure.waiting_room // count)
    return msgspec.structs.replace(
        config, backpressure=msgspec.structs.replace(config.backpressure, **limits)
    )


class Supervisor:
    """``run`` until a signal."""

    def __init__(self, config: Config) -> None:
        self._port = _hold_port(config.server.host, config.server.port)
        port = self._port.getsockname()[1]
        self._config = msgspec.structs.replace(
            config, server=msgspec.structs.replace(config.server, port=port)
        )
        self._log = get_logger()
        self._children = [_Child(index) for index in range(config.server.processes)]
        self._shared_stats = SharedStats.create(len(self._children) + 1)
        self._keep([restarts(0)])
        self._mailboxes = [mailbox() for _ in self._children]
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._is_draining = False
        self._is_told = False
        self._code = 0

    def run(self) -> int:
        """The exit code."""
        self._catch_signals()
        self._log.info("listening", port=self._config.server.port, processes=len(self._children))
        try:
            while any(child.process is not None for child in self._children) or not self._is_draining:
                self._start_due()
                self._wait()
                self._obey_signals()
                self._reap()
        finally:
            for child in self._children:
                if child.process is not None:
                    child.process.kill()
                    child.process.wait()
            self._shared_stats.close()
            self._port.close()
            for end in (end for ends in self._mailboxes for end in ends):
                end.close()
        return self._code

    # -------------------------------------------------------------------------------------------------- waiting

    def _catch_signals(self) -> None:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._bells = (reader, writer)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, self._note)
        self._selector.register(reader, selectors.EVENT_READ)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._signals.append(number)

    def _wait(self) -> None:
        due_ms = [child.due_ms for child in self._children if child.process is None]
        timeout = max(min(due_ms) - _now_ms(), 0.0) / 1000.0 if due_ms and not self._is_draining else None
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._bells[0].recv(4096)
            else:
                self._hear(key.data)

    def _hear(self, child: _Child) -> None:
        assert child.lifeline is not None
        try:
            words = child.lifeline.recv(64)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        if not words:
            self._selector.unregister(child.lifeline)  # SIGCHLD follows
            child.lifeline.close()
            child.lifeline = None
        if READY in words:
            child.is_ready = True
            if not self._is_told and all(one.is_ready for one in self._children):
                self._is_told = True
                pids = [one.process.pid for one in self._children if one.process is not None]
                self._log.info("all processes started", pids=pids)
        if DRAIN in words:
            self._signals.append(signal.SIGTERM)

    def _obey_signals(self) -> None:
        signals, self._signals = self._signals, []
        for number in signals:
            if self._is_draining:
                self._code = 128 + number
            else:
                self._log.info("draining", processes=len(self._children))
            self._drain()

    def _drain(self) -> None:
        self._is_draining = True
        for child in self._children:
            if child.process is not None:
                child.process.send_signal(signal.SIGTERM)

    # ------------------------------------------------------------------------------------------------- children

    def _start_due(self) -> None:
        now_ms = _now_ms()
        for child in self._children:
            if child.process is None and not self._is_draining and now_ms >= child.due_ms:
                self._start(child, now_ms)

    def _start(self, child: _Child, now_ms: float) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "voiceserver.server.multiprocess.child", str(child.index)]
        fds = [theirs.fileno(), self._shared_stats.fd, self._mailboxes[child.index][0].fileno()]
        fds += [write_end.fileno() for _, write_end in self._mailboxes]
        with theirs:
            child.process = subprocess.Popen(
                [*command, *map(str, fds)], pass_fds=fds, stdin=subprocess.DEVNULL
            )
        child.started_ms, child.is_ready = now_ms, False
        child.lifeline = ours
        with contextlib.suppress(OSError):  # it is dead already
            send_config(ours, share_of(self._config, child.index))
        ours.setblocking(False)
        self._selector.register(ours, selectors.EVENT_READ, child)

    def _reap(self) -> None:
        for child in self._children:
            if child.process is not None and (code := child.process.poll()) is not None:
                self._bury(child, code)

    def _bury(self, child: _Child, code: int) -> None:
        assert child.process is not None
        pid, child.process = child.process.pid, None
        if child.lifeline is not None:
            self._selector.unregister(child.lifeline)
            child.lifeline.close()
            child.lifeline = None
        self._retire(child.index)
        if self._is_draining:
            self._code = self._code or (0 if code == 0 else 1)
            return
        if code == _MISCONFIGURED and not child.is_ready:  # it has said why, and would say it again
            self._code = code
            self._drain()
            return
        self._keep([restarts(1)])
        now_ms = _now_ms()
        child.crashes = child.crashes + 1 if now_ms - child.started_ms < HEALTHY_MS else 1
        backoff_ms = min(FIRST_BACKOFF_MS * 2 ** min(child.crashes - 1, 10), MAX_BACKOFF_MS)
        child.due_ms = now_ms + (backoff_ms if child.crashes > 1 else 0.0)
        self._log.error("server process lost", process=child.index, pid=pid, status=code)

    def _retire(self, index: int) -> None:
        """Keep the counts of a process that has ended, and nothing else of it."""
        ended = decode(self._shared_stats.get(index))
        if ended is not None:
            self._keep([ended])
        self._shared_stats.put(index, b"")

    def _keep(self, figures: list[Figures]) -> None:
        place = len(self._children)
        kept = decode(self._shared_stats.get(place))
        self._shared_stats.put(
            place, msgspec.json.encode(lasting(figures if kept is None else [kept, *figures]))
        )


def _hold_port(host: str, port: int) -> socket.socket:
    """Bound and never listening. Raises StartError also where another server shares the port: it must not be joined."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            sock.bind(
                address
            )  # without SO_REUSEADDR: this holds off the probe of another while no child listens yet
        except OSError:
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # past callers of an unshared port linger
            sock.bind(address)
    except OSError as error:
        sock.close()
        raise _cannot_listen(host, port, error) from None
    return sock


def _cannot_listen(host: str, port: int, error: OSError) -> StartError:
    is_name = isinstance(error, socket.gaierror)  # whose numbers are not the system's
    reason = error.strerror if is_name or not error.errno else os.strerror(error.errno)
    return StartError(f"cannot listen on {host}:{port}: {reason or error}")


def _now_ms() -> float:
    return time.monotonic() * 1000.0


def supervise(config: Config) -> int:
    """Serve with ``config.server.processes`` processes until a signal; the exit code. Raises StartError or ConfigError."""
    configure(config.server.log_level, config.server.log_format)
    if config.server.tls_cert:
        tls_context(config.server.tls_cert, config.server.tls_key)  # what is wrong with it is said once
    return Supervisor(config).run()
