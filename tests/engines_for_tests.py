"""Engines for tests only: well behaved, slow, and broken in every way that an engine can be.

By name in real workers: ``tests.engines_for_tests:Crashing``. ``stage`` among the params says what they pose as
(default reply). ``after`` is how many good steps come before the trouble.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from voiceserver_workers.engine import STAGES, EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind, StreamParams, pack_speech

RATE_HZ = 16000


class Echo:
    """Gives back what it got: text as text, audio as its length, a sentence as a tone of one frame a character."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = dict(params)
        stage = self.params.get("stage", "reply")
        if stage not in STAGES:
            raise ValueError(f"stage: must be one of {', '.join(STAGES)}, not {stage!r}")
        self.after = int(self.params.get("after", 0))
        rate_hz = 0 if stage == "reply" else RATE_HZ
        self.info = EngineInfo("echo", stage, rate_hz, int(self.params.get("max_streams", 0)))
        self.heard: dict[int, int] = {}
        self.steps = 0

    def open(self, stream: int, params: StreamParams) -> None:
        for key in params.options:
            raise EngineError("bad_option", f"{key}: echo has no options")
        if stream in self.heard:
            raise EngineError("stream_open", "the stream is open already")
        self.heard[stream] = 0

    def cancel(self, stream: int, turn: int) -> None:
        if stream in self.heard:
            self.heard[stream] = 0

    def close(self, stream: int) -> None:
        self.heard.pop(stream, None)

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        for item in batch:
            if item.stream not in self.heard:
                raise EngineError("stream_unknown", "the stream is not open")
        self.steps += 1
        if self.steps > self.after:
            self.trouble(batch)
        return [Output(self._pieces(item)) for item in batch]

    def trouble(self, batch: Sequence[Item]) -> None:
        """What a subclass does wrong."""

    def _pieces(self, item: Item) -> list[Piece]:
        if item.is_continued:
            return []
        match self.info.stage:
            case "reply":
                return [Piece(ResultKind.TEXT, item.text or ""), Piece(ResultKind.DONE)]
            case "tts":
                tone = np.sin(np.arange(320 * len(item.text or ""), dtype=np.float32) * np.float32(0.2))
                return [Piece(ResultKind.AUDIO, tone * np.float32(0.5)), Piece(ResultKind.DONE)]
            case "vad":
                loudness = float(np.abs(item.audio).max(initial=0.0))
                start_ms = item.end_ms - len(item.audio) * 1000 / RATE_HZ
                window_ms = len(item.audio) * 1000 / RATE_HZ
                return [Piece(ResultKind.SPEECH, pack_speech(start_ms, window_ms, [loudness]))]
        self.heard[item.stream] += len(item.audio)
        if not item.is_flush:
            return []
        heard, self.heard[item.stream] = self.heard[item.stream], 0
        return [Piece(ResultKind.FINAL, f"{heard} samples")]


class Slow(Echo):
    """Takes ``step_ms`` for every step."""

    def trouble(self, batch: Sequence[Item]) -> None:
        time.sleep(float(self.params.get("step_ms", 50)) / 1000)


class Crashing(Echo):
    """The process is gone from one moment to the next."""

    def trouble(self, batch: Sequence[Item]) -> None:
        os.abort()


class Hanging(Echo):
    """Never returns from a step."""

    def trouble(self, batch: Sequence[Item]) -> None:
        while True:
            time.sleep(3600)


class WrongLength(Echo):
    """Loses the output of one item."""

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        return super().step(batch)[1:]


class Raising(Echo):
    """Raises for an item whose text is ``text``, or for all if none is given: an EngineError, or a bug."""

    def trouble(self, batch: Sequence[Item]) -> None:
        wanted = self.params.get("text")
        if wanted is None or any(item.text == wanted for item in batch):
            if self.params.get("is_bug"):
                raise ZeroDivisionError("an engine's own trouble, not for callers")
            raise EngineError("refused", "the engine does not like this text")


class MemoryHungry(Echo):
    """Takes ``mib`` of memory at every step and never gives it back."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.hoard: list[bytearray] = []

    def trouble(self, batch: Sequence[Item]) -> None:
        self.hoard.append(bytearray(int(self.params.get("mib", 64)) << 20))
