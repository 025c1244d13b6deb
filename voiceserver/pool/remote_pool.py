"""A stage that waits for a network: its streams are tasks on the loop, and a remote engine does the talking.

    send --task--> RemoteEngine.answer --say--> ready --end of the tick--> owners

Rules: callbacks never come from inside ``try_open`` or ``send``; each burst of them ends in one ``on_tick`` per owner; a
closed stream hears nothing more and its request is cancelled at once. At most ``max_concurrency`` requests are on the way;
beyond it ``try_open`` refuses and ``send`` says full, and whoever was told so is called back, first come, first called.
Every task belongs to the pool: ``stop`` ends them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from voiceserver.errors import Refusal
from voiceserver.pool import (
    OnEvent,
    Pool,
    PoolStats,
    RemoteCounts,
    Stream,
    StreamOwner,
    WorkerStats,
    ignore_event,
    never_raising,
)
from voiceserver.pool.place_queue import PlaceQueue
from voiceserver_workers.ipc.messages import (
    Failure,
    Opened,
    Record,
    RequestKind,
    ResultKind,
    StreamParams,
    encode,
)

Say = Callable[[ResultKind, bytes], None]

MAX_REQUEST_BYTES = 4_194_304
MAX_WAITING = 8  # requests of one stream behind the one on the way
MIN_RETRY_MS = 50.0
DEFAULT_TURNOVER_MS = 1_000.0  # how long a request takes, before it was measured
_SMOOTHING = 0.2


class RemoteFailure(Exception):
    """A request came to nothing. ``code`` and ``message`` go to the caller, so no text of the remote side may be in them.
    ``details``: for the log only, such as the status and the address that was asked."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        is_retryable: bool = True,
        retry_after_ms: float = 0.0,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.is_retryable = is_retryable
        self.retry_after_ms = retry_after_ms
        self.details: Mapping[str, object] = details or {}

    def to_bytes(self) -> bytes:
        """The payload of a FAILED record."""
        return encode(Failure(self.code, self.message, self.is_retryable, round(self.retry_after_ms)))


class RemoteEngine(Protocol):
    """What talks to the other side. All of it runs on the pool's loop."""

    name: str

    @property
    def skipped(self) -> int:
        """Parts of answers that could not be read and were passed over, since the start."""

    async def open(self) -> None:
        """Make connections possible; returns at once."""

    async def answer(self, request: bytes, say: Say) -> None:
        """Answer one request by ``say``, DONE last; CONSUMED says that the other side is at work. After DONE it may go on, to
        leave its connection tidy. Raises RemoteFailure. A cancel must end the work on the other side too."""

    async def watch(self) -> None:
        """Keep a connection warm and know whether the other side is there. Runs until it is cancelled; may return."""

    def is_up(self) -> bool:
        """False while the other side was not reached at the last attempt."""

    async def close(self) -> None:
        """Idempotent."""


@dataclass(frozen=True, slots=True)
class RemoteHealth:
    """What PoolStats has no place for. Counts are since the start; ``first_ms`` is a moving average."""

    is_up: bool
    asked: int
    failed: int
    cancelled: int
    on_the_way: int
    first_ms: float


class FailureLog:
    """Says ``reply_failed`` once for each cause: again after another cause, or after an answer. ``count``: all failures."""

    __slots__ = ("_on_event", "_told", "count")

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._told: Mapping[str, object] = {}
        self.count = 0

    def failed(self, fields: Mapping[str, object]) -> None:
        self.count += 1
        if fields != self._told:
            self._told = fields
            self._on_event("reply_failed", fields)

    def answered(self) -> None:
        self._told = {}


class _Request:
    __slots__ = ("is_finished", "sent_ms", "seq", "spoke_ms", "stream", "task", "turn")

    def __init__(self, stream: RemoteStream, turn: int, seq: int, sent_ms: float) -> None:
        self.stream = stream
        self.turn = turn
        self.seq = seq
        self.sent_ms = sent_ms
        self.spoke_ms: float | None = None
        self.is_finished = False
        self.task: asyncio.Task[None] | None = None


class RemoteStream:
    """The Stream of an HttpPool."""

    __slots__ = ("_pool", "id", "is_closed", "is_lighter", "owner", "request", "waiting")

    def __init__(self, pool: RemotePool, stream: int, owner: StreamOwner, is_lighter: bool) -> None:
        self._pool = pool
        self.id = stream
        self.owner = owner
        self.is_lighter = is_lighter
        self.is_closed = False
        self.request: _Request | None = None  # on the way; records of one stream keep their order
        self.waiting: deque[tuple[int, int, bytes]] = deque()

    def send(self, kind: RequestKind, turn: int, seq: int, payload: bytes | memoryview = b"") -> bool:
        """See ``voiceserver.pool.Stream``."""
        if self.is_closed:
            return False
        if len(payload) > MAX_REQUEST_BYTES:
            raise ValueError(f"a request has {len(payload)} bytes, at most {MAX_REQUEST_BYTES} can be sent")
        if kind == RequestKind.DATA:
            return self._pool.try_ask(self, turn, seq, bytes(payload))
        if kind == RequestKind.CANCEL:
            self._pool.cancel(self, turn)
        elif kind == RequestKind.CLOSE:
            self.close()
        return True

    def close(self) -> None:
        """See ``voiceserver.pool.Stream``."""
        if not self.is_closed:
            self.is_closed = True
            self._pool.close_stream(self)


