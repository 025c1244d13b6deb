"""Lines that leave the process in a thread of their own, because whoever reads them may stop, go away, or have a full disk.

::

    submit(line) -> bounded queue -> thread -> write(2)          submit never waits and never raises

A line that finds the queue full, or that cannot be written, is lost and counted. Once lines get through again, one line says how
many were lost.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

# Of the queue. A line is cut at MAX_LINE_BYTES, so it holds 64 MiB at the very most, and 1 MiB of usual lines.
MAX_LINES: Final = 4_096
MAX_LINE_BYTES: Final = 16_384
STDOUT: Final = 1
STDERR: Final = 2
# How long the end of a process waits for its last lines.
LAST_LINES_S: Final = 1.0
# Lines that go on to be lost are told so often.
_TELL_EVERY_S: Final = 1.0
_READ_BYTES: Final = 65_536

QUEUE_FULL: Final = "queue_full"
WRITE_FAILED: Final = "write_failed"
LOG_FAILED: Final = "log_failed"
LOSSES: Final = (QUEUE_FULL, WRITE_FAILED, LOG_FAILED)


class LostLines:
    """Lines lost so far, by reason. Any thread may count."""

    def __init__(self) -> None:
        # A destructor that logs may run while the lock is held.
        self._lock = threading.RLock()
        self._counts = dict.fromkeys(LOSSES, 0)

    def add(self, reason: str) -> None:
        with self._lock:
            self._counts[reason] += 1

    def counts(self) -> dict[str, int]:
        """A copy: reason, number of lines."""
        return dict(self._counts)

    def total(self) -> int:
        return sum(self._counts.values())


class LogWriter:
    """Writes lines to the descriptor ``fd``. ``tell_lost(count)`` makes the line that says how many were lost; None: nothing is
    said here. The thread starts with the first line."""

    def __init__(
        self,
        fd: int,
        lost: LostLines,
        tell_lost: Callable[[int], bytes] | None,
        *,
        max_lines: int = MAX_LINES,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self.fd = fd
        self.lost = lost
        self._tell_lost = tell_lost
        self._max_lines = max_lines
        self._write = write
        self._queue: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        # How many lost lines were told, and since when there are others.
        self._told = lost.total()
        self._untold_s = math.inf
        # The last write ended inside a line.
        self._is_cut = False

    def submit(self, line: bytes) -> None:
        """Have a line written, without its end of line. Never waits, never raises; a line too many is lost."""
        if self._queue.qsize() >= self._max_lines:
            self.lost.add(QUEUE_FULL)
            return
        self._queue.put(line if len(line) <= MAX_LINE_BYTES else line[:MAX_LINE_BYTES] + b" ...")
        if self._thread is None:
            self._start()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was submitted is written or lost; False: not within ``timeout_s``."""
        if self._thread is None:
            return True
        is_written = threading.Event()
        self._queue.put(is_written)
        return is_written.wait(timeout_s)

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="log writer", daemon=True)
            # Without a thread the lines wait in the queue, and the next one tries again.
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                with contextlib.suppress(OSError):
                    self._tell()
                item.set()
                continue
            try:
                self._write_line(item)
                self._tell()
            except OSError:
                self.lost.add(WRITE_FAILED)

    def _tell(self) -> None:
        """Say how many lines were lost, once lines get through again. Raises OSError."""
        lost = self.lost.total()
        if lost == self._told or self._tell_lost is None:
            return
        now_s = time.monotonic()
        self._untold_s = min(self._untold_s, now_s)
        if self._queue.empty() or now_s - self._untold_s >= _TELL_EVERY_S:
            self._write_line(self._tell_lost(lost - self._told))
            self._told, self._untold_s = lost, math.inf

    def _write_line(self, line: bytes) -> None:
        """Raises OSError."""
        rest = memoryview((b"\n" if self._is_cut else b"") + line + b"\n")
        while rest:
            try:
                written = self._write(self.fd, bytes(rest))
            except BlockingIOError:  # somebody else has made the descriptor non-blocking
                select.select((), (self.fd,), (), _TELL_EVERY_S)
                continue
            rest = rest[written:]
            # Should the next write fail, the line is left as it is.
            self._is_cut = bool(rest)


class LineStream(io.TextIOBase):
    """A text stream whose lines are submitted: in place of ``sys.stdout`` and ``sys.stderr`` of a server. Never waits, never
    raises for what is written."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._writer.fd

    def isatty(self) -> bool:
        return os.isatty(self._writer.fd)

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        if len(self._begun) > MAX_LINE_BYTES:
            lines, self._begun = [*lines, self._begun], ""
        for line in lines:
            self._writer.submit(line.encode("utf-8", "backslashreplace"))
        return len(text)

    def end_line(self) -> None:
        """Submit what was written after the last end of line."""
        if self._begun:
            self.write("\n")


class OutputPipe:
    """A pipe for the output of other processes, which never wait for a reader: a thread takes what comes, as it comes.
    ``hear(line)`` gets each line. Raises OSError."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self._hear = hear
        self._read_fd, self.write_fd = os.pipe()
        self._begun = b""
        threading.Thread(target=self._run, name="worker output", daemon=True).start()

    def wait_read(self, timeout_s: float) -> None:
        """Wait until all that was written is read, for ``timeout_s`` at most."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s and select.select((self._read_fd,), (), (), 0.0)[0]:
            time.sleep(0.005)

    def _run(self) -> None:
        while data := os.read(self._read_fd, _READ_BYTES):
            *lines, self._begun = (self._begun + data).split(b"\n")
            if len(self._begun) > MAX_LINE_BYTES:
                lines, self._begun = [*lines, self._begun], b""
            for line in lines:
                if line:
                    self._hear(line)


def last_words(text: str) -> None:
    """A line on stderr of a process that is about to end; nobody who does not read it can keep it."""
    writer = LogWriter(STDERR, LostLines(), None)
    writer.submit(text.encode("utf-8", "backslashreplace"))
    writer.flush(LAST_LINES_S)


def open_standard_streams() -> None:
    """Give a process that was started without some of stdin, stdout and stderr (``2>&-``) the null device in their place.

    Otherwise the next file or socket that it opens would be taken for stderr.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            # The lowest free number, which is fd, unless another thread was faster.
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
    # Python makes no stream for what was closed.
    if sys.stdout is None:
        sys.stdout = os.fdopen(STDOUT, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(STDERR, "w", closefd=False)
