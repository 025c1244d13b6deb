"""A caller without a voice: it writes words, and reads what the server answers. Blocking, one thread."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

Event = dict[str, Any]
NO_VOICE = {"stages.vad.engine": "none", "stages.stt.engine": "none", "stages.tts.engine": "none"}


class Chat:
    def __init__(self, url: str) -> None:
        one = connect(url, compression=None, open_timeout=30, close_timeout=1)
        self.socket: ClientConnection = one.__enter__()
        self.events: list[Event] = []
        self.times: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, **event: object) -> None:
        self.socket.send(json.dumps(event))

    def ask(self, words: str) -> None:
        self.send(type="item.append", item={"role": "user", "text": words})
        self.send(type="reply.create")

    def read_until(self, is_it: Callable[[Event], bool], timeout_s: float = 30.0) -> Event:
        deadline = time.monotonic() + timeout_s
        while True:
            message = self.socket.recv(timeout=max(deadline - time.monotonic(), 0.001))
            if isinstance(message, str):
                self.events.append(json.loads(message))
                self.times.append(time.monotonic())
                if is_it(self.events[-1]):
                    return self.events[-1]

    def read_type(self, kind: str, timeout_s: float = 30.0) -> Event:
        return self.read_until(lambda event: event["type"] == kind, timeout_s)

    def talk(self, words: str) -> str:
        """Ask, and the answer; "" when none came."""
        self.ask(words)
        done = self.read_type("reply.done")
        return str(done.get("text", ""))

    def read_end(self, timeout_s: float = 30.0) -> int:
        """Everything up to the end; the close code."""
        with contextlib.suppress(ConnectionClosed):
            self.read_until(lambda _: False, timeout_s)
        assert self.socket.close_code is not None
        return self.socket.close_code

    def said(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["type"] == kind]
