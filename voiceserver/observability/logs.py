"""Structured logs on stderr: lines for people on a terminal, JSON otherwise. Never transcripts, audio or tokens."""

from __future__ import annotations

import logging
import sys
from enum import IntEnum
from typing import TYPE_CHECKING, Final, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMATS = ("auto", "console", "json")
# Of what happens to pools; what is not here is told as information.
_LEVEL_OF: Final = {
    "bad_engine": logging.ERROR,
    "no_memory": logging.ERROR,
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


def configure(level: str, log_format: str) -> None:
    """Set up the process's logs. ``level`` is one of LEVELS, ``log_format`` one of FORMATS."""
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_console else "iso", utc=not is_console)
    render: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if is_console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[structlog.processors.add_log_level, _plain_numbers, stamp, *render],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def level_of(event: str) -> int:
    """The level, of ``logging``, at which a pool's event is told."""
    return _LEVEL_OF.get(event, logging.INFO)


def _plain_numbers(logger: object, method: str, event: EventDict) -> EventDict:
    """Named numbers as numbers, and times to the microsecond at most: a log is read by programs, and by tired people."""
    for name, value in event.items():
        if isinstance(value, float):
            event[name] = round(value, 3)
        elif isinstance(value, IntEnum):
            event[name] = int(value)
    return event


def get_logger() -> FilteringBoundLogger:
    return cast("FilteringBoundLogger", structlog.get_logger())
