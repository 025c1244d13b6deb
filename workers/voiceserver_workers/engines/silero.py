"""Silero voice activity detection, batched over streams.

The weights are those of an installed package (see ``silero_weights``). The arithmetic is ours, so that one batch can hold
windows of many callers, each with its own state::

    64 samples of context + a window of 512, reflected at the end to 640
      -> 4 frames of 256 (hop 128), Hann, |rfft|            4 x 129
      -> convolutions over time, as matrix products           128
      -> LSTM cell, the only recurrent part: h and c          128
      -> linear, sigmoid: probability that the window holds speech

Everything before the LSTM is independent of state, so all windows of all streams go through it in one
product; only the cell runs window after window, over the streams that still have one. What a stream remembers are rows of
arrays, so that a step costs a stream two dictionary look-ups and its answer, and no arithmetic of its own.

The arithmetic is done in numpy, or in torch for CUDA and half precision.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from voiceserver_workers import parameters
from voiceserver_workers.engine import Audio, EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.engines.silero_numpy import NumpyNet
from voiceserver_workers.engines.silero_weights import load_matrices
from voiceserver_workers.ipc.messages import ResultKind, StreamParams, speech_head

RATE_HZ = 16000
WINDOW_SAMPLES = 512
WINDOW_MS = 1000 * WINDOW_SAMPLES / RATE_HZ
CONTEXT_SAMPLES = 64
_INPUT_SAMPLES = CONTEXT_SAMPLES + WINDOW_SAMPLES
# Context, and the most samples that do not fill a window.
_HISTORY_SAMPLES = CONTEXT_SAMPLES + WINDOW_SAMPLES - 1
# One second of one stream: bounds the memory of a pass when a backlog is replayed.
_PASS_SAMPLES = 32 * WINDOW_SAMPLES
_SAMPLE_MS = 1000 / RATE_HZ
_SPEECH = ResultKind.SPEECH
_FIRST_SLOTS = 64
RUNTIMES: Final = ("auto", "numpy", "torch")
DTYPES: Final = ("float32", "bfloat16", "float16")


class Net(Protocol):
    """The network and the state of every stream in it, one slot each."""

    def grow(self, count: int) -> None:
        """Make so many more slots."""

    def reset(self, slot: int) -> None:
        """A new stream takes the slot."""

    def run(self, windows: Audio, slots: npt.NDArray[np.intp], active: Sequence[int]) -> Audio:
        """Probabilities, float32 (n,), of ``windows``, float32 (n, 576) with the context first: the first window of every
        stream of ``slots``, then the second of the first ``active[1]`` of them, and so on."""


class Silero:
    """VAD engine.

    Every full window gives a probability; audio may come in pieces of any length. ``cancel`` changes nothing:
    the state follows the caller's audio, not the turns. Takes no stream options.
    """

    def __init__(self, params: Mapping[str, object]) -> None:
        settings = Settings.read(params)
        self.info = EngineInfo("silero", "vad", RATE_HZ, frame_samples=WINDOW_SAMPLES)
        self._net = settings.make_net()
        self._slots: dict[int, int] = {}  # rows of the arrays
        self._free: list[int] = []
        self._history = np.zeros((0, _HISTORY_SAMPLES), np.float32)  # the last samples, the latest at the end
        self._rest = np.zeros(0, np.intp)  # how many of them no window has had as its own
        self._grow(_FIRST_SLOTS)

    @staticmethod
    def preload(params: Mapping[str, object]) -> None:
        """Read the weights once, so that forked workers share them."""
        settings = Settings.read(params)
        load_matrices()
        if settings.runtime == "torch":
            import torch

            torch.set_num_threads(1)

    def open(self, stream: int, params: StreamParams) -> None:
        for key in params.options:
            raise EngineError("bad_option", f"silero takes no options, so not {key!r}")
        if stream in self._slots:
            raise EngineError("stream_open", "the stream is open already")
        if not self._free:
            self._grow(len(self._rest))
        slot = self._slots[stream] = self._free.pop()
        self._net.reset(slot)
        self._history[slot] = 0
        self._rest[slot] = 0

    def cancel(self, stream: int, turn: int) -> None:
        pass

    def close(self, stream: int) -> None:
        slot = self._slots.pop(stream, None)
        if slot is not None:
            self._free.append(slot)

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:  # hot
        find = self._slots
        slots = np.array([find[item.stream] for item in batch], np.intp)
        audios = [item.audio for item in batch]
        longest = max(map(len, audios))
        if longest > _PASS_SAMPLES:
            return self._step_long(batch, slots, audios, longest)
        rests, counts, found = self._advance(slots, audios)
        return [
            Output([Piece(_SPEECH, speech_head(item.end_ms - rest * _SAMPLE_MS, WINDOW_MS) + told)])
            if told
            else Output()
            for item, rest, told in zip(batch, rests.tolist(), _cut(counts, found), strict=True)
        ]

    def _step_long(
        self, batch: Sequence[Item], slots: npt.NDArray[np.intp], audios: list[Audio], longest: int
    ) -> Sequence[Output]:
        """A replayed backlog: a pass at a time over the streams that have more."""
        first_ms = [
            item.end_ms - (rest + len(audio)) * _SAMPLE_MS
            for item, rest, audio in zip(batch, self._rest[slots].tolist(), audios, strict=True)
        ]
        told = [b""] * len(batch)
        for start in range(0, longest, _PASS_SAMPLES):
            left = [index for index, audio in enumerate(audios) if len(audio) > start]
            parts = [audios[index][start : start + _PASS_SAMPLES] for index in left]
            _, counts, found = self._advance(slots[left], parts)
            for index, more in zip(left, _cut(counts, found), strict=True):
                told[index] += more
        return [
            Output([Piece(_SPEECH, speech_head(begin_ms, WINDOW_MS) + probabilities)])
            if probabilities
            else Output()
            for begin_ms, probabilities in zip(first_ms, told, strict=True)
        ]

    def _advance(
        self, slots: npt.NDArray[np.intp], audios: list[Audio]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Audio]:  # hot
        """Samples not yet in a window, with those of ``audios``; windows of each; their probabilities, one after the other."""
        buffer, lengths = self._join(slots, audios)
        rests = self._rest[slots] + lengths
        counts = rests // WINDOW_SAMPLES
        found = np.empty(int(counts.sum()), np.float32)
        if len(found):
            # Longest first: the streams that still have a window are always the first rows.
            order = np.argsort(-counts, kind="stable")
            active = [int(n) for n in (counts[:, None] > np.arange(counts.max())).sum(0)]
            ranks = np.concatenate([order[:count] for count in active])
            windows = np.repeat(np.arange(len(active)), active)
            starts = buffer.shape[1] - CONTEXT_SAMPLES - rests[ranks] + windows * WINDOW_SAMPLES
            # A view of each window that begins anywhere; made by hand, because numpy's own function takes ten times as long.
            row, sample = buffer.strides
            shape = (len(buffer), buffer.shape[1] - _INPUT_SAMPLES + 1, _INPUT_SAMPLES)
            every = np.ndarray(shape, np.float32, buffer, 0, (row, sample, sample))
            inputs = every[ranks, starts]
            places = (np.cumsum(counts) - counts)[ranks] + windows
            found[places] = self._net.run(inputs, slots[order[: active[0]]], active)
        self._history[slots] = buffer[:, -_HISTORY_SAMPLES:]
        self._rest[slots] = rests - counts * WINDOW_SAMPLES
        return rests, counts, found

    def _join(
        self, slots: npt.NDArray[np.intp], audios: list[Audio]
    ) -> tuple[Audio, npt.NDArray[np.intp]]:  # hot
        """(n, history + longest) samples, all ending at the right; what is left of a shorter one is never read."""
        lengths = np.fromiter(map(len, audios), np.intp, len(audios))
        longest = int(lengths.max())
        buffer = np.empty((len(audios), _HISTORY_SAMPLES + longest), np.float32)
        if (lengths == longest).all():
            buffer[:, :_HISTORY_SAMPLES] = self._history[slots]
            buffer[:, _HISTORY_SAMPLES:] = np.concatenate(audios).reshape(len(audios), longest)
            return buffer, lengths
        for row, slot, audio in zip(buffer, slots.tolist(), audios, strict=True):
            begin = longest - len(audio)
            row[begin : begin + _HISTORY_SAMPLES] = self._history[slot]
            row[begin + _HISTORY_SAMPLES :] = audio
        return buffer, lengths

    def _grow(self, count: int) -> None:
        used = len(self._rest)
        self._net.grow(count)
        self._history = np.concatenate((self._history, np.zeros((count, _HISTORY_SAMPLES), np.float32)))
        self._rest = np.concatenate((self._rest, np.zeros(count, np.intp)))
        self._free.extend(range(used + count - 1, used - 1, -1))


def _cut(counts: npt.NDArray[np.intp], found: Audio) -> list[bytes]:  # hot
    """The bytes of each stream's probabilities."""
    data = found.astype("<f4", copy=False).tobytes()
    ends = (np.cumsum(counts) * 4).tolist()
    return [data[end - count * 4 : end] for end, count in zip(ends, counts.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Settings:
    """``SileroParameters`` with ``auto`` decided: ``runtime`` is numpy or torch."""

    runtime: str = "auto"
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1

    @classmethod
    def read(cls, params: Mapping[str, object]) -> Settings:
        """Raises ValueError naming the key."""
        given = parameters.read("silero", parameters.SileroParameters, params)
        runtime, device, dtype, threads = given.runtime, given.device, given.dtype, given.threads
        asks_torch = [
            key
            for key, value, own in (
                ("device", device, "cpu"),
                ("dtype", dtype, "float32"),
                ("threads", threads, 1),
            )
            if value != own
        ]
        if runtime == "numpy" and asks_torch:
            raise ValueError(
                f"{asks_torch[0]}: numpy knows one thread and float32 on the cpu only; set runtime to torch"
            )
        if runtime == "auto":
            runtime = "torch" if asks_torch else "numpy"
        if runtime == "torch" and importlib.util.find_spec("torch") is None:
            key = asks_torch[0] if asks_torch else "runtime"
            raise ValueError(
                f"{key}: this needs torch, which is not installed (pip install 'voiceserver[torch]')"
            )
        return cls(runtime, device, dtype, threads)

    def make_net(self) -> Net:
        if self.runtime == "numpy":
            return NumpyNet(load_matrices())
        from voiceserver_workers.engines import silero_torch

        device = silero_torch.device_of(self.device)
        return silero_torch.TorchNet(load_matrices(), device, silero_torch.DTYPES[self.dtype], self.threads)
