"""Moonshine base-en: one window of audio in, one hypothesis out (Jeffries et al., "Moonshine: Speech Recognition for Live
Transcription and Voice Commands", 2024). The window has any length, so a short utterance costs little.

The decoder is greedy, and may be made to begin with tokens that were told already. Guards against what it invents, or leaves
out, all measured on recordings:

- Silence and noise around the speech are cut: digital silence sometimes makes it end before the first word, and a little more
  of either changes the spelling of a word.
- Where there is speech, the first token is not the end.
- A hypothesis is dropped where the model wanted to end at once and is not sure of the words it gave instead.
- It has no more tokens than anybody says in that time, and stops when the same four tokens come for the third time in a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from voiceserver_workers.engine import Audio
from voiceserver_workers.engines.moonshine_weights import CACHED, HEAD_SIZE, HEADS
from voiceserver_workers.engines.windows import RATE_HZ, Heard, Job, Word

LANGUAGE: Final = "en"
# Over about 20 s it invents sentences.
CONTEXT_S: Final = 15
_BEGIN, _END = 1, 2
# A window is at least as long.
_MIN_SAMPLES = RATE_HZ // 10
_BLOCK_SAMPLES = RATE_HZ * 50 // 1000
# More behind: many words end in a fricative, which is no louder than noise.
_BEFORE_SAMPLES, _BEHIND_SAMPLES = RATE_HZ * 60 // 1000, RATE_HZ * 150 // 1000
# Of the loudest block, for speech without noise. The quietest tenth of an utterance is noise; what is so much louder, or as loud
# as speech, is sound.
_SOUND_DB, _SPEECH_DB = -40.0, -20.0
_NOISE_SHARE, _OVER_NOISE_DB, _NOISE_STEP_DB, _LEAST_NOISE = 0.1, 12.0, 6.0, 1e-9
# Nobody speaks faster: tokens a second, and some for the beginning.
_TOKENS_PER_S, _MIN_TOKENS = 6.5, 8
_LOOP_TOKENS, _LOOP_TIMES = 4, 3
# Mean log-probability of a token; of clean speech it is over -0.25.
_UNSURE_LOG_PROBABILITY = -1.0
_SPACE: Final = "\u2581".encode()

Floats = npt.NDArray[np.float32]


class MoonshineModel:
    """Raises ValueError naming ``model`` for files that cannot be loaded. ``folder`` has encoder.onnx and decoder.onnx."""

    context_samples: Final = CONTEXT_S * RATE_HZ

    def __init__(self, folder: Path, tokenizer: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Same speed, and memory does not grow with the longest window.
        options.enable_cpu_mem_arena = False
        try:
            self._encoder, self._decoder = (
                onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
                for name in ("encoder.onnx", "decoder.onnx")
            )
        except Exception as error:  # onnxruntime has a class of its own for each way to fail
            raise ValueError(f"model: the files in {folder} cannot be loaded ({error})") from None
        self._cross = [f"past_key_values.{output.name[6:]}" for output in self._encoder.get_outputs()]
        self._present = [f"past_key_values.{output.name[8:]}" for output in self._decoder.get_outputs()[1:]]
        self._pieces = list(pieces_of(tokenizer.read_bytes()))

    def hear(self, jobs: Sequence[Job], beam_size: int) -> list[Heard]:
        """One hypothesis a job, one after the other: on a CPU a batch costs as much, and padding changes words."""
        return [Heard(self.words(self._decode(job)), LANGUAGE) for job in jobs]

    def text(self, words: Sequence[Word], language: str) -> str:
        pieces = b"".join(
            self._pieces[token] for word in words for token in word if token < len(self._pieces)
        )
        return pieces.decode("utf-8", "replace").replace("\u2581", " ").strip()

    def words(self, tokens: Iterable[int]) -> list[Word]:
        """Tokens word by word; punctuation belongs to the word before it."""
        words: list[list[int]] = []
        for token in tokens:
            piece = self._pieces[token] if token < len(self._pieces) else b""
            if not words or piece.startswith(_SPACE):
                words.append([])
            words[-1].append(token)
        return [tuple(word) for word in words]

    def _decode(self, job: Job) -> list[int]:
        """The tokens of ``job``, its prefix among them."""
        audio = without_silence(job.audio)
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        cross = self._encoder.run_with_ort_values(None, {"input_values": value(audio[None])})
        feed: dict[str, Any] = dict(zip(self._cross, cross, strict=True))
        empty = np.zeros((1, HEADS, 0, HEAD_SIZE), np.float32)
        feed.update({f"past_key_values.{name.format('decoder')}": value(empty) for name in CACHED})
        found = list(job.prefix)
        asked = [_BEGIN, *found]
        log_probability, is_doubted = 0.0, False
        limit = max(int(len(audio) / RATE_HZ * _TOKENS_PER_S) + _MIN_TOKENS, len(found))
        while True:
            logits, *present = self._decoder.run_with_ort_values(
                None, {"input_ids": value(np.array([asked], np.int64)), **feed}
            )
            scores = logits.numpy()[0, -1]
            token = int(scores.argmax())
            if token == _END and not found:
                is_doubted = True
                token = int(np.where(np.arange(scores.size) == _END, -math.inf, scores).argmax())
            if token == _END or len(found) >= limit:
                break
            log_probability += _log_probability(scores, token)
            found.append(token)
            if repeats(found):
                del found[-_LOOP_TOKENS * (_LOOP_TIMES - 1) :]
                break
            asked = [token]
            feed.update(zip(self._present, present, strict=True))
        if is_doubted and log_probability < _UNSURE_LOG_PROBABILITY * len(found):
            return []
        return found


def without_silence(audio: Audio) -> Audio:
    """``audio`` (n,) with exactly 60 ms before its first and 150 ms after its last sound; where it has less, zeros are added.

    Sound is 50 ms, less than 40 dB below the loudest and clearly louder than the noise of the line; a soft click is none.
    They may begin at any sample, so the same speech is shown to the model alike, however much silence or noise came with it.
    """
    found = _sound(audio)
    if found is not None:
        start, stop = found[0] - _BEFORE_SAMPLES, found[1] + _BEHIND_SAMPLES
        shown = audio[max(start, 0) : stop]
        audio = np.pad(shown, (max(-start, 0), max(stop - len(audio), 0)))
    if len(audio) < _MIN_SAMPLES:
        audio = np.concatenate((audio, np.zeros(_MIN_SAMPLES - len(audio), np.float32)))
    return np.ascontiguousarray(audio, np.float32)


def _sound(audio: Audio) -> tuple[int, int] | None:
    """The samples from the first sound to the last. None: there is none."""
    if len(audio) < _BLOCK_SAMPLES:
        return None
    energy = np.cumsum(np.square(audio, dtype=np.float64))
    power = energy[_BLOCK_SAMPLES - 1 :].copy()
    power[1:] -= energy[:-_BLOCK_SAMPLES]
    loudest = float(power.max())
    if loudest <= 0:
        return None
    noise = max(float(np.quantile(power[::_BLOCK_SAMPLES], _NOISE_SHARE)) / loudest, _LEAST_NOISE)
    # In steps, so that a little more of the noise moves no limit.
    noise_db = _NOISE_STEP_DB * round(10.0 * math.log10(noise) / _NOISE_STEP_DB)
    limit = loudest * 10.0 ** (min(max(noise_db + _OVER_NOISE_DB, _SOUND_DB), _SPEECH_DB) / 10.0)
    loud = np.flatnonzero(power > limit)
    return int(loud[0]), int(loud[-1]) + _BLOCK_SAMPLES


def repeats(tokens: Sequence[int]) -> bool:
    """Whether ``tokens`` end with the same four for the third time in a row."""
    last = tokens[-_LOOP_TOKENS:]
    span = _LOOP_TOKENS * _LOOP_TIMES
    return len(tokens) >= span and list(tokens[-span:]) == list(last) * _LOOP_TIMES


def pieces_of(file: bytes) -> Iterable[bytes]:
    """The vocabulary of ``tokenizer.bin``: each piece's length, in one byte or two, and its UTF-8."""
    position = 0
    while position < len(file):
        length = file[position]
        position += 1
        if length >= 128:
            length = file[position] * 128 + length - 128
            position += 1
        yield file[position : position + length]
        position += length


def _log_probability(scores: Floats, token: int) -> float:
    highest = float(scores.max())
    return float(scores[token]) - highest - math.log(float(np.exp(scores - highest).sum()))
