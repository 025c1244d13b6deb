"""What the server and its workers tell each other: the kinds of records, and their payloads as typed structs.

Every JSON payload is a struct of this file, encoded by ``encode`` and decoded by its ``decode_...`` (R5).

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
    OPEN     StreamParams; seq: how many first items are stepped alone, because the stream was near a crash
    DATA     vad, stt, speech to speech: audio at ``StreamParams.rate_hz``; reply: ReplyRequest; tts: text of a sentence
    PAUSE    stt: the caller paused at ``seq``; FLUSH may follow without more audio, so work ahead. Only a hint
    FLUSH    stt: the utterance of ``turn`` ends here, give FINAL; speech to speech: answer it
    CANCEL   forget everything of ``turn`` and older; no result of those turns follows
    CLOSE    the stream ends; its id is never used again
    FINAL_ONLY  stt: the partial transcripts of this stream are not read from now on, so do not compute them. Only a hint

Results
    OPENED   Opened
    CONSUMED input up to ``seq`` was taken and gave nothing else
    SPEECH   vad: float64 start_ms of the first window on the input clock, float64 window_ms, then float32
             speech probabilities, one per window (see ``pack_speech`` / ``unpack_speech``)
    TURN     vad: how likely the caller's turn ended with the pause before this point (see ``pack_turn``); it follows the
             SPEECH of the windows that it is about, and no window of later speech precedes it
    TEXT     stt: the whole stable hypothesis so far; reply: the next sentence (a delta, spaces kept)
    FINAL    stt: the transcript of ``turn`` (may be empty)
    TOOL     reply: ToolPiece
    AUDIO    tts: audio at ``StreamParams.rate_hz``; speech to speech: at its ``output_rate_hz``
    DONE     reply: Finish; tts: sentence ``seq`` is complete (empty)
    FAILED   Failure: this turn failed in the engine, the stream lives on

Stream 0 is the worker itself. OPENED: Hello, the engine is loaded; FAILED: Failure, its last words (``bad_engine``,
``out_of_memory``); DATA: BatchWindow; CLOSE: end.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

Value = str | int | float | bool
CONTROL_STREAM = 0

encode = msgspec.json.Encoder().encode


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


class StreamParams(msgspec.Struct, frozen=True):
    """How a stream is opened."""

    # Rate of the audio on the ring (input of vad and stt, output of tts); the worker resamples to the engine's own rate.
    rate_hz: int = 16000
    # Position of the first sample on the session's input clock.
    start_seq: int = 0
    # Engine options of this session (voice, language, ...), validated by the engine.
    options: Mapping[str, Value] = {}
    # Rate of the audio that comes back where audio goes in too; 0: the same.
    output_rate_hz: int = 0
    # The stream begins as after FINAL_ONLY.
    is_final_only: bool = False
    # The audio comes as it is spoken. False: a recording, sent as fast as it is taken, which can wait for a place.
    is_live: bool = True

    def to_bytes(self) -> bytes:
        """The payload of OPEN."""
        return encode(self)

    @classmethod
    def from_bytes(cls, payload: bytes) -> StreamParams:
        """Raises msgspec.DecodeError, which is a ValueError."""
        return _decode_stream_params(payload)


_decode_stream_params = msgspec.json.Decoder(StreamParams).decode


# ------------------------------------------------------------------------------------------- worker and its pool


class Hello(msgspec.Struct, frozen=True):
    """OPENED of the control stream: what the pool must know of the engine."""

    engine: str
    stage: str
    # The engine's own audio rate; 0: text only.
    rate_hz: int
    # Streams that one worker can hold; 0: no limit.
    max_streams: int
    # What the engine takes of ``StreamParams.options``.
    options: tuple[str, ...] = ()
    # What the option ``voice`` may be; empty: unknown.
    voices: tuple[str, ...] = ()
    # That the engine speaks, as primary subtags; empty: unknown.
    languages: tuple[str, ...] = ()


class Opened(msgspec.Struct, frozen=True):
    """OPENED of a stream."""

    engine: str


class Failure(msgspec.Struct, frozen=True):
    """FAILED. ``code`` and ``message`` reach the caller."""

    code: str = "engine_failed"
    message: str = "the engine failed"
    # Only of an engine that waits for a network: whether to ask again, and when.
    retryable: bool | UnsetType = UNSET
    retry_after_ms: int | UnsetType = UNSET


class BatchWindow(msgspec.Struct, frozen=True):
    """DATA of the control stream: how long the first item of a batch waits for others, from now on."""

    max_wait_ms: float


OUT_OF_MEMORY = Failure("out_of_memory", "The worker ran out of memory.")
decode_hello = msgspec.json.Decoder(Hello).decode
decode_failure = msgspec.json.Decoder(Failure).decode
decode_batch_window = msgspec.json.Decoder(BatchWindow).decode


# ------------------------------------------------------------------------------------------------- reply engines


class FunctionCall(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """A call of a tool, in the shape of chat-completions endpoints."""

    id: str = ""
    type: str = "function"
    function: FunctionCall = FunctionCall()


class TextPart(msgspec.Struct, frozen=True):
    text: str = ""


class ReplyMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One item of the conversation, in the shape of chat-completions endpoints."""

    role: str
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str = ""

    @property
    def text(self) -> str:
        """The words of ``content``."""
        if isinstance(self.content, list):
            return " ".join(part.text for part in self.content)
        return self.content or ""


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool that the reply may call; ``parameters`` is a JSON Schema."""

    name: str
    description: str = ""
    parameters: dict[str, object] = {}


class ReplyRequest(msgspec.Struct, frozen=True):
    """DATA of a reply stream. An engine ignores the fields that it does not need."""

    messages: list[ReplyMessage]
    turn: int = 0
    instructions: str = ""
    tools: list[ToolSpec] = []
    # "auto", "none", "required", or the name of a tool.
    tool_choice: str = ""
    max_output_tokens: int | None = None
    temperature: float | None = None
    # Of the session, BCP 47; "" unknown.
    language: str = ""
    # What the server is doing now: sessions, talkers, lag_ms, local_time.
    context: dict[str, object] | None = None


class ToolPiece(msgspec.Struct, frozen=True):
    """TOOL: a piece of a tool call; the arguments of its pieces are joined."""

    index: int = 0
    call_id: str = ""
    name: str = ""
    arguments: str = ""


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens that an answer cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Finish(msgspec.Struct, frozen=True):
    """DONE of a reply stream."""

    finish_reason: str = "stop"
    usage: Usage | None = None


decode_reply_request = msgspec.json.Decoder(ReplyRequest).decode
decode_tool_piece = msgspec.json.Decoder(ToolPiece).decode
decode_finish = msgspec.json.Decoder(Finish).decode


# ---------------------------------------------------------------------------------------- server and forkserver


class WorkerSpec(msgspec.Struct, frozen=True):
    """What a worker process is started with."""

    # A name for the registry, and what its factory gets.
    engine: str
    params: dict[str, Value]
    max_batch_size: int = 64
    max_wait_ms: float = 0.0
    # A longer step is a hang.
    step_timeout_ms: float = 5_000.0
    # Do without what only Linux has.
    is_portable: bool = False


class Preload(msgspec.Struct, frozen=True, tag_field="do", tag="preload"):
    """Import what the engine needs; ``sys_path``: the import path of the server."""

    engine: str
    params: dict[str, Value]
    sys_path: list[str]


class Fork(msgspec.Struct, frozen=True, tag_field="do", tag="fork"):
    """Start a worker. With it come the fds of its channel and its lifeline."""

    id: int
    spec: WorkerSpec


class Ping(msgspec.Struct, frozen=True, tag_field="do", tag="ping"):
    """Say that you are there."""


class Pong(msgspec.Struct, frozen=True, tag_field="told", tag="pong"):
    """The answer to a ping."""


class Preloaded(msgspec.Struct, frozen=True, tag_field="told", tag="preloaded"):
    """The engine is imported."""


class PreloadFailed(msgspec.Struct, frozen=True, tag_field="told", tag="failed"):
    """The engine cannot be imported."""

    message: str


class Forked(msgspec.Struct, frozen=True, tag_field="told", tag="forked"):
    """The worker of request ``id`` was started. With it comes a pidfd where the system has them."""

    id: int
    pid: int


class ForkFailed(msgspec.Struct, frozen=True, tag_field="told", tag="fork_failed"):
    """The worker of request ``id`` could not be started now: no process, memory or descriptor was to be had."""

    id: int
    message: str


class Exited(msgspec.Struct, frozen=True, tag_field="told", tag="exited"):
    """A worker has ended; ``status`` as of ``os.waitstatus_to_exitcode``."""

    pid: int
    status: int


ForkServerAnswer = Pong | Preloaded | PreloadFailed | Forked | ForkFailed | Exited

decode_forkserver_request = msgspec.json.Decoder(Ping | Preload | Fork).decode
decode_forkserver_answer = msgspec.json.Decoder(ForkServerAnswer).decode


# ------------------------------------------------------------------------------------------------- calibration


class CalibrationJob(msgspec.Struct, frozen=True):
    """What ``voiceserver_workers.calibrate`` is to measure."""

    engine: str
    stage: str
    params: dict[str, Value] = {}
    batch_sizes: tuple[int, ...] = (1,)
    # Tried one after the other, as the engine's ``dtype`` or whatever it calls it; "": the engine's own.
    dtypes: tuple[str, ...] = ("",)
    # For each pair of batch size and dtype.
    budget_s: float = 1.0


class Measured(msgspec.Struct, frozen=True, tag_field="told", tag="measured"):
    """One pair of batch size and dtype."""

    dtype: str
    batch: int
    # Median time of a step.
    step_ms: float
    # Speech heard or spoken by one such step, of all streams together.
    audio_ms: float
    # Streams that one worker can hold, as the engine says; 0: no limit.
    max_streams: int = 0

    @property
    def work(self) -> float:
        """Seconds of one worker per second of audio."""
        return self.step_ms / self.audio_ms if self.audio_ms else 0.0


class NotMeasured(msgspec.Struct, frozen=True, tag_field="told", tag="not_measured"):
    """The engine cannot be made as configured."""

    error: str


decode_calibration_job = msgspec.json.Decoder(CalibrationJob).decode
decode_measured = msgspec.json.Decoder(Measured | NotMeasured).decode


# ------------------------------------------------------------------------------------------------ binary payloads


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
