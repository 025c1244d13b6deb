"""The silero network in numpy, on one core: for up to some 100 windows at once it is faster than torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from voiceserver_workers.engines.silero_weights import Floats, Matrices

_FRAME_SAMPLES, _HOP_SAMPLES, _FRAMES = 256, 128, 4
_BINS = _FRAME_SAMPLES // 2 + 1
_HIDDEN = 128
# As many windows as the cache of a core holds.
_BLOCK_WINDOWS = 64
# exp of more overflows float32; the sigmoid is 0 or 1 long before.
_STEEPEST = np.float32(80.0)


class NumpyNet:
    """See ``silero.Net``. h, c: float32 (streams, 128), the state of the LSTM cell."""

    def __init__(self, matrices: Matrices) -> None:
        self._matrices = matrices
        self._frame_window = np.hanning(_FRAME_SAMPLES + 1)[:-1].astype(np.float32)
        self._h = np.zeros((0, _HIDDEN), np.float32)
        self._c = np.zeros((0, _HIDDEN), np.float32)

    def grow(self, count: int) -> None:
        more = np.zeros((count, _HIDDEN), np.float32)
        self._h, self._c = np.concatenate((self._h, more)), np.concatenate((self._c, more))

    def reset(self, slot: int) -> None:
        self._h[slot] = 0.0
        self._c[slot] = 0.0

    def run(self, windows: Floats, slots: npt.NDArray[np.intp], active: Sequence[int]) -> Floats:  # hot
        if len(windows) <= _BLOCK_WINDOWS:
            gates = self._gates(windows)
        else:
            starts = range(0, len(windows), _BLOCK_WINDOWS)
            gates = np.concatenate([self._gates(windows[at : at + _BLOCK_WINDOWS]) for at in starts])
        h, c = self._h[slots], self._c[slots]
        recurrent = self._matrices.recurrent
        found = np.empty((len(windows), _HIDDEN), np.float32)
        row = 0
        for count in active:
            x = gates[row : row + count]
            x += h[:count] @ recurrent
            sigmoids = _sigmoid(x)
            new = sigmoids[:, _HIDDEN : 2 * _HIDDEN] * c[:count]
            new += sigmoids[:, :_HIDDEN] * np.tanh(x[:, 2 * _HIDDEN : 3 * _HIDDEN])
            c[:count] = new
            h[:count] = found[row : row + count] = sigmoids[:, 3 * _HIDDEN :] * np.tanh(new)
            row += count
        self._h[slots], self._c[slots] = h, c
        np.maximum(found, 0.0, out=found)
        return _sigmoid(found @ self._matrices.output + self._matrices.output_bias)[:, 0]

    def _gates(self, windows: Floats) -> Floats:  # hot
        """(n, 576) samples, context first -> (n, 512) what the LSTM cell takes as input."""
        m = self._matrices
        count = len(windows)
        padded = np.concatenate((windows, windows[:, -2:-66:-1]), 1)
        strides = padded.strides
        frames = np.ndarray(
            (count, _FRAMES, _FRAME_SAMPLES),
            np.float32,
            padded,
            0,
            (strides[0], strides[1] * _HOP_SAMPLES, strides[1]),
        )
        spectrum = np.abs(np.fft.rfft(frames * self._frame_window))
        x = spectrum.astype(np.float32, copy=False).reshape(count, _FRAMES * _BINS)
        y = np.empty((count, _FRAMES * _HIDDEN), np.float32)
        np.matmul(x[:, : 2 * _BINS], m.first_start, out=y[:, :_HIDDEN])
        np.matmul(x[:, : 3 * _BINS], m.first_middle, out=y[:, _HIDDEN : 2 * _HIDDEN])
        np.matmul(x[:, _BINS:], m.first_middle, out=y[:, 2 * _HIDDEN : 3 * _HIDDEN])
        np.matmul(x[:, 2 * _BINS :], m.first_end, out=y[:, 3 * _HIDDEN :])
        every = y.reshape(count, _FRAMES, _HIDDEN)
        every += m.biases[0]
        np.maximum(y, 0.0, out=y)
        start = y[:, : 2 * _HIDDEN] @ m.second_start
        end = y[:, _HIDDEN:] @ m.second_end
        x = np.concatenate((start, end), 1)
        both = x.reshape(count, 2, -1)
        both += m.biases[1]
        for weight, bias in ((m.third, m.biases[2]), (m.fourth, m.biases[3])):
            np.maximum(x, 0.0, out=x)
            x = x @ weight
            x += bias
        np.maximum(x, 0.0, out=x)
        x = x @ m.input
        x += m.input_bias
        return x


def _sigmoid(x: Floats) -> Floats:  # hot
    result: Floats = np.negative(x)
    np.minimum(result, _STEEPEST, out=result)
    np.exp(result, out=result)
    result += 1.0
    np.reciprocal(result, out=result)
    return result
