"""Silero voice activity, and at each pause the question whether the caller's turn is over.

::

    speech windows ... 200 ms of silence --> turn model over the turn so far (8 s at most) --> TURN

Rules: one judgement per pause; TURN comes right after the SPEECH that ends with the pause, and the windows after it follow
in a SPEECH of their own, so what a caller gets depends neither on how the audio was cut up nor on other callers. The
model takes tens of milliseconds, so a step asks it once; who has to wait asks for ``more``, longest waiting first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from voiceserver_workers import parameters
from voiceserver_workers.audio import float_to_pcm16, pcm16_to_float
from voiceserver_workers.engine import EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.engines.silero import RATE_HZ, WINDOW_MS, WINDOW_SAMPLES, Silero
from voiceserver_workers.engines.smart_turn_model import CONTEXT_SAMPLES, TurnModel, model_path
from voiceserver_workers.ipc.messages import ResultKind, StreamParams, pack_speech, pack_turn, unpack_speech

SPEECH_THRESHOLD = 0.5
SILENCE_THRESHOLD = 0.35
COMPLETE_THRESHOLD = 0.5
MIN_SPEECH_MS = 64.0
PRE_SPEECH_MS = 500.0
# The pause after which what comes is a new turn, where the last one sounded complete and where it did not.
NEW_TURN_MS, NEW_TURN_UNFINISHED_MS = 1000.0, 3000.0
_SAMPLE_BYTES = 2
_MS_SAMPLES = RATE_HZ // 1000
_PRE_SPEECH_BYTES = int(PRE_SPEECH_MS) * _MS_SAMPLES * _SAMPLE_BYTES
_CONTEXT_BYTES = CONTEXT_SAMPLES * _SAMPLE_BYTES
_OWN_PARAMS = ("model", "pause_ms", "turn_threads")


@dataclass(frozen=True, slots=True)
class _Window:
    start_ms: float
    probability: float


class _Stream:
    """heard: PCM16 since the turn began (or what may become its beginning), its end at ``heard_ms``. windows: not told
    yet. waiting_since: the step in which the first of them was found to end a pause, 0 for none."""

    __slots__ = (
        "heard",
        "heard_ms",
        "is_complete",
        "is_in_turn",
        "is_judged",
        "last_speech_ms",
        "run_ms",
        "waiting_since",
        "windows",
    )

    def __init__(self) -> None:
        self.heard = bytearray()
        self.heard_ms = 0.0
        self.windows: deque[_Window] = deque()
        self.waiting_since = 0
        self.forget_turn()

    def forget_turn(self) -> None:
        self.is_in_turn = False
        self.is_judged = False
        self.is_complete = False
        self.run_ms = 0.0
        self.last_speech_ms = 0.0

    def hear(self, item: Item) -> None:
        self.heard += float_to_pcm16(item.audio)
        self.heard_ms = item.end_ms

    def trim(self) -> None:
        """Keep what a judgement could still need: memory of an idle caller is half a second."""
        unseen = self.windows[0].start_ms if self.windows else self.heard_ms
        unseen_bytes = max(0, round((self.heard_ms - unseen) * _MS_SAMPLES)) * _SAMPLE_BYTES
        # A window that is not full yet belongs to no SPEECH, but it is heard.
        spare = (WINDOW_SAMPLES * _SAMPLE_BYTES) + unseen_bytes
        run_bytes = round(self.run_ms) * _MS_SAMPLES * _SAMPLE_BYTES
        limit = spare + (_CONTEXT_BYTES if self.is_in_turn else _PRE_SPEECH_BYTES + run_bytes)
        if len(self.heard) > limit:
            del self.heard[: len(self.heard) - limit]

    def advance(self, window: _Window, pause_ms: float) -> bool:  # hot
        """One window on. True: a pause begins to count here, and it is not judged yet."""
        end_ms = window.start_ms + WINDOW_MS
        if not self.is_in_turn:
            limit = SILENCE_THRESHOLD if self.run_ms else SPEECH_THRESHOLD
            self.run_ms = self.run_ms + WINDOW_MS if window.probability >= limit else 0.0
            if self.run_ms >= MIN_SPEECH_MS:
                self.is_in_turn = True
                self._begin(end_ms)
                self.last_speech_ms = end_ms
            return False
        silent_ms = end_ms - self.last_speech_ms
        if window.probability >= SILENCE_THRESHOLD:
            self.last_speech_ms = end_ms
            self.is_judged = False
        elif not self.is_judged:
            self.is_judged = silent_ms >= pause_ms
            return self.is_judged
        elif silent_ms >= (NEW_TURN_MS if self.is_complete else NEW_TURN_UNFINISHED_MS):
            self.forget_turn()
        return False

    def _begin(self, end_ms: float) -> None:
        """The turn's audio starts ``PRE_SPEECH_MS`` before its first speech window."""
        later_bytes = self._bytes_after(end_ms)
        wanted = later_bytes + _PRE_SPEECH_BYTES + round(self.run_ms) * _MS_SAMPLES * _SAMPLE_BYTES
        if len(self.heard) > wanted:
            del self.heard[: len(self.heard) - wanted]

    def turn_pcm(self, at_ms: float) -> bytes:
        """PCM16 of the turn up to ``at_ms``."""
        end = len(self.heard) - self._bytes_after(at_ms)
        return bytes(self.heard[max(0, end - _CONTEXT_BYTES) : end])

    def _bytes_after(self, at_ms: float) -> int:
        return max(0, round((self.heard_ms - at_ms) * _MS_SAMPLES)) * _SAMPLE_BYTES


