"""Silero voice activity detection, batched over streams.

The weights are those of the installed ``silero-vad`` package (``silero_vad.jit``, its 16 kHz model). The
arithmetic is ours, so that one batch can hold windows of many callers, each with its own state::

    64 samples of context + a window of 512, reflected at the end to 640
      -> 4 frames of 256 (hop 128), Hann, |rfft|            4 x 129
      -> convolutions over time, as matrix products           128
      -> LSTM cell, the only recurrent part: h and c          128
      -> linear, sigmoid: probability that the window holds speech

Everything before the LSTM is independent of state, so all windows of all streams go through it in one
product; only the cell runs window after window, over the streams that still have one. What a stream remembers are rows of
arrays, so that a step costs a stream two dictionary look-ups and its answer, and no arithmetic of its own.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from voiceserver_workers.engine import Audio, EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind, StreamParams, speech_head

RATE_HZ = 16000
WINDOW_SAMPLES = 512
WINDOW_MS = 1000 * WINDOW_SAMPLES / RATE_HZ
CONTEXT_SAMPLES = 64
_INPUT_SAMPLES = CONTEXT_SAMPLES + WINDOW_SAMPLES
_PADDED_SAMPLES = _INPUT_SAMPLES + CONTEXT_SAMPLES
_REFLECTED = slice(_INPUT_SAMPLES - CONTEXT_SAMPLES - 1, _INPUT_SAMPLES - 1)
_FRAME_SAMPLES = 256
_HOP_SAMPLES = 128
_BINS = _FRAME_SAMPLES // 2 + 1
_HIDDEN = 128
# Context, and the most samples that do not fill a window.
_HISTORY_SAMPLES = CONTEXT_SAMPLES + WINDOW_SAMPLES - 1
# One second of one stream: bounds the memory of a pass when a backlog is replayed.
_PASS_SAMPLES = 32 * WINDOW_SAMPLES
_SAMPLE_MS = 1000 / RATE_HZ
_SPEECH = ResultKind.SPEECH
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class SileroNet(nn.Module):
    """The 16 kHz model: ``gates`` feeds the LSTM, ``cell`` advances it, ``probability`` reads it."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        conv = [weights[f"encoder.{layer}.reparam_conv.weight"] for layer in range(4)]
        # A kernel of 3 over 4 frames padded by one: the taps that meet padding are left out of the product.
        matrices = {
            "first_start": _taps(conv[0], 1, 2),
            "first_middle": _taps(conv[0], 0, 1, 2),
            "first_end": _taps(conv[0], 0, 1),
            "second_start": _taps(conv[1], 1, 2),
            "second_end": _taps(conv[1], 0, 1, 2),
            "third": _taps(conv[2], 1, 2),
            "fourth": _taps(conv[3], 1),
            "input": weights["decoder.rnn.weight_ih"].t(),
            "recurrent": weights["decoder.rnn.weight_hh"].t(),
            "output": weights["decoder.decoder.2.weight"][..., 0].t(),
            "input_bias": weights["decoder.rnn.bias_ih"] + weights["decoder.rnn.bias_hh"],
            "output_bias": weights["decoder.decoder.2.bias"],
            **{f"bias_{layer}": weights[f"encoder.{layer}.reparam_conv.bias"] for layer in range(4)},
        }
        for name, matrix in matrices.items():
            self.register_buffer(name, matrix.contiguous())
        self.frame_window = torch.hann_window(_FRAME_SAMPLES, dtype=torch.float64).float()

    first_start: Tensor
    first_middle: Tensor
    first_end: Tensor
    second_start: Tensor
    second_end: Tensor
    third: Tensor
    fourth: Tensor
    input: Tensor
    recurrent: Tensor
    output: Tensor
    input_bias: Tensor
    output_bias: Tensor
    bias_0: Tensor
    bias_1: Tensor
    bias_2: Tensor
    bias_3: Tensor

    def gates(self, windows: Tensor) -> Tensor:  # hot
        """(n, 576) samples, context first -> (n, 512) what the LSTM cell takes as input."""
        count = len(windows)
        padded = windows.new_empty((count, _PADDED_SAMPLES))
        padded[:, :_INPUT_SAMPLES] = windows
        padded[:, _INPUT_SAMPLES:] = windows[:, _REFLECTED].flip(1)
        frames = padded.unfold(1, _FRAME_SAMPLES, _HOP_SAMPLES) * self.frame_window
        x = _magnitudes(torch.fft.rfft(frames)).to(self.input.dtype).reshape(count, 4 * _BINS)
        addmm = torch.addmm
        x = torch.cat(
            (
                addmm(self.bias_0, x[:, : 2 * _BINS], self.first_start),
                addmm(self.bias_0, x[:, : 3 * _BINS], self.first_middle),
                addmm(self.bias_0, x[:, _BINS:], self.first_middle),
                addmm(self.bias_0, x[:, 2 * _BINS :], self.first_end),
            ),
            1,
        ).relu_()
        start = addmm(self.bias_1, x[:, : 2 * _HIDDEN], self.second_start)
        end = addmm(self.bias_1, x[:, _HIDDEN:], self.second_end)
        x = torch.cat((start, end), 1).relu_()
        x = addmm(self.bias_2, x, self.third).relu_()
        x = addmm(self.bias_3, x, self.fourth).relu_()
        return addmm(self.input_bias, x, self.input)

    def cell(self, gates: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:  # hot
        """One window on: gates (n, 512), h and c (n, 128) -> new h and c."""
        i, f, g, o = torch.addmm(gates, h, self.recurrent).chunk(4, 1)
        c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(g))
        return torch.sigmoid(o) * torch.tanh(c), c

    def probability(self, h: Tensor) -> Tensor:  # hot
        """h (n, 128) -> (n,) float32."""
        return torch.addmm(self.output_bias, h.relu(), self.output).sigmoid_().float()[:, 0]


