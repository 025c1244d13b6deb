"""What the neural voices share: a text is cut into parts, and each part is one run of a network.

A part leaves as soon as it is made, so the caller hears the first while the next is in the making. A step is one run, for the
stream that was served longest ago; the others ask for ``more``. A cancel takes effect between two parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from voiceserver_workers.engine import Audio, EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind, StreamParams
from voiceserver_workers.sentences import check_sentences, speakable

# How a session wants it said, and what one run of the network is given.
Manner = TypeVar("Manner")
Part = TypeVar("Part")


@dataclass(slots=True)
class _Stream(Generic[Manner, Part]):
    """texts: asked for and not begun, with their turns. parts: what is left of the text in the making."""

    manner: Manner
    served_step: int = 0
    texts: deque[tuple[int, str]] = field(default_factory=deque)
    turn: int = 0
    is_making: bool = False
    parts: deque[Part] = field(default_factory=deque)

    def forget_text(self) -> None:
        self.turn = 0
        self.is_making = False
        self.parts = deque()

    @property
    def is_busy(self) -> bool:
        return self.is_making or bool(self.texts)


class SentenceVoice(ABC, Generic[Manner, Part]):
    """Base of a tts engine. A subclass sets ``info`` and says how options are read, a text is cut and a part is said."""

    info: EngineInfo

    def __init__(self) -> None:
        self._streams: dict[int, _Stream[Manner, Part]] = {}
        self._steps = 0

    @abstractmethod
    def manner_of(self, options: Mapping[str, object]) -> Manner:
        """How a stream with ``options`` speaks. Raises ValueError naming the option."""

    @abstractmethod
    def cut(self, text: str, manner: Manner) -> Iterable[Part]:
        """The parts of ``text``; none where there is nothing to say."""

    @abstractmethod
    def say(self, part: Part, manner: Manner) -> Audio:
        """Float32 (n,) at ``info.rate_hz``. The same part in the same manner gives the same samples each time."""

    def open(self, stream: int, params: StreamParams) -> None:
        if stream in self._streams:
            raise EngineError("stream_open", "the stream is open already")
        for key in params.options:
            if key not in self.info.options:
                known = ", ".join(self.info.options)
                raise EngineError("bad_option", f"{key}: {self.info.name} has no such option; it has {known}")
        try:
            self._streams[stream] = _Stream(self.manner_of(params.options))
        except ValueError as error:
            raise EngineError("bad_option", str(error)) from None

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        states = [self._streams[item.stream] for item in batch]
        check_sentences(batch)
        self._steps += 1
        for item, state in zip(batch, states, strict=True):
            if item.text is not None and not item.is_continued:
                state.texts.append((item.turn, speakable(item.text)))
        outputs = [Output() for _ in batch]
        for index in sorted(range(len(batch)), key=lambda index: states[index].served_step):
            if self._advance(states[index], outputs[index]):
                break
        for output, state in zip(outputs, states, strict=True):
            output.more = state.is_busy
        return outputs

    def cancel(self, stream: int, turn: int) -> None:
        state = self._streams.get(stream)
        if state is None:
            return
        state.texts = deque(text for text in state.texts if text[0] > turn)
        if state.turn <= turn:
            state.forget_text()

    def close(self, stream: int) -> None:
        self._streams.pop(stream, None)

    def _advance(self, state: _Stream[Manner, Part], output: Output) -> bool:
        """One run of the network at most. True: there was one."""
        if not state.is_making and state.texts:
            state.turn, text = state.texts.popleft()
            state.is_making = True
            if any(map(str.isalnum, text)):
                state.parts.extend(self.cut(text, state.manner))
        if not state.is_making:
            return False
        has_run = bool(state.parts)
        if has_run:
            state.served_step = self._steps
            audio = self.say(state.parts.popleft(), state.manner)
            if audio.size:
                output.pieces.append(Piece(ResultKind.AUDIO, audio))
        if not state.parts:
            output.pieces.append(Piece(ResultKind.DONE))
            state.forget_text()
        return has_run


def number(key: str, value: object, low: float, high: float) -> float:
    """``value`` as a float. Raises ValueError naming ``key``, the value and what is allowed."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{key}: must be a number from {low} to {high}, not {value!r}")
    return float(value)
