"""Engines that cost next to nothing, so that what is measured around them is the connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voiceserver_workers.engine import EngineInfo, Item, Output, Piece, Stage
from voiceserver_workers.ipc.messages import ResultKind, StreamParams, pack_speech

RATE_HZ = 16_000
MESSAGE_BYTES = 3_200


class _Engine:
    def __init__(self, name: str, stage: Stage, rate_hz: int) -> None:
        self.info = EngineInfo(name, stage, rate_hz)

    def open(self, stream: int, params: StreamParams) -> None:
        """Nothing to keep."""

    def cancel(self, stream: int, turn: int) -> None:
        """Nothing to forget."""

    def close(self, stream: int) -> None:
        """Nothing to free."""


class Taker(_Engine):
    """Voice activity detection that hears silence in everything."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__("taker", "vad", RATE_HZ)

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        outputs = []
        for item in batch:
            length_ms = len(item.audio) * 1000.0 / RATE_HZ
            silence = pack_speech(item.end_ms - length_ms, length_ms, [0.0])
            outputs.append(Output([Piece(ResultKind.SPEECH, silence)]))
        return outputs


class Asked(_Engine):
    """Answers everything with one short sentence."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__("asked", "reply", 0)

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        return [Output([Piece(ResultKind.TEXT, "Yes."), Piece(ResultKind.DONE)]) for _ in batch]


class Talker(_Engine):
    """Speaks ``messages`` messages of 100 ms for each sentence, one a step, as fast as they are taken."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__("talker", "tts", RATE_HZ)
        self._messages = int(params.get("messages", 100))
        self._left: dict[int, int] = {}

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        outputs = []
        for item in batch:
            left = self._left.pop(item.stream, 0) if item.is_continued else self._messages
            pieces = [Piece(ResultKind.AUDIO, bytes(MESSAGE_BYTES))] if left else []
            if left > 1:
                self._left[item.stream] = left - 1
            outputs.append(Output(pieces, more=left > 1))
        return outputs
