"""A voiceserver of one's own for a while: started on a free port, watched until it is ready, always stopped.

SIGTERM and SIGHUP stop it as Ctrl-C does; where the program is killed outright, the server ends with it (``lifeline``).

For the demo and the benchmarks. The server is another process and is reached as anybody would: by its command line, HTTP and
the wire.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import msgspec

from voiceserver_clients import lifeline

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.1
ENDINGS = (signal.SIGTERM, signal.SIGHUP)
LAST_LINES = 12


class ServerFailed(Exception):
    """It did not start, or ended by itself. The message holds its last words."""


class LocalServer:
    """``settings`` are dotted names and values, as ``voiceserver serve --set`` takes them."""

    def __init__(self, settings: Mapping[str, str | int | float] | None = None) -> None:
        self.port = free_port()
        self.settings = dict(settings or {})
        self._process: asyncio.subprocess.Process | None = None
        self._taken: list[signal.Signals] = []  # those that are ours to take
        self._ended_by = 0  # the one that came
        self._log = tempfile.NamedTemporaryFile(prefix="voiceserver-", suffix=".log", delete=False)  # noqa: SIM115
        self.log_path = Path(self._log.name)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    @property
    def pid(self) -> int:
        """Raises ServerFailed before the start."""
        if self._process is None:
            raise ServerFailed("the server was not started")
        return self._process.pid

    @property
    def command(self) -> list[str]:
        chosen = [f"--set={key}={value}" for key, value in self.settings.items()]
        return [sys.executable, "-m", "voiceserver", "serve", f"--port={self.port}", *chosen]

    async def __aenter__(self) -> Self:
        self._take_endings()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *lifeline.bound(self.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                # Ctrl-C is for us; the server is stopped in our own time.
                start_new_session=True,
            )
        except BaseException as error:
            self._clear_up(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            self._clear_up(error)
        if self._ended_by and kind is asyncio.CancelledError:
            raise SystemExit(128 + self._ended_by)

    def _clear_up(self, error: BaseException | None) -> None:
        """The log stays where it may tell what went wrong: not after an interrupted run."""
        for number in self._taken:
            asyncio.get_running_loop().remove_signal_handler(number)
        self._taken.clear()
        self._log.close()
        if not isinstance(error, Exception):
            self.log_path.unlink(missing_ok=True)

    def _take_endings(self) -> None:
        """Who is ended by a signal stops its server first: the task that uses it is cancelled, and then the program ends."""
        task = asyncio.current_task()

        def end(number: signal.Signals) -> None:
            self._ended_by = number
            if task is not None:
                task.cancel()

        for number in ENDINGS:
            # Otherwise somebody else has taken it: another server, the program itself, or nohup.
            if task is not None and signal.getsignal(number) is signal.SIG_DFL:
                asyncio.get_running_loop().add_signal_handler(number, functools.partial(end, number))
                self._taken.append(number)

    async def stop(self) -> None:
        """Drain it, and end it if it takes too long. Idempotent."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def wait_ready(self, on_wait: Callable[[str], None] | None = None) -> None:
        """Until ``/readyz`` says 200. ``on_wait`` hears what is still missing. Raises ServerFailed."""
        deadline_s = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while True:
            if self._process is None or self._process.returncode is not None:
                raise ServerFailed(f"the server ended by itself:\n{self.last_words()}")
            status, body = await self.get("/readyz")
            if status == 200:
                return
            if on_wait is not None:
                on_wait(_missing(body) if status else "starting")
            if asyncio.get_running_loop().time() > deadline_s:
                raise ServerFailed(
                    f"the server is not ready after {START_TIMEOUT_S:.0f} s:\n{self.last_words()}"
                )
            await asyncio.sleep(POLL_S)

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a page; status 0 when nobody answers."""
        return await asyncio.to_thread(_fetch, f"http://127.0.0.1:{self.port}{path}")

    def last_words(self) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-LAST_LINES:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _fetch(url: str) -> tuple[int, bytes]:
    try:
        with urlopen(url, timeout=2) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()
    except (URLError, OSError):
        return 0, b""


def _missing(body: bytes) -> str:
    try:
        page = msgspec.json.decode(body, type=_Readiness)
    except msgspec.DecodeError:
        return "starting"
    missing = [reason.stage or reason.reason for reason in page.why]
    return f"waiting for {', '.join(missing)}" if missing else "starting"


class _Reason(msgspec.Struct):
    reason: str = ""
    stage: str = ""


class _Readiness(msgspec.Struct):
    """``/readyz``, as far as it is read here."""

    why: list[_Reason] = []
