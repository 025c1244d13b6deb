"""A reply engine for real servers that answers the last words of the user, and does what they ask for: it dies, hangs, raises.

params: ``flag``: a path; while a file is there, no worker of it can start.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from voiceserver.testing.engines import POISON
from voiceserver_workers.engine import EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind, StreamParams


class Answering:
    def __init__(self, params: Mapping[str, Any]) -> None:
        flag = params.get("flag")
        if flag and os.path.exists(str(flag)):
            os._exit(9)
        self.info = EngineInfo("answering", "reply", max_streams=int(params.get("max_streams", 0)))
        self._streams: set[int] = set()

    def open(self, stream: int, params: StreamParams) -> None:
        self._streams.add(stream)

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        return [self._answer(item) for item in batch]

    def _answer(self, item: Item) -> Output:
        words = str(json.loads(item.text or "{}")["messages"][-1]["content"])
        if words in POISON:
            POISON[words]()
        if words == "raise":
            raise EngineError("refused", "The engine does not like these words.")
        if words == "bug":
            raise ZeroDivisionError("a secret of the engine")
        if words.startswith("sleep "):
            time.sleep(float(words.split()[1]))
        return Output([Piece(ResultKind.TEXT, f"You said {words}."), Piece(ResultKind.DONE, "{}")])

    def cancel(self, stream: int, turn: int) -> None:
        pass

    def close(self, stream: int) -> None:
        self._streams.discard(stream)


class Light(Answering):
    """The same in a hurry: what a lighter engine is for. It takes long enough to be heard of."""

    def _answer(self, item: Item) -> Output:
        words = str(json.loads(item.text or "{}")["messages"][-1]["content"])
        time.sleep(0.1)
        return Output([Piece(ResultKind.TEXT, f"Light: {words}."), Piece(ResultKind.DONE, "{}")])
