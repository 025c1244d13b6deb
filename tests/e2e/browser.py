"""Headless Chromium with a microphone that plays a file, and what a test may ask of the page in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from tests.e2e.serving import ServerProcess

RATE_HZ = 48_000  # what a real microphone has, so that the page resamples
WAIT_MS = 60_000.0
FLAGS = (
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def chromium() -> str:
    """Where Chromium is. Skips the test, visibly, where it or its driver is missing."""
    pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    for name in (os.environ.get("VOICESERVER_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name) if name else None
        if found is not None:
            return found
    pytest.skip("no Chromium here: install the package chromium, or name it in $VOICESERVER_CHROMIUM")


def page_of(server: ServerProcess) -> str:
    return f"http://localhost:{server.port}/"


def write_microphone(path: Path, audio: npt.NDArray[np.float32], rate_hz: int, *silence_s: float) -> Path:
    """A file for the microphone: so much silence, ``audio`` (mono), so much silence. It is padded to be long enough
    that Chromium has no reason to begin again."""
    import soxr

    before_s, after_s = silence_s
    speech = soxr.resample(audio, rate_hz, RATE_HZ)
    quiet = [np.zeros(int(s * RATE_HZ), np.float32) for s in (before_s, after_s)]
    soundfile.write(path, np.concatenate((quiet[0], speech, quiet[1])), RATE_HZ, subtype="PCM_16")
    return path


class Visit:
    """One page that is open. ``problems``: what its console complained about; ``requests``: every address it asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.problems: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(text)

    def wait(self, condition: str) -> Any:
        """Until a JavaScript expression is true."""
        return self.page.wait_for_function(f"() => {condition}").json_value()

    def wait_event(self, kind: str, **fields: object) -> dict[str, Any]:
        """The first event of the server of that type and with those fields, now or to come."""
        found: dict[str, Any] = self.page.wait_for_function(
            """([kind, fields]) => __voiceserver.events.find((event) => event.type === kind &&
                 Object.entries(fields).every(([name, value]) => event[name] === value))""",
            arg=[kind, fields],
        ).json_value()
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.page.evaluate(
            "(kind) => __voiceserver.events.filter((event) => event.type === kind)", kind
        )
        return found

    def ask(self, text: str) -> None:
        """Type a question and send it."""
        self.page.get_by_label("Type instead of talking").fill(text)
        self.page.keyboard.press("Enter")

    def wait_text(self, selector: str, words: str | re.Pattern[str]) -> None:
        self.page.locator(selector).filter(has_text=words).first.wait_for()

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())


class Browsers:
    """One browser for each microphone. They run until :meth:`close`: to start one takes longer than most visits.

    While one runs, its driver has an event loop in this thread, so it is closed before another test starts a loop of its own."""

    def __init__(self) -> None:
        self._started = contextlib.ExitStack()
        self._driver: Any = None
        self._running: dict[tuple[str, ...], Any] = {}

    def get(self, microphone: Path, flags: tuple[str, ...]) -> Any:
        executable = chromium()
        from playwright.sync_api import sync_playwright

        if self._driver is None:
            self._driver = self._started.enter_context(sync_playwright())
        arguments = (*FLAGS, f"--use-file-for-fake-audio-capture={microphone}%noloop", *flags)
        browser = self._running.get(arguments)
        if browser is None or not browser.is_connected():
            browser = self._driver.chromium.launch(executable_path=executable, args=list(arguments))
            self._running[arguments] = browser
        return browser

    def close(self) -> None:
        for browser in self._running.values():
            browser.close()
        self._running.clear()
        self._driver = None
        self._started.close()


BROWSERS = Browsers()


@contextlib.contextmanager
def visiting(
    address: str, microphone: Path, *, flags: tuple[str, ...] = (), **context: object
) -> Iterator[Visit]:
    """A new person at ``address``: nothing of earlier visits is known. ``flags``: more of the browser's own. ``context``: options
    of a Playwright context, such as the size of the window."""
    visitor = BROWSERS.get(microphone, flags).new_context(**context)
    try:
        visit = Visit(visitor.new_page())
        visit.page.goto(address)
        yield visit
    finally:
        visitor.close()