def _magnitudes(spectrum: Tensor) -> Tensor:
    """|spectrum|; on the CPU by numpy, which needs an eighth of torch's time for it."""
    if spectrum.device.type == "cpu":
        return torch.from_numpy(np.abs(spectrum.numpy()))
    return spectrum.abs()


def _taps(weight: Tensor, *taps: int) -> Tensor:
    # (out, in, 3) -> (taps * in, out): a convolution at one place in time, as a matrix.
    return torch.cat([weight[:, :, tap].t() for tap in taps])


@cache
def load_weights() -> Mapping[str, Tensor]:
    """Parameters of the 16 kHz model of the installed ``silero-vad``, on the CPU."""
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("silero-vad is not installed: pip install 'voiceserver[silero]'")
    # The .safetensors and half-precision files beside it hold a different model.
    path = Path(spec.origin).parent / "data" / "silero_vad.jit"
    with warnings.catch_warnings():
        # Deprecated in favour of torch.export, but this is how the package ships its weights.
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    prefix = "_model."
    return {
        name.removeprefix(prefix): tensor.detach().clone()
        for name, tensor in module.state_dict().items()
        if name.startswith(prefix)
    }


class Silero:
    """VAD engine. Params: device (cpu, cuda, cuda:N), dtype (float32, bfloat16, float16), threads (CPU).

    Every full window gives a probability; audio may come in pieces of any length. ``cancel`` changes nothing:
    the state follows the caller's audio, not the turns. Takes no stream options.
    """

    def __init__(self, params: Mapping[str, object]) -> None:
        settings = _Settings.read(params)
        self.info = EngineInfo("silero", "vad", RATE_HZ, frame_samples=WINDOW_SAMPLES)
        self._device = settings.device
        if settings.device.type == "cpu":
            torch.set_num_threads(settings.threads)
        self._net = SileroNet(load_weights()).to(settings.device, settings.dtype)
        self._net.frame_window = self._net.frame_window.to(settings.device)
        self._slots: dict[int, int] = {}  # rows of the four arrays
        self._free: list[int] = []
        self._history = np.zeros((0, _HISTORY_SAMPLES), np.float32)  # the last samples, the latest at the end
        self._rest = np.zeros(0, np.intp)  # how many of them no window has had as its own
        self._h = torch.zeros(0, _HIDDEN, dtype=settings.dtype, device=settings.device)
        self._c = torch.zeros_like(self._h)
        self._grow(64)

    @staticmethod
    def preload(params: Mapping[str, object]) -> None:
        """Read the weights once, so that forked workers share them."""
        torch.set_num_threads(1)
        load_weights()

    def open(self, stream: int, params: StreamParams) -> None:
        for key in params.options:
            raise EngineError("bad_option", f"silero takes no options, so not {key!r}")
        if stream in self._slots:
            raise EngineError("stream_open", "the stream is open already")
        if not self._free:
            self._grow(len(self._h))
        slot = self._slots[stream] = self._free.pop()
        self._h[slot] = 0
        self._c[slot] = 0
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
            # torch's view, because to make numpy's takes a tenth of a step of one.
            every = torch.from_numpy(buffer).unfold(1, _INPUT_SAMPLES, 1)
            rows = every[torch.from_numpy(ranks), torch.from_numpy(starts)]
            places = (np.cumsum(counts) - counts)[ranks] + windows
            found[places] = self._pass(rows, slots[order[: active[0]]], active)
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

    @torch.inference_mode()
    def _pass(self, rows: Tensor, slots: npt.NDArray[np.intp], active: list[int]) -> Audio:  # hot
        """Probabilities of windows: the first of every stream of ``slots``, then the second of the first ``active[1]``, ..."""
        device = self._device
        gates = self._net.gates(rows.to(device))
        places = torch.from_numpy(slots).to(device)
        h, c = self._h[places], self._c[places]
        history = []
        row = 0
        for count in active:
            h_next, c_next = self._net.cell(gates[row : row + count], h[:count], c[:count])
            # Into our own h, never h = h_next: history keeps h_next as it is.
            h[:count], c[:count] = h_next, c_next
            history.append(h_next)
            row += count
        self._h[places], self._c[places] = h, c
        return self._net.probability(torch.cat(history)).cpu().numpy()

    def _grow(self, count: int) -> None:
        used = len(self._h)
        more = torch.zeros(count, _HIDDEN, dtype=self._h.dtype, device=self._device)
        self._h = torch.cat((self._h, more))
        self._c = torch.cat((self._c, more))
        self._history = np.concatenate((self._history, np.zeros((count, _HISTORY_SAMPLES), np.float32)))
        self._rest = np.concatenate((self._rest, np.zeros(count, np.intp)))
        self._free.extend(range(used + count - 1, used - 1, -1))


