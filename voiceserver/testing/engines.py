"""An engine for tests of pools: it answers, or fails as its input asks. Real workers load it by name."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from voiceserver_workers.engine import EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind, StreamParams


class Obedient:
    """A reply engine that answers a text with the text and the number of items that its stream has had.

    Texts that make it fail are the keys of ``POISON``, "raise", "sleep 0.1", "work 0.1" and "toil 0.1" (seconds).
    params: ``max_streams`` as in ``EngineInfo``; ``load`` says how making the engine fails, or never ends.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        if params.get("load") == "bad params":
            raise ValueError("load: 'bad params' is none of the values it can have")
        if params.get("load") == "exit":
            os._exit(3)
        if params.get("load") == "for ever":
            time.sleep(3_600)
        self.info = EngineInfo(
            "obedient", "reply", max_streams=int(params.get("max_streams", 0)), options=("voice",)
        )
        self._count: dict[int, int] = {}

    @staticmethod
    def preload(params: Mapping[str, Any]) -> None:
        if params.get("load") == "bad preload":
            raise ValueError("load: the weights are not there")

    def open(self, stream: int, params: StreamParams) -> None:
        if params.options.get("voice") == "nobody":
            raise EngineError("bad_voice", "There is no voice 'nobody'.")
        if params.options.keys() - set(self.info.options):
            raise EngineError("bad_option", "It has the option 'voice' and no other.")
        self._count[stream] = 0

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        return [self._answer(item) for item in batch]

    def _answer(self, item: Item) -> Output:
        text = item.text or ""
        self._count[item.stream] += 1
        if text in POISON:
            POISON[text]()
        if text == "raise":
            raise RuntimeError("a secret of the engine")
        if text.startswith("sleep "):
            time.sleep(float(text.split()[1]))
        if text.startswith("work "):
            _work(float(text.split()[1]))
        if text.startswith("toil "):
            # It waits most of the time, but gets on.
            give_up_s = time.monotonic() + float(text.split()[1])
            while time.monotonic() < give_up_s:
                _work(0.02)
                time.sleep(0.1)
        if text.startswith("pid"):
            text = str(os.getpid())
        return Output([Piece(ResultKind.TEXT, f"{text} {self._count[item.stream]}")])

    def cancel(self, stream: int, turn: int) -> None:
        pass

    def close(self, stream: int) -> None:
        self._count.pop(stream, None)


def _work(seconds: float) -> None:
    """Use so many seconds of the processor."""
    end_s = time.process_time() + seconds
    while time.process_time() < end_s:
        pass


def _eat_memory() -> None:
    # Room for the interpreter as it is, and little more.
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
    limit = pages * resource.getpagesize() + 64 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    hoard = [bytearray(2**20)]
    while True:
        hoard.append(bytearray(2**20))


def _leave() -> None:
    raise SystemExit(5)


POISON: dict[str, Callable[[], object]] = {
    "exit": _leave,
    "_exit": lambda: os._exit(4),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "segfault": lambda: ctypes.string_at(0),
    "memory": _eat_memory,
}
