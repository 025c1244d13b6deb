"""What the programs here share, being programs: a last word to the terminal, and how many sockets they may open."""

from __future__ import annotations

import contextlib
import resource
import sys


def complain(message: str, code: int = 2) -> int:
    """``message`` to standard error; the exit code to leave with, 2 for what was asked for wrongly."""
    print(message, file=sys.stderr)
    return code


def raise_file_limit() -> int:
    """Have this process open as many files as its hard limit allows; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # "unlimited" may be more than the kernel grants
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return hard
    return soft