def _cut(counts: npt.NDArray[np.intp], found: Audio) -> list[bytes]:  # hot
    """The bytes of each stream's probabilities."""
    data = found.astype("<f4", copy=False).tobytes()
    ends = (np.cumsum(counts) * 4).tolist()
    return [data[end - count * 4 : end] for end, count in zip(ends, counts.tolist(), strict=True)]


class _Settings:
    """The engine's params, checked."""

    __slots__ = ("device", "dtype", "threads")

    def __init__(self, device: torch.device, dtype: torch.dtype, threads: int) -> None:
        self.device = device
        self.dtype = dtype
        self.threads = threads

    @classmethod
    def read(cls, params: Mapping[str, object]) -> _Settings:
        for key in params:
            if key not in cls.__slots__:
                raise ValueError(f"{key}: silero has no such parameter; it has {', '.join(cls.__slots__)}")
        dtype = params.get("dtype", "float32")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ValueError(f"dtype: must be one of {', '.join(_DTYPES)}, not {dtype!r}")
        threads = params.get("threads", 1)
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise ValueError(f"threads: must be a whole number from 1, not {threads!r}")
        return cls(_device(params.get("device", "cpu")), _DTYPES[dtype], threads)


def _device(name: object) -> torch.device:
    try:
        device = torch.device(name) if isinstance(name, str) else None
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f'device: must be "cpu", "cuda" or "cuda:N", not {name!r}')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: there is no {name} here ({torch.cuda.device_count()} CUDA devices)")
    return device
