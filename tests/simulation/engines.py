"""Engines whose answers can be checked to the sample: a word is a run of equal samples, its transcript that number.

Audio is at 1000 Hz, so that a sample is a millisecond. ``transcript``: "17:120 18:120" is word 17 heard for all its 120
samples, then word 18. A reply's text follows from its request, a sentence's audio from its text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from voiceserver.announcements.fillers import Fillers
from voiceserver_workers.engine import EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind, StreamParams, pack_speech

RATE_HZ = 1000
WINDOW = 20
WORD = 120  # samples of a word
POISON = 31_000  # a word that kills whoever hears it

Mischief = Callable[[Sequence[Item]], None]


def no_mischief(batch: Sequence[Item]) -> None:
    pass


def samples_of(item: Item) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.rint(item.audio * 32_768).astype(np.int32)


class _Engine:
    stage = "vad"

    def __init__(self, mischief: Mischief = no_mischief, max_streams: int = 0) -> None:
        rate_hz = 0 if self.stage == "reply" else RATE_HZ
        self.info = EngineInfo(
            f"sim-{self.stage}",
            self.stage,  # type: ignore[arg-type]
            rate_hz,
            max_streams,
            works_ahead=self.stage == "stt",
        )
        self._mischief = mischief

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        self._mischief(batch)
        return [self.answer(item) for item in batch]

    def answer(self, item: Item) -> Output:
        raise NotImplementedError

    def cancel(self, stream: int, turn: int) -> None:
        pass


class SimVad(_Engine):
    """Speech is what is not zero."""

    def __init__(self, mischief: Mischief = no_mischief, max_streams: int = 0) -> None:
        super().__init__(mischief, max_streams)
        self._rest: dict[int, tuple[int, np.ndarray[tuple[int], np.dtype[np.int32]]]] = {}

    def open(self, stream: int, params: StreamParams) -> None:
        self._rest[stream] = (params.start_seq, np.zeros(0, np.int32))

    def answer(self, item: Item) -> Output:
        audio = samples_of(item)
        begin, rest = self._rest[item.stream]
        end = int(item.end_ms)
        if begin + len(rest) + len(audio) != end:  # audio was shed in between
            begin, rest = end - len(audio), np.zeros(0, np.int32)
        audio = np.concatenate((rest, audio))
        count = len(audio) // WINDOW
        windows = audio[: count * WINDOW].reshape(count, WINDOW)
        self._rest[item.stream] = (begin + count * WINDOW, audio[count * WINDOW :])
        if not count:
            return Output()
        speech = [0.95 if any_ else 0.02 for any_ in (windows != 0).any(axis=1)]
        return Output([Piece(ResultKind.SPEECH, pack_speech(float(begin), float(WINDOW), speech))])

    def close(self, stream: int) -> None:
        self._rest.pop(stream, None)


class SimStt(_Engine):
    stage = "stt"

    def __init__(self, mischief: Mischief = no_mischief, max_streams: int = 0) -> None:
        super().__init__(mischief, max_streams)
        self._runs: dict[int, dict[int, list[list[int]]]] = {}

    def open(self, stream: int, params: StreamParams) -> None:
        self._runs[stream] = {}

    def answer(self, item: Item) -> Output:
        audio = samples_of(item)
        if POISON in audio:
            raise EngineError("never", "the mischief comes first")
        runs = self._runs[item.stream].setdefault(item.turn, [])
        edges = np.flatnonzero(np.diff(audio)) + 1
        for piece in np.split(audio, edges) if len(audio) else []:
            if runs and runs[-1][0] == piece[0]:
                runs[-1][1] += len(piece)
            else:
                runs.append([int(piece[0]), len(piece)])
        if item.is_flush:
            del self._runs[item.stream][item.turn]
            return Output([Piece(ResultKind.FINAL, transcript(runs))])
        if item.is_final_only and not item.is_pause:
            return Output()
        text = transcript(runs if item.is_pause else runs[:-1])
        return Output([Piece(ResultKind.TEXT, text)] if text else [])

    def close(self, stream: int) -> None:
        self._runs.pop(stream, None)


def transcript(runs: Sequence[Sequence[int]]) -> str:
    return " ".join(f"{word}:{count}" for word, count in runs if word)


class SimReply(_Engine):
    """One sentence a step."""

    stage = "reply"

    def __init__(self, mischief: Mischief = no_mischief, max_streams: int = 0) -> None:
        super().__init__(mischief, max_streams)
        self._left: dict[int, list[str]] = {}

    def open(self, stream: int, params: StreamParams) -> None:
        self._left[stream] = []

    def answer(self, item: Item) -> Output:
        if not item.is_continued:
            self._left[item.stream] = sentences_of(json.loads(item.text or "{}"))
        left = self._left[item.stream]
        sentence = left.pop(0)
        return Output([Piece(ResultKind.TEXT, sentence)], more=bool(left))

    def close(self, stream: int) -> None:
        self._left.pop(stream, None)


def sentences_of(request: dict[str, object]) -> list[str]:
    turn = int(str(request["turn"]))
    return [f"s{turn} {'x' * (1 + index)}{index}." for index in range(1 + turn % 3)]


class SimTts(_Engine):
    """Ten samples for every byte, a third of the sentence a step."""

    stage = "tts"

    def __init__(self, mischief: Mischief = no_mischief, max_streams: int = 0) -> None:
        super().__init__(mischief, max_streams)
        self._left: dict[int, np.ndarray[tuple[int], np.dtype[np.int16]]] = {}

    def open(self, stream: int, params: StreamParams) -> None:
        pass

    def answer(self, item: Item) -> Output:
        if not item.is_continued:
            self._left[item.stream] = speech_of(item.text or "")
        left = self._left[item.stream]
        piece, left = left[:37], left[37:]
        self._left[item.stream] = left
        audio = piece.astype(np.float32) / np.float32(32_768)
        return Output([Piece(ResultKind.AUDIO, audio)], more=bool(len(left)))

    def close(self, stream: int) -> None:
        self._left.pop(stream, None)


def speech_of(text: str) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    return np.repeat(np.frombuffer(text.encode(), np.uint8).astype(np.int16), 10)


class SimFillers(Fillers):
    """Made already; an audit knows them by their text."""

    def audio(self, index: int, rate_hz: int, language: str = "") -> tuple[str, bytes]:
        return self.texts[index], speech_of(self.texts[index]).tobytes()
