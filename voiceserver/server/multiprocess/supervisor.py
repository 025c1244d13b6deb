"""The supervisor of ``serve --processes N``: it starts the children, ends those that hang, starts dead ones again, and drains
them all.

It holds the port (bound, never listening, so that no caller lands here) and serves nobody. Rules:

- One crash path: a child that hangs is killed, and buried as one that died (``_bury``).
- No OSError ends it: a child that cannot be started is due again after a while, and the others serve on.
- It waits for nobody without a deadline: at the end, who is still there is killed.
- Each child lives as long as the supervisor: when that is killed, they all end, also one that is stopped.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

import msgspec

from voiceserver.config.schema import Config
from voiceserver.errors import StartError
from voiceserver.observability.logs import LOST_LINES, get_logger
from voiceserver.server import admin
from voiceserver.server.key_usage import usage_that_lasts
from voiceserver.server.listening import is_both_families, take_both_families
from voiceserver.server.multiprocess.child_handle import Child
from voiceserver.server.multiprocess.handoff import answer_waiting, mailbox
from voiceserver.server.multiprocess.lifeline import DRAIN, READY, send_config
from voiceserver.server.multiprocess.merge import Figures, decode, lasting, lost_lines, restarts
from voiceserver.server.multiprocess.peer import USAGE_BYTES, decode_usage
from voiceserver.server.multiprocess.shared_stats import SharedStats
from voiceserver.server.systemd import tell_systemd
from voiceserver.server.tls import tls_context
from voiceserver.transport.http import CALL_IS_ELSEWHERE

if TYPE_CHECKING:
    from types import FrameType

LOOK_MS: Final = 100.0
# More than ``drain_timeout_ms`` that a child may take to end: the closing handshakes, and the end of its workers.
END_MS: Final = 8_000.0
END_AT_ONCE_MS: Final = 4_000.0
_REAP_S: Final = 5.0
# For a child to take its configuration, which fits into the socket's buffer.
_CONFIG_S: Final = 2.0
_MISCONFIGURED: Final = 2
_LISTED_ONCE: Final = ("max_connections", "max_talkers")


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


def with_secret(config: Config) -> Config:
    """With a secret that all processes sign client tokens with: a token made at one is checked at another."""
    secret = config.auth.token_secret or secrets.token_hex(32)
    return msgspec.structs.replace(config, auth=msgspec.structs.replace(config.auth, token_secret=secret))


class Supervisor:
    """``run`` until a signal."""

    def __init__(self, config: Config) -> None:
        """Raises StartError."""
        server = config.server
        self._port = _hold_port(server.host, server.port, is_shared=server.reuse_port)
        port = self._port.getsockname()[1]
        self._config = with_secret(
            msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, port=port))
        )
        self._log = get_logger()
        self._children = [Child(index) for index in range(config.server.processes)]
        places = len(self._children) + 1
        try:
            self._stats = SharedStats.create(places)
            self._usage = SharedStats.create(places, USAGE_BYTES)
            self._mailboxes = [mailbox() for _ in self._children]
            self._selector = selectors.DefaultSelector()
            self._bells = socket.socketpair()
        except OSError as error:
            raise StartError(f"cannot prepare {places - 1} server processes: {error.strerror}") from None
        self._keep([restarts(0)])
        self._signals: list[int] = []
        self._deadline_ms = 0.0  # of a drain; 0: there is none
        self._is_told = False
        self._lost_lines = LOST_LINES.counts()
        self._code = 0

    def run(self) -> int:
        """The exit code."""
        self._catch_signals()
        admin.publish(self._config, self._config.server.port, self._log)
        self._log.info("listening", port=self._config.server.port, processes=len(self._children))
        try:
            while not self._deadline_ms or any(child.process is not None for child in self._children):
                self._start_due()
                self._wait()
                self._obey_signals()
                self._reap()
                self._kill_hung()
                self._count_lost_lines()
        finally:
            self._close()
        self._log.info("stopped", code=self._code)
        return self._code

    def _close(self) -> None:
        admin.withdraw(self._config, self._config.server.port)
        for child in self._children:
            child.kill()
        for child in self._children:
            if child.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(_REAP_S)
        self._stats.close()
        self._usage.close()
        self._port.close()
        for end in (end for ends in self._mailboxes for end in ends):
            end.close()

    # -------------------------------------------------------------------------------------------------- waiting

    def _catch_signals(self) -> None:
        for end in self._bells:
            end.setblocking(False)
        signal.set_wakeup_fd(self._bells[1].fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._note)
        self._selector.register(self._bells[0], selectors.EVENT_READ)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._signals.append(number)

    def _wait(self) -> None:
        for key, _ in self._selector.select(LOOK_MS / 1000.0):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._bells[0].recv(4096)
            else:
                self._hear(key.data)

    def _hear(self, child: Child) -> None:
        assert child.lifeline is not None
        try:
            words = child.lifeline.recv(64)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        if not words:
            self._let_go(child)  # SIGCHLD follows
        if READY in words:
            child.is_ready = child.was_ready = True
            if not self._is_told and all(one.is_ready for one in self._children):
                self._is_told = True
                tell_systemd("READY=1")
                pids = [one.process.pid for one in self._children if one.process is not None]
                self._log.info("all processes started", pids=pids)
        if DRAIN in words:
            self._signals.append(signal.SIGTERM)

    def _obey_signals(self) -> None:
        signals, self._signals = self._signals, []
        for number in signals:
            if number == signal.SIGHUP:
                for child in self._children:
                    child.reload()
            elif self._deadline_ms:
                self._code = 128 + number
                self._deadline_ms = min(self._deadline_ms, _now_ms() + END_AT_ONCE_MS)
                self._drain()
            else:
                self._drain()
                tell_systemd("STOPPING=1")
                self._log.info("draining", processes=len(self._children))

    def _drain(self) -> None:
        server = self._config.server
        within_ms = server.drain_until_idle_ms + server.drain_timeout_ms + END_MS
        self._deadline_ms = self._deadline_ms or _now_ms() + within_ms
        for child in self._children:
            child.terminate()

    # ------------------------------------------------------------------------------------------------- children

    def _start_due(self) -> None:
        now_ms = _now_ms()
        for child in self._children:
            if not self._deadline_ms and child.is_due(now_ms):
                try:
                    self._start(child, now_ms)
                except OSError as error:
                    child.finish(now_ms, is_started=False)
                    self._log.error(
                        "server process cannot be started",
                        process=child.index,
                        reason=error.strerror,
                        retry_after_ms=child.due_ms - now_ms,
                    )

    def _start(self, child: Child, now_ms: float) -> None:
        """Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = self._popen(child.index, theirs)
        except OSError:
            ours.close()
            raise
        child.begin(process, ours, now_ms)
        # An error: it is dead already, or hangs, and will be found out.
        with contextlib.suppress(OSError):
            ours.settimeout(_CONFIG_S)
            send_config(ours, share_of(self._config, child.index))
        ours.setblocking(False)
        self._selector.register(ours, selectors.EVENT_READ, child)

    def _popen(self, index: int, lifeline: socket.socket) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "voiceserver.server.multiprocess.child",
            str(os.getpid()),
            str(index),
        ]
        fds = [lifeline.fileno(), self._stats.fd, self._usage.fd, self._mailboxes[index][0].fileno()]
        fds += [write_end.fileno() for _, write_end in self._mailboxes]
        return subprocess.Popen([*command, *map(str, fds)], pass_fds=fds, stdin=subprocess.DEVNULL)

    def _kill_hung(self) -> None:
        """End who hangs, and at the end of a drain who is still there."""
        now_ms = _now_ms()
        is_over = self._deadline_ms and now_ms >= self._deadline_ms
        for child in self._children:
            if child.process is None or child.is_killed:
                continue
            pid = child.process.pid
            if child.is_hung(pid, self._stats.beat_ns(child.index), now_ms):
                child.kill()
                self._log.error("server process hung", process=child.index, pid=pid)
            elif is_over:
                child.kill()
                self._log.error("server process did not end", process=child.index, pid=pid)

    def _reap(self) -> None:
        for child in self._children:
            if child.process is not None and (code := child.process.poll()) is not None:
                self._bury(child, child.process.pid, code)

    def _bury(self, child: Child, pid: int, code: int) -> None:
        """A child has ended: the one crash path."""
        self._let_go(child)
        self._retire(child.index)
        child.finish(_now_ms())
        if self._deadline_ms:
            self._code = self._code or (0 if code == 0 else 1)
            return
        # At the first start it has said why, and would say it again. Later what it reads may be half written.
        if code == _MISCONFIGURED and not child.was_ready:
            self._code = code
            self._drain()
            return
        self._keep([restarts(1)])
        # Who waited for it to take up a call again is not kept waiting for its successor.
        answer_waiting(self._mailboxes[child.index][0], CALL_IS_ELSEWHERE.to_bytes())
        self._log.error("server process lost", process=child.index, pid=pid, status=code)

    def _count_lost_lines(self) -> None:
        counts = LOST_LINES.counts()
        if counts != self._lost_lines:
            self._keep([lost_lines(self._lost_lines, counts)])
            self._lost_lines = counts

    def _let_go(self, child: Child) -> None:
        if child.lifeline is not None:
            self._selector.unregister(child.lifeline)
            child.lifeline.close()
            child.lifeline = None

    def _retire(self, index: int) -> None:
        """Keep the counts of a process that has ended, and nothing else of it."""
        ended = decode(self._stats.get(index))
        if ended is not None:
            self._keep([ended])
        self._stats.clear(index)
        place = len(self._children)
        kept = decode_usage(self._usage.get(place))
        lasting_usage = usage_that_lasts(kept, decode_usage(self._usage.get(index)))
        self._usage.put(place, msgspec.json.encode(lasting_usage))
        self._usage.clear(index)

    def _keep(self, figures: list[Figures]) -> None:
        place = len(self._children)
        kept = decode(self._stats.get(place))
        self._stats.put(place, msgspec.json.encode(lasting(figures if kept is None else [kept, *figures])))


def _hold_port(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """Bound and never listening. Raises StartError also where another server shares the port: it must not be joined, unless that
    is_shared on purpose."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if not is_shared:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if is_both_families(host):
                    take_both_families(probe)
                probe.bind(address)
        sock = socket.socket(family, kind, protocol)
        if is_both_families(host):
            take_both_families(sock)
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
    if config.server.tls_cert:
        tls_context(config.server.tls_cert, config.server.tls_key)  # what is wrong with it is said once
    return Supervisor(config).run()
