"""Which items go into the next batch, and when. Pure: no clock, no engine, no process.

Rules, kept by ``tests/laws/test_batcher_laws.py``:

- At most one item per stream in a batch, in the order in which the stream's work came.
- First come, first served over streams: a stream that still has work goes to the back, so nobody starves.
- A batch leaves when it is full, when every open stream is in it (nothing else could arrive), or ``max_wait_ms``
  after its first item came. Continued work, flushes and what an earlier batch left behind do not wait at all.
- Adjacent audio of one stream is taken as one item up to ``merge_bytes``, so that a backlog catches up.
- Work that rests, because its engine waits for somebody else, is in no batch before its time, and neither is what its stream
  has behind it.
- A stream on trial goes alone: if the worker dies then, it is known who did it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

SAMPLE_BYTES = 2


class Work(NamedTuple):
    """One piece of a stream's queue. ``payload``: PCM16 audio (``seq`` is the position of its end in samples) or text."""

    stream: int
    turn: int
    seq: int
    payload: bytes = b""
    is_flush: bool = False
    is_continued: bool = False
    is_pause: bool = False

    @property
    def is_end(self) -> bool:
        """Nothing is merged behind it, and it does not wait for company."""
        return self.is_flush or self.is_pause


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """``merge_bytes`` 0: never merge (text stages). Raises ValueError for sizes that cannot work."""

    max_batch_size: int = 64
    max_wait_ms: float = 0.0
    merge_bytes: int = 0

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, not {self.max_batch_size}")
        if self.max_wait_ms < 0 or self.merge_bytes < 0:
            raise ValueError("max_wait_ms and merge_bytes cannot be negative")


