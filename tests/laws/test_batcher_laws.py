"""Laws of the batcher over random schedules of put, take, cancel and continue."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from voiceserver_workers.batcher import Batcher, BatchLimits, Work

STREAMS = st.integers(1, 6)
REST_MS = 5.0
LIMITS = st.builds(
    BatchLimits,
    max_batch_size=st.integers(1, 4),
    max_wait_ms=st.sampled_from([0.0, 1.0, 5.0]),
    merge_bytes=st.sampled_from([0, 8, 64]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), STREAMS, st.integers(1, 5), st.booleans()),
        st.tuples(st.just("take"), st.floats(0.0, 10.0), st.sampled_from(["", "more", "rest"])),
        st.tuples(st.just("cancel"), STREAMS),
        st.tuples(st.just("close"), STREAMS),
    ),
    max_size=60,
)


class Model:
    """What was put in and must come out: per stream, the positions in order."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self.batcher = Batcher(limits)
        self.now_ms = 0.0
        self.position: dict[int, int] = defaultdict(int)
        self.turn: dict[int, int] = defaultdict(lambda: 1)
        self.queued: dict[int, list[Work]] = defaultdict(list)
        self.resting: dict[int, float] = defaultdict(float)  # until when
        self.waits: dict[int, int] = defaultdict(int)  # batches that left without a stream that had work
        for stream in range(1, 7):
            self.batcher.open(stream)

    def put(self, stream: int, samples: int, is_flush: bool) -> None:
        self.position[stream] += samples
        end = self.position[stream]
        payload = bytes(2 * samples) if not is_flush else b""
        if is_flush:
            end = self.position[stream] = end - samples
        work = Work(stream, self.turn[stream], end, payload, is_flush)
        self.queued[stream].append(work)
        self.batcher.put(work, self.now_ms)

    def take(self, more: str) -> None:
        batch = self.batcher.take(self.now_ms)
        assert len(batch) <= self.limits.max_batch_size
        streams = [work.stream for work in batch]
        assert len(set(streams)) == len(streams), "two items of one stream in a batch"
        if batch:
            self._check_starvation(streams)
        for work in batch:
            assert self.now_ms >= self.resting[work.stream], "stepped before its time"
            self._check_order(work)
        for work in batch[:1] if more else []:
            if not work.is_continued:
                rest_ms = REST_MS if more == "rest" else 0.0
                self.resting[work.stream] = self.now_ms + rest_ms
                self.batcher.put_continued(work, self.now_ms, rest_ms)
                self.queued[work.stream].insert(0, Work(*work[:3], b"", work.is_flush, True))

    def _check_order(self, work: Work) -> None:
        expected = self.queued[work.stream]
        first = expected.pop(0)
        payload = first.payload
        while first.seq != work.seq or payload != work.payload or first.is_flush != work.is_flush:
            following = expected.pop(0)
            assert following.turn == first.turn, "merged over turns"
            assert not first.is_flush, "merged over a flush"
            payload += following.payload
            first = following
        assert first.turn == work.turn
        assert len(work.payload) <= max(self.limits.merge_bytes, len(first.payload))

    def _check_starvation(self, streams: list[int]) -> None:
        for stream, queue in self.queued.items():
            waits = queue and stream not in streams and self.now_ms > self.resting[stream]
            self.waits[stream] = self.waits[stream] + 1 if waits else 0
            # Six streams: at most five others go first, one batch each in the worst case.
            assert self.waits[stream] <= 5, f"stream {stream} starves"

    def cancel(self, stream: int) -> None:
        turn = self.turn[stream]
        self.batcher.cancel(stream, turn)
        self.queued[stream] = [work for work in self.queued[stream] if work.turn > turn]
        self.turn[stream] += 1
        self.resting[stream] = 0.0

    def close(self, stream: int) -> None:
        self.batcher.close(stream)
        self.queued[stream] = []
        self.resting[stream] = 0.0
        self.batcher.open(stream)

    def drain(self) -> None:
        for _ in range(1000):
            due_ms = self.batcher.due_ms()
            if due_ms is None:
                break
            longest_ms = max(self.limits.max_wait_ms, REST_MS)
            assert due_ms <= self.now_ms + longest_ms, "waits longer than max_wait_ms"
            self.now_ms = max(self.now_ms, due_ms)
            self.take("")
        assert not any(self.queued.values()), "work was lost"
        assert self.batcher.pending == 0


@settings(max_examples=300, deadline=None)
@given(limits=LIMITS, steps=STEPS)
def test_order_is_kept_nothing_is_lost_and_nobody_starves(
    limits: BatchLimits, steps: list[tuple[object, ...]]
) -> None:
    model = Model(limits)
    for name, *arguments in steps:
        if name == "take":
            model.now_ms += arguments[0]  # type: ignore[operator]
            model.take(arguments[1])  # type: ignore[arg-type]
        else:
            getattr(model, str(name))(*arguments)
        assert model.batcher.pending == sum(len(queue) for queue in model.queued.values())
    model.drain()


@settings(max_examples=100, deadline=None)
@given(limits=LIMITS, arrivals=st.lists(st.tuples(STREAMS, st.floats(0.0, 3.0)), min_size=1, max_size=30))
def test_no_item_waits_longer_than_the_limit_while_batches_have_room(
    limits: BatchLimits, arrivals: list[tuple[int, float]]
) -> None:
    batcher = Batcher(BatchLimits(64, limits.max_wait_ms))
    for stream in range(1, 7):
        batcher.open(stream)
    arrived: dict[tuple[int, int], float] = {}
    now_ms = 0.0

    def serve(until_ms: float) -> None:
        while (due_ms := batcher.due_ms()) is not None and due_ms <= until_ms:
            batch = batcher.take(due_ms)
            assert batch
            for work in batch:
                first_of_stream = min(s for st_, s in arrived if st_ == work.stream)
                assert work.seq == first_of_stream
                assert due_ms - arrived.pop((work.stream, work.seq)) <= limits.max_wait_ms + 1e-9

    for seq, (stream, gap_ms) in enumerate(arrivals):
        now_ms += gap_ms
        serve(now_ms)
        arrived[stream, seq] = now_ms
        batcher.put(Work(stream, 1, seq, b"x"), now_ms)
    serve(now_ms + 1000.0)
    assert not arrived
