"""The silero network in torch: for CUDA, half precision, and many windows at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from voiceserver_workers.engines.silero_weights import Floats, Matrices

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FRAME_SAMPLES, _HOP_SAMPLES, _FRAMES = 256, 128, 4
_BINS = _FRAME_SAMPLES // 2 + 1
_HIDDEN = 128


class TorchNet:
    """See ``silero.Net``. h, c: (streams, 128) on the device, the state of the LSTM cell."""

    def __init__(self, matrices: Matrices, device: torch.device, dtype: torch.dtype, threads: int) -> None:
        if device.type == "cpu":
            torch.set_num_threads(threads)
        self._device, self._dtype = device, dtype
        self._weights = {
            name: self._put(value) for name, value in matrices._asdict().items() if name != "biases"
        }
        self._biases = [self._put(bias) for bias in matrices.biases]
        self._frame_window = torch.hann_window(_FRAME_SAMPLES, dtype=torch.float64).float().to(device)
        self._h = torch.zeros(0, _HIDDEN, dtype=dtype, device=device)
        self._c = torch.zeros_like(self._h)

    def grow(self, count: int) -> None:
        more = torch.zeros(count, _HIDDEN, dtype=self._dtype, device=self._device)
        self._h, self._c = torch.cat((self._h, more)), torch.cat((self._c, more))

    def reset(self, slot: int) -> None:
        self._h[slot] = 0
        self._c[slot] = 0

    @torch.inference_mode()
    def run(self, windows: Floats, slots: npt.NDArray[np.intp], active: Sequence[int]) -> Floats:  # hot
        gates = self._gates(torch.from_numpy(windows).to(self._device))
        places = torch.from_numpy(slots).to(self._device)
        h, c = self._h[places], self._c[places]
        history = []
        row = 0
        for count in active:
            h_next, c_next = self._cell(gates[row : row + count], h[:count], c[:count])
            # Into our own h, never h = h_next: history keeps h_next as it is.
            h[:count], c[:count] = h_next, c_next
            history.append(h_next)
            row += count
        self._h[places], self._c[places] = h, c
        told = torch.addmm(self._weights["output_bias"], torch.cat(history).relu(), self._weights["output"])
        found: Floats = told.sigmoid_().float()[:, 0].cpu().numpy()
        return found

    def _put(self, value: Floats) -> Tensor:
        return torch.from_numpy(np.array(value)).to(self._device, self._dtype)

    def _gates(self, windows: Tensor) -> Tensor:  # hot
        """(n, 576) samples, context first -> (n, 512) what the LSTM cell takes as input."""
        weights, addmm = self._weights, torch.addmm
        count = len(windows)
        padded = torch.cat((windows, windows[:, -65:-1].flip(1)), 1)
        frames = padded.unfold(1, _FRAME_SAMPLES, _HOP_SAMPLES) * self._frame_window
        x = _magnitudes(torch.fft.rfft(frames)).to(self._dtype).reshape(count, _FRAMES * _BINS)
        first = self._biases[0]
        x = torch.cat(
            (
                addmm(first, x[:, : 2 * _BINS], weights["first_start"]),
                addmm(first, x[:, : 3 * _BINS], weights["first_middle"]),
                addmm(first, x[:, _BINS:], weights["first_middle"]),
                addmm(first, x[:, 2 * _BINS :], weights["first_end"]),
            ),
            1,
        ).relu_()
        start = addmm(self._biases[1], x[:, : 2 * _HIDDEN], weights["second_start"])
        end = addmm(self._biases[1], x[:, _HIDDEN:], weights["second_end"])
        x = torch.cat((start, end), 1).relu_()
        x = addmm(self._biases[2], x, weights["third"]).relu_()
        x = addmm(self._biases[3], x, weights["fourth"]).relu_()
        return addmm(weights["input_bias"], x, weights["input"])

    def _cell(self, gates: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:  # hot
        """One window on: gates (n, 512), h and c (n, 128) -> new h and c."""
        i, f, g, o = torch.addmm(gates, h, self._weights["recurrent"]).chunk(4, 1)
        c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(g))
        return torch.sigmoid(o) * torch.tanh(c), c


def _magnitudes(spectrum: Tensor) -> Tensor:
    """|spectrum|; on the CPU by numpy, which needs an eighth of torch's time for it."""
    if spectrum.device.type == "cpu":
        return torch.from_numpy(np.abs(spectrum.numpy()))
    return spectrum.abs()


def device_of(name: object) -> torch.device:
    """Raises ValueError naming ``device``."""
    try:
        device = torch.device(name) if isinstance(name, str) else None
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f'device: must be "cpu", "cuda" or "cuda:N", not {name!r}')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: there is no {name} here ({torch.cuda.device_count()} CUDA devices)")
    return device
