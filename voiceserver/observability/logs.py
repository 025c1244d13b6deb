"""Structured logs on stderr: lines for people on a terminal, JSON otherwise. Never transcripts, audio or tokens.

Rule: a log never changes what the server does. No call of a logger waits or raises (``UnfailingLog``); lines are written by
a thread (``log_writer``). While a server runs (``running``), whatever else prints to stdout or stderr in this process goes the
same way, and so does what its workers print.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol, cast

import structlog

from voiceserver.observability.log_writer import (
    LAST_LINES_S,
    LOG_FAILED,
    STDERR,
    STDOUT,
    LineStream,
    LogWriter,
    LostLines,
    OutputPipe,
)

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMATS = ("auto", "console", "json")
# Of what happens to pools; what is not here is told as information.
_LEVEL_OF: Final = {
    "bad_engine": logging.ERROR,
    "no_channel": logging.ERROR,
    "fork_failed": logging.ERROR,
    "owner_failed": logging.ERROR,
    "ring_corrupt": logging.ERROR,
    "forkserver_lost": logging.ERROR,
    "worker_lost": logging.WARNING,
    "worker_hung": logging.WARNING,
    "quarantined": logging.WARNING,
    "reply_failed": logging.WARNING,
    "endpoint_down": logging.WARNING,
    "endpoint_odd": logging.WARNING,
}


class Log(Protocol):
    """What the server asks of a logger."""

    def debug(self, event: str, **fields: object) -> object: ...

    def info(self, event: str, **fields: object) -> object: ...

    def warning(self, event: str, **fields: object) -> object: ...

    def error(self, event: str, **fields: object) -> object: ...

    def log(self, level: int, event: str, **fields: object) -> object: ...

    def bind(self, **fields: object) -> Log: ...


class UnfailingLog:
    """A Log that counts what ``log`` raises as a lost line and goes on."""

    def __init__(self, log: Log) -> None:
        self._wrapped = log

    def debug(self, event: str, **fields: object) -> None:
        self._try(self._wrapped.debug, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._try(self._wrapped.info, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._try(self._wrapped.warning, event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._try(self._wrapped.error, event, fields)

    def log(self, level: int, event: str, **fields: object) -> None:
        self._try(functools.partial(self._wrapped.log, level), event, fields)

    def _try(self, log: Callable[..., object], event: str, fields: Mapping[str, object]) -> None:
        try:
            log(event, **fields)
        except Exception:
            LOST_LINES.add(LOG_FAILED)

    def bind(self, **fields: object) -> UnfailingLog:
        return UnfailingLog(self._wrapped.bind(**fields))


def unfailing(log: Log) -> UnfailingLog:
    return log if isinstance(log, UnfailingLog) else UnfailingLog(log)


LOST_LINES: Final = LostLines()


def _tell_lost(count: int) -> bytes:
    """The line that says so, in the configured form."""
    entry: EventDict = {"event": "log lines lost", "count": count}
    try:
        for process in structlog.get_config()["processors"]:
            entry = process(None, "warning", entry)
        return str(entry).encode("utf-8", "backslashreplace")
    except Exception:
        return b"log lines lost: %d" % count


_stderr: Final = LogWriter(STDERR, LOST_LINES, _tell_lost)
_stdout: Final = LogWriter(STDOUT, LOST_LINES, None)


class _Submit:
    """structlog's logger of last resort: takes rendered lines, whatever their level."""

    def submit(self, line: str) -> None:
        _stderr.submit(line.encode("utf-8", "backslashreplace"))

    debug = info = warning = error = critical = log = msg = submit


class _LibraryHandler(logging.Handler):
    """What libraries log, among the server's own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = {"exc_info": record.exc_info} if record.exc_info else {}
            get_logger().log(record.levelno, record.getMessage(), logger=record.name, **fields)
        except Exception:
            LOST_LINES.add(LOG_FAILED)


def configure(level: str, log_format: str) -> None:
    """Set up the process's logs. ``level`` is one of LEVELS, ``log_format`` one of FORMATS."""
    is_terminal = os.isatty(STDERR)
    is_console = log_format == "console" or (log_format == "auto" and is_terminal)
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_console else "iso", utc=not is_console)
    render: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=is_terminal)]
        if is_console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[structlog.processors.add_log_level, _plain_words, _plain_numbers, stamp, *render],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *args: _Submit(),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryHandler()], force=True)


@contextlib.contextmanager
def running(level: str, log_format: str) -> Iterator[None]:
    """``configure``; until the end nothing that this process prints can wait or raise. The end waits for the last lines, but not
    for long."""
    configure(level, log_format)
    before = sys.stdout, sys.stderr
    out, err = LineStream(_stdout), LineStream(_stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.end_line()
        err.end_line()
        sys.stdout, sys.stderr = before
        flush()


def flush() -> None:
    """Wait for the last lines, but not for long."""
    if _pipes:
        _pipes[0].wait_read(LAST_LINES_S / 2)
    _stdout.flush(LAST_LINES_S / 2)
    _stderr.flush(LAST_LINES_S)


_pipes: Final[list[OutputPipe]] = []


def worker_output() -> int | None:
    """A descriptor for stdout and stderr of workers, which never blocks them. None where there can be none, or where no server is
    ``running``: they have those of this process then."""
    if not isinstance(sys.stderr, LineStream):
        return None
    if not _pipes:
        try:
            _pipes.append(OutputPipe(_hear_worker))
        except (OSError, RuntimeError):
            return None
    return _pipes[0].write_fd


def _hear_worker(line: bytes) -> None:
    text = line.decode("utf-8", "backslashreplace")
    level = logging.ERROR if text.startswith(("ERROR", "CRITICAL")) else logging.WARNING
    get_logger().log(level, "worker output", text=text)


def level_of(event: str) -> int:
    """The level, of ``logging``, at which a pool's event is told."""
    return _LEVEL_OF.get(event, logging.INFO)


def _plain_words(logger: object, method: str, event: EventDict) -> EventDict:
    """One style for names of events: words with spaces between, whoever names them."""
    name = event.get("event")
    if isinstance(name, str) and " " not in name:
        event["event"] = name.replace("_", " ")
    return event


def _plain_numbers(logger: object, method: str, event: EventDict) -> EventDict:
    """Named numbers as numbers, and times to the microsecond at most: a log is read by programs, and by tired people."""
    for name, value in event.items():
        if isinstance(value, float):
            event[name] = round(value, 3)
        elif isinstance(value, IntEnum):
            event[name] = int(value)
    return event


def get_logger() -> UnfailingLog:
    return UnfailingLog(cast("FilteringBoundLogger", structlog.get_logger()))
