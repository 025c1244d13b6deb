"""The caller's own words, in the caller's own voice: a speech-to-speech engine with no model.

It keeps the audio of a turn and gives it back when the turn has ended. For trying out a line, a microphone or a telephone
gateway, and for measuring everything around an engine. Rule: what goes in comes out, sample for sample, where the caller's
and the reply's rate are this engine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from voiceserver_workers.engine import Audio, EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

RATE_HZ = 16_000
STEP_SAMPLES = RATE_HZ  # said in one step; longer turns share the worker with others


class _Stream:
    """heard: the turn so far. sent_samples: how many samples of it were given back."""

    __slots__ = ("heard", "sent_samples", "turn")

    def __init__(self) -> None:
        self.heard: list[Audio] = []
        self.sent_samples = 0
        self.turn = 0

    def forget(self) -> None:
        self.heard.clear()
        self.sent_samples = 0


class Echo:
    """Reply engine that takes audio. Takes no params and no stream options."""

    takes_audio = True  # for the server, which reads this without running it

    def __init__(self, params: Mapping[str, object]) -> None:
        for key in params:
            raise ValueError(f"{key}: echo has no parameters")
        self.info = EngineInfo("echo", "reply", RATE_HZ, takes_audio=True)
        self._streams: dict[int, _Stream] = {}

    def open(self, stream: int, params: StreamParams) -> None:
        for key in params.options:
            raise EngineError("bad_option", f"echo takes no options, so not {key!r}")
        if stream in self._streams:
            raise EngineError("stream_open", "the stream is open already")
        self._streams[stream] = _Stream()

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        states = [self._streams[item.stream] for item in batch]  # a stranger raises before anything changed
        return [_answer(item, state) for item, state in zip(batch, states, strict=True)]

    def cancel(self, stream: int, turn: int) -> None:
        state = self._streams.get(stream)
        if state is not None and state.turn <= turn:
            state.forget()

    def close(self, stream: int) -> None:
        self._streams.pop(stream, None)


def _answer(item: Item, state: _Stream) -> Output:
    if item.is_continued:
        return _say(state) if state.heard else Output()
    state.turn = item.turn
    if len(item.audio):
        state.heard.append(item.audio.copy())
    return _say(state) if item.is_flush else Output()


def _say(state: _Stream) -> Output:
    """The next second of what was heard; DONE behind the last."""
    whole = np.concatenate(state.heard) if state.heard else np.empty(0, np.float32)
    state.heard = [whole]
    part = whole[state.sent_samples : state.sent_samples + STEP_SAMPLES]
    state.sent_samples += len(part)
    pieces = [Piece(ResultKind.AUDIO, part)] if len(part) else []
    if state.sent_samples < len(whole):
        return Output(pieces, more=True)
    state.forget()
    return Output([*pieces, Piece(ResultKind.DONE)])
