"""One worker: drain the ring, make a batch, step the engine, push the results.

``Worker.poll(now_ms)`` does one round and never blocks, so the same code runs in a process (``voiceserver_workers.process``), in
a test and in the simulation. Rules:

- Results that find the ring full are kept, and nothing more is taken or stepped until they are out: a slow server
  makes this worker wait, and a waiting worker makes its request ring fill up, which the server sees.
- Every item is answered: by its results, by CONSUMED, or by FAILED. After CANCEL no result of those turns follows.
- An engine that raises on a batch is asked again item by item, so that only the culprit fails.
- What is being computed is in the flight recorder before the engine is called.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np

from voiceserver_workers.audio import Resampler, float_to_pcm16, pcm16_to_float
from voiceserver_workers.batcher import Batcher, BatchLimits, Work
from voiceserver_workers.engine import Audio, Engine, EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.ipc.messages import (
    CONTROL_STREAM,
    Failure,
    Hello,
    Opened,
    Record,
    RequestKind,
    ResultKind,
    StreamParams,
    decode_batch_window,
    encode,
)

log = logging.getLogger(__name__)

MAX_PENDING = (
    256  # requests held outside the ring: enough for batching, few enough that a full ring still tells
)
MERGE_BYTES = 32_000
# Of a worker's time; one caller alone takes 0.1 with moonshine.
OPTIONAL_SHARE = 0.25
OPTIONAL_BURST_MS = 500.0
ENGINE_FAILED = EngineError("engine_failed", "The engine failed on this input.")

# As plain ints: looking a member up costs more than comparing it.
_OPEN, _DATA, _FLUSH, _CANCEL, _CLOSE, _PAUSE, _FINAL_ONLY = map(int, RequestKind)
_WORK = frozenset((_DATA, _FLUSH, _PAUSE))
_ENDINGS = (ResultKind.DONE, ResultKind.FAILED)
_NO_AUDIO: Audio = np.zeros(0, np.float32)
_new_work = _new_item = tuple.__new__  # half the time of the constructor that NamedTuple makes
_PCM16_FRAME_BYTES = 3840  # 20 ms at 96 kHz, 80 ms at 24 kHz; below a slot of any sensible size


class Channel(Protocol):
    """What a worker needs of its end; ``voiceserver_workers.ipc.channel.WorkerEnd`` is one."""

    def receive(self, limit: int = ...) -> list[Record]: ...
    def try_send(
        self, kind: int, stream: int, turn: int, seq: int, payload: bytes = ..., sent_ns: int = ...
    ) -> bool: ...
    def ring_bell(self) -> None: ...
    def beat(self) -> None: ...
    def record_step(self, streams: Sequence[int], deadline_ns: int) -> None: ...
    def record_idle(self, *, is_optional: bool = ...) -> None: ...


class _Result(NamedTuple):
    kind: int
    stream: int
    turn: int
    seq: int
    payload: bytes


@dataclass(slots=True)
class _Stream:
    """``inward``: ring to engine rate; ``outward``: engine to ring rate; ``None``: the rates agree. ``error``: open failed.
    ``is_final_only``: see ``Item``."""

    params: StreamParams
    inward: Resampler | None = None
    outward: Resampler | None = None
    error: EngineError | None = None
    cancelled_turn: int = -1
    is_final_only: bool = False


class OptionalBudget:
    """The time that all streams of a worker together may take for what is left out under pressure (``Output.is_optional``): a
    token bucket (Turner, "New Directions in Communications", 1986) that fills with ``OPTIONAL_SHARE`` of the time. So partial
    transcripts get rarer as more people speak, before anybody waits."""

    __slots__ = ("_left_ms", "_seen_ms")

    def __init__(self) -> None:
        self._left_ms = OPTIONAL_BURST_MS
        self._seen_ms: float | None = None

    def is_spent(self, now_ms: float) -> bool:
        if self._seen_ms is not None:
            gained_ms = max(now_ms - self._seen_ms, 0.0) * OPTIONAL_SHARE
            self._left_ms = min(self._left_ms + gained_ms, OPTIONAL_BURST_MS)
        self._seen_ms = now_ms
        return self._left_ms < 0

    def spend(self, took_ms: float) -> None:
        self._left_ms -= took_ms


class Worker:
    """``engine`` is used from the thread that calls ``poll`` only.

    step_timeout_ms: a longer step is a hang. clock_ms: read before each step where given; else the time of the poll.
    """

    def __init__(
        self,
        engine: Engine,
        channel: Channel,
        limits: BatchLimits,
        *,
        step_timeout_ms: float = 5_000.0,
        clock_ms: Callable[[], float] | None = None,
    ) -> None:
        self._engine = engine
        self._clock_ms = clock_ms
        self._channel = channel
        self._batcher = Batcher(limits)
        self._step_timeout_ms = step_timeout_ms
        self._streams: dict[int, _Stream] = {}
        self._unsent: deque[_Result] = deque()
        self._has_sent = False
        self._is_audio_in = engine.info.hears
        self._has_partials = engine.info.stage == "stt"
        self._budget = OptionalBudget() if self._has_partials and clock_ms is not None else None
        self._is_final_only = False
        self._announces_done = engine.info.stage in ("reply", "tts")
        self.is_stopping = False

    def start(self) -> None:
        """Say hello: the engine is loaded, and this is what it is."""
        self._channel.record_idle()
        self._send(ResultKind.OPENED, CONTROL_STREAM, 0, 0, encode(hello_of(self._engine.info)))
        self._ring()

    def poll(self, now_ms: float) -> bool:
        """One round. True: something was done, call again at once; False: wait for a request or ``due_ms``."""
        self._channel.beat()
        has_pushed = self._push_unsent()
        if self._unsent:
            self._ring()
            return has_pushed
        room = MAX_PENDING - self._batcher.pending
        records = self._channel.receive(room) if room > 0 else []
        for record in records:
            self._receive(record, now_ms)
        batch = self._batcher.take(now_ms)
        if batch:
            self._step(batch, now_ms)
        self._ring()
        return bool(records or batch or has_pushed)

    def due_ms(self) -> float | None:
        """When ``poll`` has work even if no request comes; ``None``: only requests matter."""
        return self._batcher.due_ms()

    def is_blocked(self) -> bool:
        """Results wait for room on the ring; nothing rings when there is some."""
        return bool(self._unsent)

    def has_streams(self) -> bool:
        """Whether somebody may send at any moment."""
        return bool(self._streams)

    def stop(self) -> None:
        """Close every stream; the channel stays open."""
        for stream in list(self._streams):
            self._close(stream)

    # Requests

    def _receive(self, record: Record, now_ms: float) -> None:  # hot
        kind, stream = record.kind, record.stream
        if stream == CONTROL_STREAM:
            self._obey(record)
        elif kind in _WORK:
            self._queue(record, now_ms)
        elif kind == _CANCEL:
            self._cancel(stream, record.turn)
        elif kind == _OPEN:
            self._open(record, now_ms)
        elif kind == _CLOSE:
            self._close(stream)
        elif kind == _FINAL_ONLY:
            # At once, and not behind the audio that waits: this is about the work still to do.
            if stream in self._streams:
                self._streams[stream].is_final_only = True
        else:
            log.error("unknown request kind %d on stream %d", kind, stream)

    def _obey(self, record: Record) -> None:
        if record.kind == _CLOSE:
            self.is_stopping = True
        elif record.kind == _DATA:
            limits = self._batcher.limits
            self._batcher.limits = replace(
                limits, max_wait_ms=decode_batch_window(record.payload).max_wait_ms
            )

    def _queue(self, record: Record, now_ms: float) -> None:  # hot
        kind, stream, turn, seq, payload, _ = record
        state = self._streams.get(stream)
        if state is None or turn <= state.cancelled_turn:
            return
        if state.error is not None:
            self._fail(stream, turn, seq, state.error)
            return
        is_pause = kind == _PAUSE
        if is_pause and not self._engine.info.works_ahead:
            return
        work = _new_work(Work, (stream, turn, seq, payload, kind == _FLUSH, False, is_pause))
        self._batcher.put(work, now_ms)

    def _open(self, record: Record, now_ms: float) -> None:
        stream, info = record.stream, self._engine.info
        state = self._streams[stream] = _Stream(StreamParams())
        self._channel.record_step((stream,), self._deadline_ns(now_ms))
        try:
            state.params = StreamParams.from_bytes(record.payload)
            state.is_final_only = state.params.is_final_only
            self._engine.open(stream, state.params)
            state.inward, state.outward = _make_resamplers(info, state.params)
        except MemoryError:
            raise
        except Exception as error:
            state.error = _as_engine_error(error)
            self._fail(stream, 0, state.params.start_seq, state.error)
        else:
            # OPEN's seq: how many first items are stepped alone, because the stream was near a crash.
            self._batcher.open(stream, trial_items=record.seq)
            opened = encode(Opened(info.name))
            self._send(ResultKind.OPENED, stream, 0, state.params.start_seq, opened)
        self._channel.record_idle()

    def _cancel(self, stream: int, turn: int) -> None:
        state = self._streams.get(stream)
        if state is None:
            return
        state.cancelled_turn = max(state.cancelled_turn, turn)
        self._batcher.cancel(stream, turn)
        self._unsent = deque(r for r in self._unsent if r.stream != stream or r.turn > turn)
        for resampler in (state.inward, state.outward):
            if resampler is not None:
                resampler.reset()
        if state.error is None:
            try:
                self._engine.cancel(stream, turn)
            except MemoryError:
                raise
            except Exception:
                log.exception("engine %s failed in cancel", self._engine.info.name)

    def _close(self, stream: int) -> None:
        state = self._streams.pop(stream, None)
        if state is None:
            return
        self._batcher.close(stream)
        self._unsent = deque(r for r in self._unsent if r.stream != stream)
        try:
            self._engine.close(stream)
        except MemoryError:
            raise
        except Exception:
            log.exception("engine %s failed in close", self._engine.info.name)

    # Steps

    def _step(self, batch: list[Work], now_ms: float) -> None:  # hot
        works: list[Work] = []
        items: list[Item] = []
        self._is_final_only = self._budget is not None and self._budget.is_spent(now_ms)
        for work, audio in zip(batch, self._decode(batch), strict=True):
            try:
                item = self._item(work, audio)
            except Exception as error:
                self._fail(work.stream, work.turn, work.seq, _as_engine_error(error))
                continue
            if item is None:
                self._send(ResultKind.CONSUMED, work.stream, work.turn, work.seq)
                continue
            works.append(work)
            items.append(item)
        if not items:
            return
        for work, output in zip(works, self._outputs(items, now_ms), strict=True):
            if isinstance(output, EngineError):
                self._fail(work.stream, work.turn, work.seq, output)
                continue
            self._answer(work, output)
            if output.more:
                self._batcher.put_continued(work, now_ms, output.rest_ms)

    def _decode(self, batch: list[Work]) -> Sequence[Audio | None]:  # hot
        """The audio of each work, all converted in one go; ``None`` where there is none, or half a sample."""
        if not self._is_audio_in:
            return [None] * len(batch)
        payloads = [work.payload for work in batch]
        sizes = [len(payload) for payload in payloads]
        are_equal = sizes.count(sizes[0]) == len(sizes)
        if sizes[0] & 1 or not (are_equal or all(size & 1 == 0 for size in sizes)):
            return [None] * len(batch)
        whole = pcm16_to_float(b"".join(payloads))
        if are_equal:
            return list(whole.reshape(len(batch), sizes[0] >> 1))
        ends = list(accumulate(sizes))
        return [whole[(end - size) >> 1 : end >> 1] for end, size in zip(ends, sizes, strict=True)]

    def _item(self, work: Work, audio: Audio | None) -> Item | None:  # hot
        """``None``: the resampler took it all and has nothing for the engine yet."""
        if not self._is_audio_in:
            text = None if work.is_continued else work.payload.decode()
            return Item(work.stream, work.turn, _NO_AUDIO, text, 0.0, work.is_flush, work.is_continued)
        state = self._streams[work.stream]
        if audio is None:
            audio = pcm16_to_float(work.payload) if work.payload else _NO_AUDIO
        if state.inward is not None and not work.is_continued:
            audio = state.inward.process(audio)
            if work.is_flush:
                audio = np.concatenate((audio, state.inward.flush()))
        if not len(audio) and not work.is_end and not work.is_continued:
            return None
        end_ms = work.seq * 1000.0 / state.params.rate_hz
        return _new_item(
            Item,
            (
                work.stream,
                work.turn,
                audio,
                None,
                end_ms,
                work.is_flush,
                work.is_continued,
                work.is_pause,
                state.is_final_only or self._is_final_only,
            ),
        )

    def _outputs(self, items: list[Item], now_ms: float) -> Sequence[Output | EngineError]:
        try:
            return self._call(items, now_ms)
        except MemoryError:
            raise
        except Exception as error:
            if len(items) == 1:
                return [_as_engine_error(error)]
        return [self._outputs([item], now_ms)[0] for item in items]

    def _call(self, items: list[Item], now_ms: float) -> Sequence[Output]:
        self._channel.record_step([item.stream for item in items], self._deadline_ns(now_ms))
        began_ms = self._clock_ms() if self._budget is not None and self._clock_ms is not None else now_ms
        try:
            outputs = self._engine.step(items)
        except MemoryError:
            raise  # the process ends, and its flight recorder must say over what
        except Exception:
            self._channel.record_idle()
            raise
        is_optional = self._has_partials and any(output.is_optional for output in outputs)
        self._channel.record_idle(is_optional=is_optional)
        if is_optional and self._budget is not None and self._clock_ms is not None:
            self._budget.spend(self._clock_ms() - began_ms)
        if len(outputs) != len(items):
            raise RuntimeError(f"engine gave {len(outputs)} outputs for {len(items)} items")
        return outputs

    def _deadline_ns(self, now_ms: float) -> int:
        if self._clock_ms is not None:
            now_ms = self._clock_ms()
        return int((now_ms + self._step_timeout_ms) * 1e6)

    # Results

    def _answer(self, work: Work, output: Output) -> None:
        """Encode before sending, so that a piece that cannot be encoded fails the item and not the worker."""
        pieces = output.pieces
        if len(pieces) == 1 and not self._announces_done:
            payload = pieces[0].payload
            if isinstance(payload, bytes):
                self._send(pieces[0].kind, work.stream, work.turn, work.seq, payload)
                return
        try:
            payloads = [part for piece in pieces for part in self._encode(work, piece)]
        except MemoryError:
            raise
        except Exception as error:
            output.more = False
            self._fail(work.stream, work.turn, work.seq, _as_engine_error(error))
            return
        is_over = self._announces_done and not output.more and (work.is_flush or not self._is_audio_in)
        if is_over and not any(p.kind in _ENDINGS for p in pieces):
            payloads += self._encode(work, Piece(ResultKind.DONE))
        if not payloads and not work.is_continued:
            payloads.append((ResultKind.CONSUMED, b""))
        for kind, payload in payloads:
            self._send(kind, work.stream, work.turn, work.seq, payload)

    def _encode(self, work: Work, piece: Piece) -> list[tuple[int, bytes]]:
        kind, payload = piece
        if isinstance(payload, bytes):
            parts: list[tuple[int, bytes]] = [(kind, payload)]
        elif isinstance(payload, str):
            parts = [(kind, payload.encode())]
        else:
            outward = self._streams[work.stream].outward
            return _pcm16_frames(kind, payload if outward is None else outward.process(payload))
        if kind == ResultKind.DONE:
            outward = self._streams[work.stream].outward
            if outward is not None:
                return _pcm16_frames(ResultKind.AUDIO, outward.flush()) + parts
        return parts

    def _fail(self, stream: int, turn: int, seq: int, error: EngineError) -> None:
        self._send(ResultKind.FAILED, stream, turn, seq, encode(Failure(error.code, error.message)))

    def _send(self, kind: int, stream: int, turn: int, seq: int, payload: bytes = b"") -> None:
        try:
            if not self._unsent and self._channel.try_send(kind, stream, turn, seq, payload):
                self._has_sent = True
                return
        except ValueError:
            log.error("engine %s: a result of %d bytes fits no ring", self._engine.info.name, len(payload))
            self._fail(stream, turn, seq, ENGINE_FAILED)
            return
        self._unsent.append(_Result(kind, stream, turn, seq, payload))

    def _push_unsent(self) -> bool:
        unsent, has_pushed = self._unsent, False
        while unsent and self._channel.try_send(*unsent[0]):
            unsent.popleft()
            has_pushed = True
        self._has_sent = self._has_sent or has_pushed
        return has_pushed

    def _ring(self) -> None:
        if self._has_sent:
            self._has_sent = False
            self._channel.ring_bell()


# Voices that a hello lists; the hello is one record, so it has an end.
MAX_VOICES = 1_000


def hello_of(info: EngineInfo) -> Hello:
    """What the pool must know of the engine."""
    return Hello(
        info.name,
        info.stage,
        info.rate_hz,
        info.max_streams,
        info.options,
        info.voices[:MAX_VOICES],
        info.languages[:MAX_VOICES],
    )


def merge_bytes(info: EngineInfo) -> int:
    """How much queued audio of one stream may be one item: a second at 16 kHz. 0 for text."""
    return MERGE_BYTES if info.hears else 0


def _make_resamplers(info: EngineInfo, params: StreamParams) -> tuple[Resampler | None, Resampler | None]:
    """Into the engine, and out of it."""
    native_hz, in_hz, out_hz = info.rate_hz, params.rate_hz, params.output_rate_hz or params.rate_hz
    says_audio = info.stage == "tts" or info.takes_audio
    inward = Resampler(in_hz, native_hz) if native_hz and info.hears and in_hz != native_hz else None
    outward = Resampler(native_hz, out_hz) if native_hz and says_audio and out_hz != native_hz else None
    return inward, outward


def _pcm16_frames(kind: int, audio: Audio) -> list[tuple[int, bytes]]:
    pcm = float_to_pcm16(audio)
    size = _PCM16_FRAME_BYTES
    return [(kind, pcm[start : start + size]) for start in range(0, len(pcm), size)]


def _as_engine_error(error: Exception) -> EngineError:
    """What the caller may read. Anything but an EngineError is the engine's own trouble and goes to the log."""
    if isinstance(error, EngineError):
        return error
    log.error("engine failed", exc_info=error)
    return ENGINE_FAILED