class RemotePool(Pool):
    """``remote`` answers the requests of ``stage``. ``on_event(name, fields)``: reply_failed, owner_failed."""

    is_remote = True

    def __init__(
        self,
        *,
        stage: str,
        remote: RemoteEngine,
        max_concurrency: int = 256,
        on_event: OnEvent = ignore_event,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, not {max_concurrency}")
        self.stage = stage
        self.engine = remote.name
        self.remote = remote
        self._max_concurrency = max_concurrency
        self._on_event = never_raising(on_event)
        self._clock_ns = clock_ns
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: set[RemoteStream] = set()
        self._requests: set[_Request] = set()  # on the way
        self._ready: list[tuple[RemoteStream, Record]] = []
        self._is_flush_due = False
        self._queue = PlaceQueue()
        self._wants_room: dict[int, RemoteStream] = {}
        self._is_offer_due = False
        self._next_stream = 1
        self._asked = 0
        self._failures = FailureLog(self._on_event)
        self._cancelled = 0
        self._first_ms = 0.0  # moving average of the time to the first result
        self._turnover_ms = DEFAULT_TURNOVER_MS

    # Pool

    async def start(self) -> None:
        """See ``voiceserver.pool.Pool``."""
        self._loop = asyncio.get_running_loop()
        await self.remote.open()
        self._own(self.remote.watch, f"{self.stage} watch")

    async def stop(self) -> None:
        """Cancel everything that is on the way and close the connections."""
        if self._loop is None or self._is_stopping:
            return
        self._is_stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._streams.clear()
        self._ready.clear()
        await self.remote.close()

    def try_open(
        self, owner: StreamOwner, params: StreamParams, *, key: str = "", is_lighter: bool = False
    ) -> Stream | Refusal:
        """See ``voiceserver.pool.Pool``. A remote side that is down is no reason to refuse: its answer says so at once."""
        if self._loop is None or self._is_stopping:
            return Refusal("no_worker", DEFAULT_TURNOVER_MS, self.stage)
        free = max(self._max_concurrency - len(self._requests) - len(self._wants_room), 0)
        if len(self._requests) >= self._max_concurrency or not self._queue.may_take(owner, free):
            self._queue.wait(owner)
            waiting = len(self._queue) + len(self._wants_room)
            retry_ms = self._turnover_ms * waiting / self._max_concurrency
            return Refusal("full", max(MIN_RETRY_MS, retry_ms), self.stage)
        self._queue.forget(owner)
        stream = RemoteStream(self, self._next_stream, owner, is_lighter)
        self._next_stream += 1
        self._streams.add(stream)
        self._tell(stream, Record(ResultKind.OPENED, stream.id, 0, 0, encode(Opened(self.engine))))
        return stream

    def forget(self, owner: StreamOwner) -> None:
        """``owner`` is leaving: no ``on_room`` for it any more."""
        self._queue.forget(owner)

    def is_ready(self) -> bool:
        """Started, and the other side was reached at the last attempt."""
        return self._loop is not None and not self._is_stopping and self.remote.is_up()

    def back_in_ms(self) -> float | None:
        """See ``Pool``. It has no workers: whoever asks while the other side is down is answered so at once."""
        return None

    def stats(self) -> PoolStats:
        now_ms = self._clock_ns() / 1e6
        silent = [request.sent_ms for request in self._requests if request.spoke_ms is None]
        lag_ms = now_ms - min(silent) if silent else 0.0
        worker = WorkerStats(
            index=0,
            pid=0,
            state="ready" if self.is_ready() else "starting" if self._loop is None else "backoff",
            generation=1,
            streams=len(self._streams),
            queued=len(silent),
            queue_age_ms=lag_ms,
            batches=self._asked,
            items=self._asked,
            service_ms=self._first_ms,
        )
        free = max(0, self._max_concurrency - len(self._requests))
        return PoolStats(
            self.stage,
            self.engine,
            (worker,),
            len(self._streams),
            free,
            lag_ms,
            0,
            1.0,
            skipped=self.remote.skipped,
            remote=RemoteCounts(
                self.remote.is_up(), self._asked, self._failures.count, self._cancelled, self._first_ms
            ),
        )

    def health(self) -> RemoteHealth:
        return RemoteHealth(
            self.remote.is_up(),
            self._asked,
            self._failures.count,
            self._cancelled,
            len(self._requests),
            self._first_ms,
        )

    # For HttpStream

    def try_ask(self, stream: RemoteStream, turn: int, seq: int, payload: bytes) -> bool:
        if stream.request is not None:
            if len(stream.waiting) >= MAX_WAITING:
                self._wants_room[stream.id] = stream
                return False
            stream.waiting.append((turn, seq, payload))
            return True
        if len(self._requests) >= self._max_concurrency or self._is_stopping:
            self._wants_room[stream.id] = stream
            return False
        self._wants_room.pop(stream.id, None)
        request = stream.request = _Request(stream, turn, seq, self._clock_ns() / 1e6)
        self._requests.add(request)
        self._asked += 1
        request.task = self._own(
            partial(self._serve, request, payload), f"{self.stage} request {self._asked}"
        )
        return True

    def cancel(self, stream: RemoteStream, turn: int) -> None:
        stream.waiting = deque(one for one in stream.waiting if one[0] > turn)
        self._ready = [
            one
            for one in self._ready
            if one[0] is not stream or one[1].turn > turn or one[1].kind == ResultKind.OPENED
        ]
        if stream.request is not None and stream.request.turn <= turn:
            self._abandon(stream.request)

    def close_stream(self, stream: RemoteStream) -> None:
        self._streams.discard(stream)
        self._wants_room.pop(stream.id, None)
        stream.waiting.clear()
        if stream.request is not None:
            self._abandon(stream.request)

    # Requests

    async def _serve(self, request: _Request, payload: bytes) -> None:
        try:
            await self.remote.answer(payload, partial(self._say, request))
            if not request.is_finished:
                raise RemoteFailure("engine_failed", "The reply engine ended without an answer.")
            self._failures.answered()
        except RemoteFailure as failure:
            self._fail(request, failure)
        except Exception as error:
            self._report(error)
            self._fail(request, RemoteFailure("engine_failed", "The reply engine failed."))
        finally:
            self._finish(request)

    def _say(self, request: _Request, kind: ResultKind, payload: bytes) -> None:
        if request.is_finished:
            return
        now_ms = self._clock_ns() / 1e6
        if request.spoke_ms is None and kind != ResultKind.CONSUMED:
            request.spoke_ms = now_ms
            took_ms = now_ms - request.sent_ms
            self._first_ms += (took_ms - self._first_ms) * (_SMOOTHING if self._first_ms else 1.0)
        self._tell(request.stream, Record(kind, request.stream.id, request.turn, request.seq, payload))
        if kind in (ResultKind.DONE, ResultKind.FAILED):
            self._turnover_ms += (now_ms - request.sent_ms - self._turnover_ms) * _SMOOTHING
            self._finish(request)

    def _fail(self, request: _Request, failure: RemoteFailure) -> None:
        if request.is_finished:
            return
        self._say(request, ResultKind.FAILED, failure.to_bytes())
        fields = {"stage": self.stage, "engine": self.engine, "code": failure.code, **failure.details}
        self._failures.failed(fields)

    def _abandon(self, request: _Request) -> None:
        """Nobody wants the answer any more."""
        self._cancelled += 1
        self._finish(request)
        if request.task is not None:
            request.task.cancel()

    def _finish(self, request: _Request) -> None:
        """The request is over for its stream; its task may still tidy up."""
        request.is_finished = True
        if request not in self._requests:
            return
        self._requests.discard(request)
        stream = request.stream
        stream.request = None
        if stream.waiting and not stream.is_closed:
            # Its place was just freed, so it is there.
            self.try_ask(stream, *stream.waiting.popleft())
        self._offer_soon()

    # Owners

    def _tell(self, stream: RemoteStream, record: Record) -> None:
        self._ready.append((stream, record))
        if not self._is_flush_due and self._loop is not None:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        ready, self._ready = self._ready, []
        touched: dict[int, StreamOwner] = {}
        for stream, record in ready:
            if not stream.is_closed:
                touched[id(stream.owner)] = stream.owner
                self._call(partial(stream.owner.on_result, self.stage, record))
        for owner in touched.values():
            self._call(owner.on_tick)

    def _offer_soon(self) -> None:
        if (len(self._queue) or self._wants_room) and not self._is_offer_due and self._loop is not None:
            self._is_offer_due = True
            self._loop.call_soon(self._offer)

    def _offer(self) -> None:
        """Call back whoever was told full, one at a time, as long as there is room."""
        self._is_offer_due = False
        left = len(self._wants_room) + len(self._queue)
        while left and len(self._requests) < self._max_concurrency and not self._is_stopping:
            left -= 1
            if self._wants_room:
                owners = [self._wants_room.pop(next(iter(self._wants_room))).owner]
            else:
                owners = list(self._queue.call(1).values())
            for owner in owners:
                self._call(partial(owner.on_room, self.stage))
                self._call(owner.on_tick)
            self._queue.done()

    def _call(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except Exception as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        if self._loop is not None:
            self._loop.call_exception_handler(
                {"message": f"{self.stage}: a callback failed", "exception": error}
            )

    # Inside

    def _own(self, work: Callable[[], Coroutine[object, object, None]], name: str) -> asyncio.Task[None]:
        assert self._loop is not None
        task = self._loop.create_task(self._guard(work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guard(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await work()
            except Exception as error:
                self._report(error)
