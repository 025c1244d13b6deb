"""A benchmark's event loop, and how it ends before its time: with everything that it started, one line and an exit code."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer
import uvloop

from voiceserver_clients.command import complain
from voiceserver_clients.local_server import ENDINGS, ServerFailed

T = TypeVar("T")
INTERRUPTED = 130


def run_until_done(main: Coroutine[Any, Any, T], *, failure: int = 1) -> T:
    """Until it is done. Raises typer.Exit: 130 where it was interrupted, ``failure`` where a server failed."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_until_told(main))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(complain("interrupted", INTERRUPTED)) from None
    except ServerFailed as error:
        raise typer.Exit(complain(str(error), failure)) from None


async def _until_told(main: Coroutine[Any, Any, T]) -> T:
    """SIGTERM and SIGHUP end ``main`` as Ctrl-C does."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means what it says
            loop.add_signal_handler(number, task.cancel)
    return await main
