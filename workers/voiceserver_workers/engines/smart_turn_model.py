"""An end-of-turn model in the shape of pipecat-ai's smart-turn v3: does this sound as if the caller were done?

An ONNX graph from ``input_features`` (n, 80, 800), the log-mel spectrum of eight seconds, to a probability (n, 1). The
features are Whisper's: audio of zero mean and unit variance, 25 ms frames every 10 ms, 80 Slaney mels, log10, the
lowest eighty decibels below the loudest cut off.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from voiceserver_workers import models
from voiceserver_workers.engine import Audio

RATE_HZ = 16000
PACKAGED = "smart-turn-v3.2"
CONTEXT_SAMPLES = 8 * RATE_HZ
_FRAME_SAMPLES, _HOP_SAMPLES = 400, 160
_FRAMES = CONTEXT_SAMPLES // _HOP_SAMPLES
_MELS = 80
_BINS = _FRAME_SAMPLES // 2 + 1
_POWER_FLOOR = 1e-10
_VARIANCE_FLOOR = 1e-7
# Slaney's scale: 200/3 Hz a mel up to 1 kHz, then 27 mels for a factor of 6.4.
_LINEAR_HZ = 200 / 3
_KNEE_MEL = 15.0
_LOG_STEP = np.log(6.4) / 27

Matrix = npt.NDArray[np.float64]


def _hz(mel: Matrix) -> Matrix:
    bent = 1000.0 * np.exp(_LOG_STEP * (np.maximum(mel, _KNEE_MEL) - _KNEE_MEL))
    return np.where(mel < _KNEE_MEL, mel * _LINEAR_HZ, bent)


@cache
def _mel_filters() -> Matrix:
    """(80, 201): power of each bin -> mels."""
    top_mel = _KNEE_MEL + np.log(RATE_HZ / 2 / 1000) / _LOG_STEP
    edges_hz = _hz(np.linspace(0.0, top_mel, _MELS + 2))
    bins_hz = np.linspace(0.0, RATE_HZ / 2, _BINS)
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising, falling = (bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre)
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low))


def log_mel(audio: Audio) -> Audio:
    """Float32 (n,) at 16 kHz -> (80, 800) of its last eight seconds; shorter audio has silence before it."""
    padded = np.zeros(CONTEXT_SAMPLES, np.float32)
    heard = audio[-CONTEXT_SAMPLES:]
    padded[CONTEXT_SAMPLES - len(heard) :] = heard
    even = (padded - padded.mean()) / np.sqrt(padded.var() + _VARIANCE_FLOOR)
    mirrored = np.pad(even.astype(np.float64), _FRAME_SAMPLES // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, _FRAME_SAMPLES)[::_HOP_SAMPLES][:_FRAMES]
    window = np.hanning(_FRAME_SAMPLES + 1)[:-1]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    log_power = np.log10(np.maximum(_POWER_FLOOR, _mel_filters() @ power.T))
    log_power = np.maximum(log_power, log_power.max() - 8.0)
    features: Audio = ((log_power + 4.0) / 4.0).astype(np.float32)
    return features


class TurnModel:
    """Raises ValueError if there is no such model at ``path`` or it has another shape."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; what a model carries in vain is nobody's concern
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a class of its own for each way to fail
            raise ValueError(f"model: {path} is no ONNX model that can be loaded ({error})") from None
        inputs = self._session.get_inputs()
        if [entry.name for entry in inputs] != ["input_features"] or inputs[0].shape[1:] != [_MELS, _FRAMES]:
            found = ", ".join(f"{entry.name} {entry.shape}" for entry in inputs)
            raise ValueError(f"model: {path} takes {found}, not input_features [n, {_MELS}, {_FRAMES}]")

    def probability(self, audio: Audio) -> float:
        """That the caller is done, after ``audio``: float32 (n,) at 16 kHz, the turn so far; eight seconds count."""
        (probabilities,) = self._session.run(None, {"input_features": log_mel(audio)[None]})
        return float(np.asarray(probabilities).reshape(-1)[0])


def _has_pipecat() -> bool:
    return importlib.util.find_spec("pipecat") is not None


def model_path(name: object) -> Path:
    """A path; ``packaged`` for the model that ``voiceserver models fetch smart-turn-v3.2`` brings; ``pipecat`` for the one inside
    the installed pipecat-ai; ``auto`` for the first of these that is there. Raises ValueError naming ``model``."""
    if name == "auto":
        name = "packaged" if models.is_present(models.named(PACKAGED)) or not _has_pipecat() else "pipecat"
    if name == "packaged":
        return models.weights("model", PACKAGED) / "smart-turn.onnx"
    if name != "pipecat":
        if not isinstance(name, str) or not Path(name).is_file():
            raise ValueError(
                f'model: must be the path of an ONNX file, "packaged" or "pipecat", not {name!r}'
            )
        return Path(name)
    # Found, not imported: importing pipecat takes seconds and prints a banner.
    spec = importlib.util.find_spec("pipecat")
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise ValueError(
            "model: pipecat-ai is not installed (pip install pipecat-ai); or give the path of the model"
        )
    data = Path(next(iter(folders))) / "audio" / "turn" / "smart_turn" / "data"
    found = sorted(data.glob("smart-turn-v3*.onnx"))
    if not found:
        raise ValueError(
            "model: the installed pipecat-ai carries no smart-turn v3 model; give the path of one"
        )
    return found[-1]
