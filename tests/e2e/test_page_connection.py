"""What becomes of the page when its connection breaks, its session is gone, or the server wants a key."""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import Visit, chromium, visiting
from tests.e2e.serving import SMALL, ServerProcess, serving
from voiceserver.server.auth import hash_of

pytestmark = pytest.mark.timeout(180)


class Cable:
    """A port that leads to another one, until ``cut`` breaks every connection through it; new ones work again if ``is_whole``."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.is_whole = True
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                if not self.is_whole:
                    near.close()
                    continue
                far = socket.create_connection(self._to)
            except OSError:
                return
            with self._lock:
                self._pairs.add((near, far))
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        with selectors.DefaultSelector() as selector, near, far, contextlib.suppress(OSError, ValueError):
            for side in other:
                selector.register(side, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    side = key.fileobj
                    assert isinstance(side, socket.socket)
                    data = side.recv(65_536)
                    if not data:
                        return
                    other[side].sendall(data)

    def cut(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for side in pair:
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # An accept that waits is woken by a shutdown, not by a close.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join(10)


@contextlib.contextmanager
def cable_to(server: ServerProcess) -> Iterator[Cable]:
    cable = Cable(server.port)
    try:
        yield cable
    finally:
        cable.close()


def say(visit: Visit, text: str) -> None:
    visit.ask(text)
    visit.page.locator(".turn", has_text=text).locator(".reply[data-state=completed]").wait_for()


def test_a_broken_connection_goes_on_with_the_same_session(silence: Path) -> None:
    chromium()
    with (
        serving(*SMALL) as server,
        cable_to(server) as cable,
        visiting(f"http://localhost:{cable.port}/", silence) as visit,
    ):
        say(visit, "How much is two plus three?")
        cable.cut()
        ready = visit.wait_event("session.ready", is_resumed=True)
        assert ready["session_id"] == visit.events("session.ready")[0]["session_id"]
        visit.page.locator("#banner").wait_for(state="hidden")
        say(visit, "How much is four plus five?")
        assert [event["turn"] for event in visit.events("reply.done")] == [1, 2]  # nothing came twice


def test_a_session_that_is_gone_is_followed_by_a_new_one(silence: Path) -> None:
    chromium()
    with (
        serving(*SMALL, "session.resume_window_ms=1") as server,
        cable_to(server) as cable,
        visiting(f"http://localhost:{cable.port}/", silence) as visit,
    ):
        say(visit, "How much is two plus three?")
        cable.is_whole = False
        cable.cut()
        # Who is quicker than the server forgets would still get the old session.
        server.wait_for("session closed")
        cable.is_whole = True
        visit.wait(
            "new Set(__voiceserver.events.map((event) => event.session_id).filter(Boolean)).size === 2"
        )
        say(visit, "How much is four plus five?")
        assert visit.page.locator(".turn").count() == 2


def test_a_key_is_asked_for_and_used(silence: Path, tmp_path: Path) -> None:
    chromium()
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[keys.page]\nhash = "{hash_of("vs_right")}"\nis_admin = true\n')
    with (
        serving(*SMALL, f"auth.keys_file={keys}") as server,
        visiting(f"http://localhost:{server.port}/", silence) as visit,
    ):
        visit.page.get_by_label("Type instead of talking").fill("How much is two plus three?")
        visit.page.keyboard.press("Enter")
        visit.page.get_by_label("Key").fill("vs_right")
        visit.page.get_by_role("button", name="Use it").click()
        visit.wait_text(".reply", "5")
        visit.page.goto(f"http://localhost:{server.port}/dashboard")  # the same tab has it already
        visit.wait("document.querySelector('#status').dataset.state === 'open'")
        visit.page.evaluate("sessionStorage.clear()")
        visit.page.reload()
        visit.page.get_by_label("Key").fill("vs_wrong")
        visit.page.get_by_role("button", name="Show the figures").click()
        visit.page.get_by_label("Key").fill("vs_right")
        visit.page.get_by_role("button", name="Show the figures").click()
        visit.wait("document.querySelector('#status').dataset.state === 'open'")
        assert re.search(r"\d", visit.text(".tile b"))
