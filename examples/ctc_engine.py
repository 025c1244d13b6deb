"""Speech to text with any CTC model in ONNX: audio (n, samples) at 16 kHz in, logits (n, frames, labels) out."""

from itertools import groupby

import numpy as np
import onnxruntime

from voiceserver_workers.engine import EngineError, EngineInfo, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind

RATE_HZ = 16000
DEFAULTS = {"model": "", "labels": "-abcdefghijklmnopqrstuvwxyz '", "interval_ms": 500}  # first label: blank


class Utterance:
    turn, audio, decoded, told = 0, np.empty(0, np.float32), 0, ""


class Ctc:
    """Params: model (path), labels, interval_ms (audio between partials)."""

    def __init__(self, params):
        for key in params.keys() - DEFAULTS:
            raise ValueError(f"{key}: ctc has no such parameter; it has {', '.join(DEFAULTS)}")
        params = {**DEFAULTS, **params}
        try:
            self.model = onnxruntime.InferenceSession(params["model"], providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(f"model: cannot be loaded: {error}") from None
        self.input, self.labels = self.model.get_inputs()[0].name, params["labels"]
        self.interval = int(params["interval_ms"]) * RATE_HZ // 1000
        self.info, self.streams = EngineInfo("ctc", "stt", RATE_HZ), {}

    def open(self, stream, params):
        for key in params.options:
            raise EngineError("bad_option", f"{key}: ctc has no options")
        if stream in self.streams:
            raise EngineError("stream_open", "the stream is open already")
        self.streams[stream] = Utterance()

    def step(self, batch):
        states = [self.streams[item.stream] for item in batch]  # a stranger raises before anything changed
        due = {}
        for item, state in zip(batch, states, strict=True):
            state.turn, state.audio = item.turn, np.concatenate((state.audio, item.audio))
            if item.is_flush or len(state.audio) - state.decoded >= self.interval:
                due[item.stream], state.decoded = state.audio, len(state.audio)
        texts = self.transcribe(due)
        return [self.answer(item, texts.get(item.stream)) for item in batch]

    def transcribe(self, due):
        """In whole seconds, and equal lengths together: so nobody's text depends on a neighbour's length."""
        texts, by_length = dict.fromkeys(due, ""), {}
        for stream, audio in due.items():
            by_length.setdefault(-(-len(audio) // RATE_HZ) * RATE_HZ, []).append(stream)
        for length, streams in by_length.items():
            padded = np.stack([np.pad(due[stream], (0, length - len(due[stream]))) for stream in streams])
            logits = self.model.run(None, {self.input: padded})[0] if length else ()
            for stream, frames in zip(streams, logits, strict=False):
                best = [label for label, _ in groupby(frames.argmax(-1)) if label]
                texts[stream] = "".join(self.labels[label] for label in best).strip()
        return texts

    def answer(self, item, text):
        state = self.streams[item.stream]
        if item.is_flush:
            self.streams[item.stream] = Utterance()
            return Output([Piece(ResultKind.FINAL, text)])
        stable = (text or "").rpartition(" ")[0]  # the last word may still change
        if len(stable) <= len(state.told) or not stable.startswith(state.told):
            return Output()  # nothing to say: the worker tells the server that the audio was taken
        state.told = stable
        return Output([Piece(ResultKind.TEXT, stable)])

    def cancel(self, stream, turn):  # the caller interrupted: forget work of this turn and older
        if stream in self.streams and self.streams[stream].turn <= turn:
            self.streams[stream] = Utterance()

    def close(self, stream):
        self.streams.pop(stream, None)
