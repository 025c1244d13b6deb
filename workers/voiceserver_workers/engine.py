"""The engine protocol: what computes inside a worker process.

An engine owns per-stream state; a worker owns everything else (rings, batching, resampling, time). The worker calls
an engine from one thread only. Life of a stream::

    open(stream) -> step([... item of the stream ...])* -> [cancel(stream, turn)] -> close(stream)

A batch holds at most one item per stream. Batched must equal unbatched: what a stream gets may not depend on its
neighbours. ``voiceserver.testing.EngineSuite`` states these rules as tests that every engine passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from voiceserver_workers.ipc.messages import ResultKind, StreamParams

Stage = Literal["vad", "stt", "reply", "tts"]
STAGES: tuple[Stage, ...] = ("vad", "stt", "reply", "tts")

Audio = npt.NDArray[np.float32]


class EngineError(Exception):
    """A fault of one item, not of the worker. ``code`` and ``message`` reach the caller; keep them free of internals."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Item(NamedTuple):
    """One stream's part of a batch.

    audio: float32 (n,) in [-1, 1) at ``EngineInfo.rate_hz`` (vad, stt, speech to speech), empty otherwise. A view into
        the whole batch: copy what you keep.
    text: the payload of a text stage (reply: JSON; tts: sentence), ``None`` otherwise.
    end_ms: position of the end of ``audio`` on the session's input clock.
    is_flush: the utterance of ``turn`` ends after this item.
    is_continued: no new input; the engine said ``more`` at its last step and goes on.
    is_pause: the caller paused here, and the flush may follow without more audio (only for ``EngineInfo.works_ahead``).
    is_final_only: nobody reads partial transcripts of this stream now: do not compute any (stt, a server under pressure).
    """

    stream: int
    turn: int
    audio: Audio
    text: str | None = None
    end_ms: float = 0.0
    is_flush: bool = False
    is_continued: bool = False
    is_pause: bool = False
    is_final_only: bool = False


class Piece(NamedTuple):
    """One result of a step. payload: bytes, str (encoded as UTF-8), or float32 audio at ``EngineInfo.rate_hz`` (AUDIO)."""

    kind: ResultKind
    payload: bytes | str | Audio = b""


@dataclass(slots=True)
class Output:
    """What one item gave. ``more``: step this stream again without new input (continuous batching); ``rest_ms``: not before
    then, because the engine waits for somebody else meanwhile. ``is_optional``: all that was computed in this step is left out
    where there is more to do (stt: partial transcripts), so the server does not count it when it learns how many callers it
    can carry."""

    pieces: list[Piece] = field(default_factory=list)
    more: bool = False
    is_optional: bool = False
    rest_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """name; stage; rate_hz: the engine's native audio rate (0 for text only); max_streams: how many streams one worker
    can hold at once (0: unlimited); frame_samples: audio is delivered in any length, but batches best in multiples
    of this many samples (0: no preference); works_ahead: it uses pauses to have the transcript ready (stt); takes_audio:
    a reply engine that hears the turn itself and answers with AUDIO (speech to speech); options: what ``open`` takes of a
    session (``voice``, ``language``, ``speed``, or names of its own), the pool sends no others; voices: what ``voice`` may be
    (empty: unknown); languages: that it speaks, as primary subtags (``en``; empty: unknown)."""

    name: str
    stage: Stage
    rate_hz: int = 0
    max_streams: int = 0
    frame_samples: int = 0
    works_ahead: bool = False
    takes_audio: bool = False
    options: tuple[str, ...] = ()
    voices: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    @property
    def hears(self) -> bool:
        """Its input is audio, not text."""
        return self.takes_audio or self.stage in ("vad", "stt")


class Engine(Protocol):
    """Constructed as ``factory(params: Mapping)`` in the worker process. Raises ValueError naming the key for bad params.

    A factory may have a ``preload(params)`` static method: it runs once in the forkserver, so that what it
    loads (weights, libraries) is shared copy-on-write by every worker. It must not start threads.
    """

    info: EngineInfo

    def open(self, stream: int, params: StreamParams) -> None:
        """Make the stream's state. Raises EngineError for bad options."""

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        """Advance each item's stream; one Output per item, in order. Raising fails the batch, then each item alone."""

    def cancel(self, stream: int, turn: int) -> None:
        """Forget work of ``turn`` and older. Unknown streams are ignored."""

    def close(self, stream: int) -> None:
        """Free the stream's state. Unknown streams are ignored."""


class EngineFactory(Protocol):
    def __call__(self, params: Mapping[str, Any]) -> Engine: ...