class SmartTurn:
    """VAD engine: silero, and a model that is asked at each pause whether the turn is over. Takes no stream options."""

    def __init__(self, params: Mapping[str, object]) -> None:
        given = parameters.read("smart_turn", parameters.SmartTurnParameters, params)
        self._pause_ms = given.pause_ms
        self._model = TurnModel(model_path(given.model), given.turn_threads)
        self._silero = Silero(_silero_params(params))
        self.info = EngineInfo("smart_turn", "vad", RATE_HZ, frame_samples=WINDOW_SAMPLES)
        self._streams: dict[int, _Stream] = {}
        self._steps = 0

    @staticmethod
    def preload(params: Mapping[str, object]) -> None:
        """What Silero preloads."""
        Silero.preload(_silero_params(params))

    def open(self, stream: int, params: StreamParams) -> None:
        for key in params.options:
            raise EngineError("bad_option", f"smart_turn takes no options, so not {key!r}")
        self._silero.open(stream, params)
        self._streams[stream] = _Stream()

    def cancel(self, stream: int, turn: int) -> None:
        """Changes nothing: the state follows the caller's audio, not the turns."""

    def close(self, stream: int) -> None:
        self._silero.close(stream)
        self._streams.pop(stream, None)

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        self._steps += 1
        states = [self._streams[item.stream] for item in batch]
        fresh = [item for item in batch if not item.is_continued]
        found = iter(self._silero.step(fresh) if fresh else ())
        for item, state in zip(batch, states, strict=True):
            if not item.is_continued:
                state.hear(item)
                for piece in next(found).pieces:
                    _queue_windows(state, piece)
        order = sorted(range(len(states)), key=lambda index: states[index].waiting_since or self._steps)
        outputs = [Output() for _ in batch]
        may_predict = True
        for index in order:
            may_predict = self._advance(states[index], outputs[index], may_predict)
        return outputs

    def _advance(self, state: _Stream, output: Output, may_predict: bool) -> bool:
        """Tell the stream's windows up to the first pause for which the model may not be asked any more in this step.
        Returns whether the next stream may ask it."""
        told: list[_Window] = []
        while state.windows:
            window = state.windows[0]
            if not state.waiting_since:
                told.append(window)
                if not state.advance(window, self._pause_ms):
                    state.windows.popleft()
                    continue
                output.pieces.append(_speech(told))
                told = []
            if not may_predict:
                state.waiting_since = state.waiting_since or self._steps
                output.more = True
                return False
            state.windows.popleft()
            state.waiting_since = 0
            output.pieces.append(self._predict(state, window))
            may_predict = False
        if told:
            output.pieces.append(_speech(told))
        state.trim()
        return may_predict

    def _predict(self, state: _Stream, window: _Window) -> Piece:
        """Ask the model about the pause that ends with ``window``."""
        at_ms = window.start_ms + WINDOW_MS
        probability = self._model.probability(pcm16_to_float(state.turn_pcm(at_ms)))
        state.is_complete = probability >= COMPLETE_THRESHOLD
        return Piece(ResultKind.TURN, pack_turn(state.last_speech_ms, at_ms, probability))


def _queue_windows(state: _Stream, piece: Piece) -> None:
    assert isinstance(piece.payload, bytes)
    start_ms, window_ms, probabilities = unpack_speech(piece.payload)
    for index, probability in enumerate(probabilities):
        state.windows.append(_Window(start_ms + index * window_ms, probability))


def _speech(windows: Sequence[_Window]) -> Piece:
    probabilities = [window.probability for window in windows]
    return Piece(ResultKind.SPEECH, pack_speech(windows[0].start_ms, WINDOW_MS, probabilities))


def _silero_params(params: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in params.items() if key not in _OWN_PARAMS}