class Batcher:
    """Queues per stream, and the order in which streams are served."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self._queues: OrderedDict[int, deque[Work]] = OrderedDict()  # streams with work, next one first
        self._resting: dict[int, tuple[float, deque[Work]]] = {}  # when they have work again, and which
        self._open: set[int] = set()
        self._on_trial: dict[int, int] = {}
        self._due_ms: float | None = None
        self._pending = 0

    def open(self, stream: int, *, trial_items: int = 0) -> None:
        """Count ``stream`` among those that may still bring work. Its first ``trial_items`` items are batched alone."""
        self._open.add(stream)
        if trial_items > 0:
            self._on_trial[stream] = trial_items

    def close(self, stream: int) -> None:
        """Forget the stream and its work. Unknown streams are ignored."""
        self._open.discard(stream)
        self._on_trial.pop(stream, None)
        rest = self._resting.pop(stream, None)
        queue = self._queues.pop(stream, None) if rest is None else rest[1]
        if queue is not None:
            self._pending -= len(queue)

    def put(self, work: Work, now_ms: float) -> None:
        """Queue ``work`` behind everything its stream already has."""
        # hot
        queue = self._queues.get(work.stream)
        if queue is None and work.stream in self._resting:
            self._resting[work.stream][1].append(work)
            self._pending += 1
            return
        if queue is None:
            self._queues[work.stream] = deque((work,))
        else:
            queue.append(work)
        self._pending += 1
        self._be_due(now_ms if work.is_flush or work.is_pause else now_ms + self.limits.max_wait_ms)

    def put_continued(self, work: Work, now_ms: float, rest_ms: float = 0.0) -> None:
        """The engine wants another step for what it got as ``work``: before the stream's next work, behind other streams.

        rest_ms: not before then."""
        queue = self._queues.get(work.stream)
        if queue is None:
            queue = self._queues[work.stream] = deque()
        queue.appendleft(Work(work.stream, work.turn, work.seq, b"", work.is_flush, True, work.is_pause))
        self._pending += 1
        if rest_ms > 0.0:
            self._resting[work.stream] = now_ms + rest_ms, self._queues.pop(work.stream)
        else:
            self._be_due(now_ms)

    def cancel(self, stream: int, turn: int) -> int:
        """Drop the stream's queued work of ``turn`` and older. Returns how many pieces went."""
        rest = self._resting.pop(stream, None)
        queue = self._queues.get(stream) if rest is None else rest[1]
        if queue is None:
            return 0
        kept = deque(work for work in queue if work.turn > turn)
        dropped = len(queue) - len(kept)
        self._pending -= dropped
        if rest is not None:
            if kept:  # whatever it is, it may be stepped at once
                self._queues[stream] = kept
                self._be_due(0.0)
        elif kept:
            self._queues[stream] = kept
        else:
            del self._queues[stream]
        return dropped

    @property
    def pending(self) -> int:
        """Pieces of work queued, before merging."""
        return self._pending

    def due_ms(self) -> float | None:
        """When ``take`` gives a batch even if nothing more arrives; ``None`` with nothing queued."""
        due_ms = self._due_ms if self._queues else None
        if not self._resting:
            return due_ms
        rested_ms = min(until_ms for until_ms, _ in self._resting.values())
        return rested_ms if due_ms is None else min(due_ms, rested_ms)

    def take(self, now_ms: float) -> list[Work]:  # hot
        """The next batch; empty while it is worth waiting, or with nothing queued."""
        if self._resting:
            self._wake(now_ms)
        if not self._queues:
            self._due_ms = None
            return []
        if now_ms < (self._due_ms or 0.0) and len(self._queues) < self._enough():
            return []
        batch: list[Work] = []
        left: list[tuple[int, deque[Work]]] = []
        queues, on_trial, most = self._queues, self._on_trial, self.limits.max_batch_size
        while queues and len(batch) < most:
            stream, queue = queues.popitem(last=False)
            is_on_trial = stream in on_trial
            if is_on_trial and batch:
                queues[stream] = queue
                queues.move_to_end(stream, last=False)
                break
            if len(queue) == 1:
                self._pending -= 1
                batch.append(queue[0])
            else:
                batch.append(self._take_merged(queue))
                if queue:
                    left.append((stream, queue))
            if is_on_trial:
                self._count_trial(stream)
                break
        self._queues.update(left)
        # Whatever stays has already seen a batch leave without it.
        self._due_ms = now_ms if self._queues else None
        return batch

    def _wake(self, now_ms: float) -> None:
        for stream, (until_ms, queue) in list(self._resting.items()):
            if until_ms <= now_ms:
                del self._resting[stream]
                self._queues[stream] = queue
                self._due_ms = now_ms

    def _enough(self) -> int:
        return max(1, min(self.limits.max_batch_size, len(self._open) - len(self._resting)))

    def _be_due(self, due_ms: float) -> None:
        if self._due_ms is None or due_ms < self._due_ms or self._pending == 1:
            self._due_ms = due_ms

    def _count_trial(self, stream: int) -> None:
        self._on_trial[stream] -= 1
        if not self._on_trial[stream]:
            del self._on_trial[stream]

    def _take_merged(self, queue: deque[Work]) -> Work:
        first = queue.popleft()
        self._pending -= 1
        limit = self.limits.merge_bytes
        if not limit or not queue or first.is_continued or first.is_end:
            return first
        payloads = [first.payload]
        last = first
        for work in _adjacent(first, queue, limit):
            payloads.append(work.payload)
            last = work
        if last is first:
            return first
        self._pending -= len(payloads) - 1
        return Work(
            first.stream, first.turn, last.seq, b"".join(payloads), last.is_flush, False, last.is_pause
        )


def _adjacent(first: Work, queue: deque[Work], limit: int) -> Iterator[Work]:
    """Pop from ``queue`` what continues ``first`` without a gap, a change of turn or too many bytes."""
    last, size = first, len(first.payload)
    while queue and not last.is_end:
        work = queue[0]
        size += len(work.payload)
        is_gapless = work.seq - len(work.payload) // SAMPLE_BYTES == last.seq
        if work.turn != last.turn or work.is_continued or not is_gapless or size > limit:
            return
        yield queue.popleft()
        last = work
