"""A real ``voiceserver serve`` process to talk to, and what it logged."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "workers", ROOT / "clients"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCES, "PYTHONUNBUFFERED": "1"}
SMALL = (
    "stages.vad.engine=none",
    "stages.stt.engine=none",
    "stages.reply.engine=concierge",
    "stages.tts.engine=none",
)
# Senses that hear and say the same in every run, and start soon. With a limit of its own a server has none to measure.
# What ``auto`` chooses is tried by tests/e2e/test_conversation.py, tests/test_wheel.py and the tests of those engines.
STEADY = (
    "stages.stt.engine=pocketsphinx",
    "stages.stt.workers=1",
    "stages.tts.engine=espeak",
    "backpressure.max_talkers=64",
)


class ServerProcess:
    """``settings`` are ``key=value``. Lines of its log are dictionaries; ``wait_for`` reads on until one comes.
    command: another program than ``python`` with the words of ``program``."""

    def __init__(
        self,
        *settings: str,
        program: tuple[str, ...] = ("-m", "voiceserver"),
        port: int = 0,
        command: tuple[str, ...] = (),
        environment: Mapping[str, str] = ENVIRONMENT,
        folder: Path | None = None,
    ) -> None:
        flags = [part for setting in settings for part in ("--set", setting)]
        self.process = subprocess.Popen(
            [*(command or (sys.executable, *program)), "serve", "--port", str(port), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        self.log: list[dict[str, Any]] = []
        self.plain: list[str] = []  # what was written that is no log entry
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = int(self.wait_for("listening")["port"])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                try:
                    self.log.append(json.loads(line))
                except json.JSONDecodeError:
                    self.plain.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, event: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """The first log entry of ``event``, now or to come."""

        def found() -> bool:
            return any(entry["event"] == event for entry in self.log) or not self._reader.is_alive()

        with self._changed:
            self._changed.wait_for(found, timeout_s)
            for entry in self.log:
                if entry["event"] == event:
                    return entry
        raise AssertionError(f"no {event!r} in the log: {self.log} {self.plain}")

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    def get(self, path: str, method: str = "GET") -> tuple[int, Any]:
        """Status and JSON (or text) of one HTTP request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read().decode()
            return response.status, json.loads(body) if response.getheader(
                "Content-Type"
            ) == "application/json" else body

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Until ``/readyz`` says that a caller would be served at once."""
        deadline = time.monotonic() + timeout_s
        while (answer := self.get("/readyz"))[0] != 200:
            assert time.monotonic() < deadline, (answer, self.log)
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Its exit code; its whole log has been read then."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()


@contextlib.contextmanager
def serving(
    *settings: str,
    program: tuple[str, ...] = ("-m", "voiceserver"),
    port: int = 0,
    environment: Mapping[str, str] = ENVIRONMENT,
) -> Iterator[ServerProcess]:
    server = ServerProcess(*settings, program=program, port=port, environment=environment)
    try:
        server.wait_for("started")
        yield server
    finally:
        server.end()
