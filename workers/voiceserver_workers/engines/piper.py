"""Piper neural text to speech, sentence by sentence.

A text is cut into sentences; each is one run of the network and leaves as soon as it is made, so the caller hears the first
while the next is in the making. A step is one run, for the stream that was served longest ago; the others ask for
``more``. A cancel takes effect between two sentences.

Piper is GPLv3, so it is an optional extra, and imported in a worker process only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from voiceserver_workers.engine import EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.engines.piper_voice import Manner, Voice
from voiceserver_workers.ipc.messages import ResultKind, StreamParams
from voiceserver_workers.sentences import check_sentences, speakable

_PARAMS = ("voice", "device", "threads", "speed", "speaker", "noise", "noise_w")
_OPTIONS = ("speed", "speaker", "voice")


class _Stream:
    """texts: asked for and not begun, with their turns. sentences: phoneme ids of the text in the making."""

    __slots__ = ("is_making", "manner", "sentences", "served_step", "texts", "turn")

    def __init__(self, manner: Manner) -> None:
        self.manner = manner
        self.served_step = 0
        self.texts: deque[tuple[int, str]] = deque()
        self.forget_text()

    def forget_text(self) -> None:
        self.turn = 0
        self.is_making = False
        self.sentences: deque[list[int]] = deque()

    @property
    def is_busy(self) -> bool:
        return self.is_making or bool(self.texts)


class Piper:
    """TTS engine. Params: voice (path of NAME.onnx, NAME.onnx.json beside it), device (cpu, cuda), threads, speed
    (0.25 to 4), speaker (name or number), noise, noise_w (0 to 2). Stream options: speed, speaker, and voice, a
    speaker's name for a session, where speakers have names."""

    def __init__(self, params: Mapping[str, object]) -> None:
        for key in params:
            if key not in _PARAMS:
                raise ValueError(f"{key}: piper has no such parameter; it has {', '.join(_PARAMS)}")
        path, device = params.get("voice", ""), params.get("device", "cpu")
        if device not in ("cpu", "cuda"):
            raise ValueError(f'device: must be "cpu" or "cuda", not {device!r}')
        threads = params.get("threads", 1)
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 256:
            raise ValueError(f"threads: must be a whole number from 1 to 256, not {threads!r}")
        manner = Manner(
            _number("speed", params.get("speed", 1.0), 0.25, 4.0),
            None,
            _optional("noise", params.get("noise")),
            _optional("noise_w", params.get("noise_w")),
        )
        if not isinstance(path, str):
            raise ValueError(f"voice: must be a path, not {path!r}")
        self._voice = Voice(path, threads=threads, use_cuda=device == "cuda")
        if "speaker" in params:
            manner = replace(manner, speaker=self._voice.speaker(params["speaker"]))
        self._manner = manner
        names = self._voice.speaker_names
        options = _OPTIONS if names else _OPTIONS[:2]
        self.info = EngineInfo("piper", "tts", self._voice.rate_hz, options=options, voices=names)
        self._streams: dict[int, _Stream] = {}
        self._steps = 0

    def open(self, stream: int, params: StreamParams) -> None:
        if stream in self._streams:
            raise EngineError("stream_open", "the stream is open already")
        manner = self._manner
        try:
            for key, value in params.options.items():
                if key == "speed":
                    manner = replace(manner, speed=_number("speed", value, 0.25, 4.0))
                elif key in self.info.options:
                    manner = replace(manner, speaker=self._voice.speaker(value, key))
                else:
                    raise ValueError(
                        f"{key}: piper has no such option; it has {', '.join(self.info.options)}"
                    )
        except ValueError as error:
            raise EngineError("bad_option", str(error)) from None
        self._streams[stream] = _Stream(manner)

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

    def _advance(self, state: _Stream, output: Output) -> bool:
        """One run of the network at most. True: there was one."""
        if not state.is_making and state.texts:
            state.turn, text = state.texts.popleft()
            state.is_making = True
            if any(map(str.isalnum, text)):
                state.sentences.extend(self._voice.sentences(text))
        if not state.is_making:
            return False
        has_run = bool(state.sentences)
        if has_run:
            state.served_step = self._steps
            audio = self._voice.say(state.sentences.popleft(), state.manner)
            output.pieces.append(Piece(ResultKind.AUDIO, audio))
        if not state.sentences:
            output.pieces.append(Piece(ResultKind.DONE))
            state.forget_text()
        return has_run


def _optional(key: str, value: object) -> float | None:
    return None if value is None else _number(key, value, 0.0, 2.0)


def _number(key: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{key}: must be a number from {low} to {high}, not {value!r}")
    return float(value)
