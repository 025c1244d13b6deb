"""Silero voice activity detection, batched over streams.

The weights are those of the installed ``silero-vad`` package (``silero_vad.jit``, its 16 kHz model). The
arithmetic is ours, so that one batch can hold windows of many callers, each with its own state::

    64 samples of context + a window of 512, reflected at the end to 640
      -> 4 frames of 256 (hop 128), Hann, |rfft|            4 x 129
      -> convolutions over time, as matrix products           128
      -> LSTM cell, the only recurrent part: h and c          128
      -> linear, sigmoid: probability that the window holds speech

Everything before the LSTM is independent of state, so all windows of all streams go through it in one
product; only the cell runs window after window, over the streams that still have one.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from workers.engine import Audio, EngineError, EngineInfo, Item, Output, Piece
from workers.ipc.messages import ResultKind, StreamParams, pack_speech

RATE_HZ = 16000
WINDOW_SAMPLES = 512
WINDOW_MS = 1000 * WINDOW_SAMPLES / RATE_HZ
CONTEXT_SAMPLES = 64
_INPUT_SAMPLES = CONTEXT_SAMPLES + WINDOW_SAMPLES
_FRAME_SAMPLES = 256
_HOP_SAMPLES = 128
_BINS = _FRAME_SAMPLES // 2 + 1
_HIDDEN = 128
# One second of one stream: bounds the memory of a pass when a backlog is replayed.
_WINDOWS_PER_PASS = 32
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
        padded = nn.functional.pad(windows, (0, CONTEXT_SAMPLES), "reflect")
        frames = padded.unfold(1, _FRAME_SAMPLES, _HOP_SAMPLES) * self.frame_window
        x = torch.fft.rfft(frames).abs().to(self.input.dtype).reshape(len(windows), 4 * _BINS)
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


class _Stream:
    """slot: row of h and c. tail: context and the samples after it that do not fill a window yet."""

    __slots__ = ("slot", "tail")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.tail: Audio = np.zeros(CONTEXT_SAMPLES, np.float32)


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
        self._streams: dict[int, _Stream] = {}
        self._free: list[int] = []
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
        if stream in self._streams:
            raise EngineError("stream_open", "the stream is open already")
        if not self._free:
            self._grow(len(self._h))
        slot = self._free.pop()
        self._h[slot] = 0
        self._c[slot] = 0
        self._streams[stream] = _Stream(slot)

    def cancel(self, stream: int, turn: int) -> None:
        pass

    def close(self, stream: int) -> None:
        state = self._streams.pop(stream, None)
        if state is not None:
            self._free.append(state.slot)

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:  # hot
        outputs = [Output() for _ in batch]
        states = [self._streams[item.stream] for item in batch]
        work: list[tuple[int, _Stream, Audio, int]] = []
        for index, (item, state) in enumerate(zip(batch, states, strict=True)):
            samples = np.concatenate((state.tail, item.audio))
            count = (len(samples) - CONTEXT_SAMPLES) // WINDOW_SAMPLES
            if count:
                work.append((count, state, samples, index))
            else:
                state.tail = samples
        # Longest first: the streams that still have a window are always the first rows.
        work.sort(key=_count, reverse=True)
        done = 0
        found: list[list[float]] = [[] for _ in work]
        while work and done < work[0][0]:
            self._pass(work, done, found)
            done += _WINDOWS_PER_PASS
        for (count, state, samples, index), probabilities in zip(work, found, strict=True):
            state.tail = samples[count * WINDOW_SAMPLES :].copy()
            start_ms = batch[index].end_ms - (len(samples) - CONTEXT_SAMPLES) * 1000 / RATE_HZ
            payload = pack_speech(start_ms, WINDOW_MS, probabilities)
            outputs[index].pieces.append(Piece(ResultKind.SPEECH, payload))
        return outputs

    @torch.inference_mode()
    def _pass(
        self, work: list[tuple[int, _Stream, Audio, int]], done: int, found: list[list[float]]
    ) -> None:  # hot
        """Up to ``_WINDOWS_PER_PASS`` windows of every stream of ``work``, from window ``done`` on."""
        rounds = [
            sum(count > window for count, *_ in work)
            for window in range(done, min(work[0][0], done + _WINDOWS_PER_PASS))
        ]
        rows = np.empty((sum(rounds), _INPUT_SAMPLES), np.float32)
        row = 0
        for window, active in enumerate(rounds, done):
            start = window * WINDOW_SAMPLES
            for _, _, samples, _ in work[:active]:
                rows[row] = samples[start : start + _INPUT_SAMPLES]
                row += 1
        slots = torch.tensor([state.slot for _, state, _, _ in work[: rounds[0]]], device=self._device)
        gates = self._net.gates(torch.from_numpy(rows).to(self._device))
        h, c = self._h[slots], self._c[slots]
        history = []
        row = 0
        for active in rounds:
            h_next, c_next = self._net.cell(gates[row : row + active], h[:active], c[:active])
            # Into our own h, never h = h_next: history keeps h_next as it is.
            h[:active], c[:active] = h_next, c_next
            history.append(h_next)
            row += active
        self._h[slots], self._c[slots] = h, c
        probabilities = self._net.probability(torch.cat(history)).tolist()
        row = 0
        for active in rounds:
            for rank in range(active):
                found[rank].append(probabilities[row + rank])
            row += active

    def _grow(self, count: int) -> None:
        used = len(self._h)
        more = torch.zeros(count, _HIDDEN, dtype=self._h.dtype, device=self._device)
        self._h = torch.cat((self._h, more))
        self._c = torch.cat((self._c, more))
        self._free.extend(range(used + count - 1, used - 1, -1))


def _count(entry: tuple[int, _Stream, Audio, int]) -> int:
    return entry[0]


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
