"""What crosses the ring: record kinds and the meaning of every field.

A record is ``(kind, stream, turn, seq, payload)``. Records of one stream keep their order in each
direction. ``seq`` is a *position*, not a counter of records:

========  ===============================================  ==========================================
stage     seq of a request                                 seq of a result
========  ===============================================  ==========================================
vad, stt  samples of the session's input clock, at the     how far the worker has consumed
          end of this payload
reply     number of the request (1, 2, ...)                the request answered
          (speech to speech: as vad, stt)
tts       number of the sentence (1, 2, ...)               the sentence this audio belongs to
========  ===============================================  ==========================================

Payloads by kind (all text is UTF-8, all audio is PCM16 little-endian mono):

Requests
    OPEN     JSON of StreamParams; seq: how many first items are stepped alone, because the stream was near a crash
    DATA     vad, stt, speech to speech: audio at ``StreamParams.rate_hz``; reply: JSON request; tts: text of a sentence
    PAUSE    stt: the caller paused at ``seq``; FLUSH may follow without more audio, so work ahead. Only a hint
    FLUSH    stt: the utterance of ``turn`` ends here, give FINAL; speech to speech: answer it
    CANCEL   forget everything of ``turn`` and older; no result of those turns follows
    CLOSE    the stream ends; its id is never used again
    FINAL_ONLY  stt: from now on nobody reads this stream's partial transcripts, so do not compute them. Only a hint

Results
    OPENED   JSON, what the engine tells about the stream (``{"engine": "silero"}``)
    CONSUMED input up to ``seq`` was taken and had nothing else to say
    SPEECH   vad: float64 start_ms of the first window on the input clock, float64 window_ms, then float32
             speech probabilities, one per window (see ``pack_speech`` / ``unpack_speech``)
    TURN     vad: how likely the caller's turn ended with the pause before this point (see ``pack_turn``); it follows the
             SPEECH of the windows it judges, and no window of later speech precedes it
    TEXT     stt: the whole stable hypothesis so far; reply: the next sentence (a delta, spaces kept)
    FINAL    stt: the transcript of ``turn`` (may be empty)
    TOOL     reply: JSON of a tool call delta ``{"index", "call_id", "name", "arguments"}``
    AUDIO    tts: audio at ``StreamParams.rate_hz``; speech to speech: at its ``output_rate_hz``
    DONE     reply: JSON ``{"finish_reason", "usage"}``; tts: sentence ``seq`` is complete (JSON, may be empty)
    FAILED   JSON ``{"code", "message"}``: this turn failed in the engine, the stream lives on

Stream 0 is the worker itself. OPENED: the engine is loaded, JSON ``{"engine", "stage", "rate_hz", "max_streams"}``; FAILED: its
last words (``bad_engine``, ``out_of_memory``); DATA: JSON ``{"max_wait_ms"}``, a new batch window; CLOSE: end.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import NamedTuple

CONTROL_STREAM = 0


class RequestKind(IntEnum):
    OPEN = 1
    DATA = 2
    FLUSH = 3
    CANCEL = 4
    CLOSE = 5
    PAUSE = 6
    FINAL_ONLY = 7


class ResultKind(IntEnum):
    OPENED = 65
    CONSUMED = 66
    SPEECH = 67
    TEXT = 68
    FINAL = 69
    TOOL = 70
    AUDIO = 71
    DONE = 72
    FAILED = 73
    TURN = 74


class Record(NamedTuple):
    """One message of a ring. ``payload`` is a copy that the receiver owns."""

    kind: int
    stream: int
    turn: int
    seq: int
    payload: bytes
    sent_ns: int = 0  # time.monotonic_ns() at the push; the age of a queued request


@dataclass(frozen=True, slots=True)
class StreamParams:
    """How a stream is opened.

    ``rate_hz``: rate of the audio on the ring (input of vad and stt, output of tts); the worker resamples to and
    from the engine's own rate. ``start_seq``: the first sample's position on the session's input clock.
    ``output_rate_hz``: rate of the audio that comes back where audio goes in too; 0: the same.
    ``options``: engine options of this session (voice, language, ...), validated by the engine.
    ``is_final_only``: the stream begins as after FINAL_ONLY.
    """

    rate_hz: int = 16000
    start_seq: int = 0
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    output_rate_hz: int = 0
    is_final_only: bool = False

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, payload: bytes) -> StreamParams:
        return cls(**json.loads(payload))


_SPEECH_HEAD = struct.Struct("<dd")


def pack_speech(start_ms: float, window_ms: float, probabilities: Sequence[float]) -> bytes:
    return _SPEECH_HEAD.pack(start_ms, window_ms) + struct.pack(f"<{len(probabilities)}f", *probabilities)


def speech_head(start_ms: float, window_ms: float) -> bytes:
    """The beginning of a payload of SPEECH; float32 probabilities, little-endian, follow."""
    return _SPEECH_HEAD.pack(start_ms, window_ms)


def unpack_speech(payload: bytes) -> tuple[float, float, Sequence[float]]:
    """``(start_ms, window_ms, probabilities)``."""
    start_ms, window_ms = _SPEECH_HEAD.unpack_from(payload)
    return start_ms, window_ms, memoryview(payload)[_SPEECH_HEAD.size :].cast("f")


_TURN = struct.Struct("<ddf")


def pack_turn(speech_end_ms: float, at_ms: float, probability: float) -> bytes:
    """``speech_end_ms``: where the pause began; ``at_ms``: end of the audio judged; both on the input clock."""
    return _TURN.pack(speech_end_ms, at_ms, probability)


def unpack_turn(payload: bytes) -> tuple[float, float, float]:
    """``(speech_end_ms, at_ms, probability)``."""
    speech_end_ms, at_ms, probability = _TURN.unpack(payload)
    return speech_end_ms, at_ms, probability
