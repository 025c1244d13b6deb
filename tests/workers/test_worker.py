"""One worker over a real channel, stepped by hand in this thread."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from voiceserver_workers.batcher import BatchLimits
from voiceserver_workers.engine import Audio, EngineError, EngineInfo, Item, Output, Piece, Stage
from voiceserver_workers.ipc.channel import ChannelConfig, ServerEnd, WorkerEnd
from voiceserver_workers.ipc.messages import CONTROL_STREAM, Record, RequestKind, ResultKind, StreamParams
from voiceserver_workers.worker import OPTIONAL_BURST_MS, OPTIONAL_SHARE, Worker, merge_bytes


class Recorder:
    """Answers each item with what ``answer`` says, and remembers every call."""

    def __init__(self, stage: Stage = "stt", rate_hz: int = 16_000) -> None:
        self.info = EngineInfo("recorder", stage, rate_hz, max_streams=7, options=("voice",))
        self.batches: list[list[Item]] = []
        self.calls: list[tuple[str, int, int]] = []

    def open(self, stream: int, params: StreamParams) -> None:
        if params.options.get("voice") == "nobody":
            raise EngineError("bad_voice", "There is no voice 'nobody'.")
        self.calls.append(("open", stream, 0))

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        self.batches.append(list(batch))
        return [self.answer(item) for item in batch]

    def answer(self, item: Item) -> Output:
        return Output([Piece(ResultKind.TEXT, f"{len(item.audio)}")])

    def cancel(self, stream: int, turn: int) -> None:
        self.calls.append(("cancel", stream, turn))

    def close(self, stream: int) -> None:
        self.calls.append(("close", stream, 0))


class Bench:
    """A worker, the server's end of its channel, and a clock."""

    def __init__(
        self, engine: Recorder, config: ChannelConfig | None = None, max_batch_size: int = 8
    ) -> None:
        self.engine = engine
        self.server = ServerEnd.create(config or ChannelConfig(64, 64, 4096))
        self.end = WorkerEnd.attach(self.server.worker_fds())
        limits = BatchLimits(max_batch_size, 0.0, merge_bytes(engine.info))
        self.worker = Worker(engine, self.end, limits)
        self.now_ms = 1_000.0

    def send(self, kind: RequestKind, stream: int, turn: int = 1, seq: int = 0, payload: bytes = b"") -> None:
        assert self.server.try_send(kind, stream, turn, seq, payload)

    def open(self, *streams: int, rate_hz: int = 16_000) -> None:
        for stream in streams:
            self.send(RequestKind.OPEN, stream, 0, 0, StreamParams(rate_hz=rate_hz).to_bytes())
        self.run()

    def run(self) -> list[Record]:
        """Poll until nothing moves; the results."""
        results = []
        for _ in range(1_000):
            is_busy = self.worker.poll(self.now_ms)
            records = self.server.receive()
            results += records
            if not is_busy and not records:
                return results
        raise AssertionError("the worker never rests")

    def close(self) -> None:
        self.end.close()
        self.server.close()


@pytest.fixture
def benches() -> Iterator[list[Bench]]:
    made: list[Bench] = []
    yield made
    for bench in made:
        bench.close()


def make(benches: list[Bench], engine: Recorder, **options: object) -> Bench:
    bench = Bench(engine, **options)  # type: ignore[arg-type]
    benches.append(bench)
    return bench


def pcm(samples: int, value: int = 1000) -> bytes:
    return np.full(samples, value, "<i2").tobytes()


def seen(results: list[Record]) -> list[tuple[str, int, int, int]]:
    return [(ResultKind(r.kind).name, r.stream, r.turn, r.seq) for r in results]


def test_hello_tells_what_the_pool_must_know(benches: list[Bench]) -> None:
    bench = make(benches, Recorder())
    bench.worker.start()
    (hello,) = bench.run()
    assert (hello.kind, hello.stream) == (ResultKind.OPENED, CONTROL_STREAM)
    told = json.loads(hello.payload)
    assert told == {
        "engine": "recorder",
        "stage": "stt",
        "rate_hz": 16_000,
        "max_streams": 7,
        "options": ["voice"],
        "voices": [],
        "languages": [],
    }


def test_streams_are_batched_and_each_result_carries_the_consumed_position(benches: list[Bench]) -> None:
    bench = make(benches, Recorder())
    bench.open(1, 2)
    bench.send(RequestKind.DATA, 1, 1, 160, pcm(160))
    bench.send(RequestKind.DATA, 2, 3, 320, pcm(320))
    assert seen(bench.run()) == [("TEXT", 1, 1, 160), ("TEXT", 2, 3, 320)]
    (batch,) = bench.engine.batches
    assert [(i.stream, i.end_ms, len(i.audio)) for i in batch] == [(1, 10.0, 160), (2, 20.0, 320)]
    assert batch[0].audio == pytest.approx(np.full(160, 1000 / 32768))


def test_an_item_with_nothing_to_say_is_answered_by_consumed(benches: list[Bench]) -> None:
    class Quiet(Recorder):
        def answer(self, item: Item) -> Output:
            return Output()

    bench = make(benches, Quiet())
    bench.open(1)
    bench.send(RequestKind.DATA, 1, 1, 160, pcm(160))
    assert seen(bench.run()) == [("CONSUMED", 1, 1, 160)]


def test_a_flush_reaches_the_engine_with_the_audio_before_it(benches: list[Bench]) -> None:
    bench = make(benches, Recorder())
    bench.open(1)
    bench.send(RequestKind.DATA, 1, 1, 160, pcm(160))
    bench.send(RequestKind.FLUSH, 1, 1, 160)
    bench.run()
    assert [(len(i.audio), i.is_flush) for batch in bench.engine.batches for i in batch] == [(160, True)]


def test_audio_is_resampled_to_the_engines_rate_and_a_flush_gives_all_of_it(benches: list[Bench]) -> None:
    bench = make(benches, Recorder())
    bench.open(1, rate_hz=8_000)
    for end in range(80, 801, 80):
        bench.send(RequestKind.DATA, 1, 1, end, pcm(80))
        assert bench.run()[-1].seq == end
    bench.send(RequestKind.FLUSH, 1, 1, 800)
    bench.run()
    items = [item for batch in bench.engine.batches for item in batch]
    assert sum(len(item.audio) for item in items) == 1600
    assert items[-1].end_ms == 100.0


def test_odd_bytes_fail_their_item_only(benches: list[Bench]) -> None:
    bench = make(benches, Recorder())
    bench.open(1, 2)
    bench.send(RequestKind.DATA, 1, 1, 160, b"odd")
    bench.send(RequestKind.DATA, 2, 1, 160, pcm(160))
    assert sorted(seen(bench.run())) == [("FAILED", 1, 1, 160), ("TEXT", 2, 1, 160)]


class Picky(Recorder):
    """Raises for stream 2, in a batch and alone."""

    error: Exception = ValueError("secret path /etc")

    def answer(self, item: Item) -> Output:
        if item.stream == 2:
            raise self.error
        return super().answer(item)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (EngineError("bad_text", "No words in it."), "bad_text", "No words in it."),
        (ValueError("secret path /etc"), "engine_failed", "The engine failed on this input."),
    ],
)
def test_only_the_culprit_of_a_batch_fails(
    benches: list[Bench], error: Exception, code: str, message: str
) -> None:
    engine = Picky()
    engine.error = error
    bench = make(benches, engine)
    bench.open(1, 2, 3)
    for stream in (1, 2, 3):
        bench.send(RequestKind.DATA, stream, 1, 160, pcm(160))
    results = bench.run()
    assert seen(results) == [("TEXT", 1, 1, 160), ("FAILED", 2, 1, 160), ("TEXT", 3, 1, 160)]
    assert json.loads(results[1].payload) == {"code": code, "message": message}
    bench.send(RequestKind.DATA, 3, 1, 320, pcm(160))
    assert seen(bench.run()) == [("TEXT", 3, 1, 320)]


def test_outputs_of_the_wrong_length_fail_and_the_worker_goes_on(benches: list[Bench]) -> None:
    class Short(Recorder):
        def step(self, batch: Sequence[Item]) -> Sequence[Output]:
            return [self.answer(item) for item in batch][1:] if batch[0].turn == 1 else super().step(batch)

    bench = make(benches, Short())
    bench.open(1, 2)
    for stream in (1, 2):
        bench.send(RequestKind.DATA, stream, 1, 160, pcm(160))
    assert seen(bench.run()) == [("FAILED", 1, 1, 160), ("FAILED", 2, 1, 160)]
    bench.send(RequestKind.DATA, 1, 2, 320, pcm(160))
    assert seen(bench.run()) == [("TEXT", 1, 2, 320)]


def test_memory_errors_are_not_swallowed(benches: list[Bench]) -> None:
    engine = Picky()
    engine.error = MemoryError()
    bench = make(benches, engine)
    bench.open(1, 2)
    bench.send(RequestKind.DATA, 2, 1, 160, pcm(160))
    with pytest.raises(MemoryError):
        bench.run()


class Teller(Recorder):
    """tts: five steps of 20 ms a sentence."""

    def __init__(self, rate_hz: int = 24_000, pieces: int = 5) -> None:
        super().__init__("tts", rate_hz)
        self.pieces = pieces
        self.left: dict[int, int] = {}

    def answer(self, item: Item) -> Output:
        if not item.is_continued:
            self.left[item.stream] = self.pieces
        self.left[item.stream] -= 1
        audio: Audio = np.full(self.info.rate_hz // 50, 0.5, np.float32)
        return Output([Piece(ResultKind.AUDIO, audio)], more=self.left[item.stream] > 0)


def test_a_sentence_is_stepped_to_its_end_between_those_of_others(benches: list[Bench]) -> None:
    bench = make(benches, Teller())
    bench.open(1, 2, rate_hz=24_000)
    bench.send(RequestKind.DATA, 1, 1, 1, b"one")
    bench.send(RequestKind.DATA, 1, 1, 2, b"two")
    bench.send(RequestKind.DATA, 2, 1, 1, b"other")
    results = bench.run()
    of_first = [(kind, seq) for kind, stream, _, seq in seen(results) if stream == 1]
    assert of_first == [("AUDIO", 1)] * 5 + [("DONE", 1)] + [("AUDIO", 2)] * 5 + [("DONE", 2)]
    assert all(len(batch) == 2 for batch in bench.engine.batches[:5])
    assert bench.engine.batches[0][0].text == "one"
    assert len(results[0].payload) == 960
    assert np.frombuffer(results[0].payload, "<i2") == pytest.approx(16384)


def test_speech_is_resampled_to_the_callers_rate_with_its_tail_before_done(benches: list[Bench]) -> None:
    bench = make(benches, Teller(rate_hz=22_050))
    bench.open(1, rate_hz=8_000)
    bench.send(RequestKind.DATA, 1, 1, 1, b"one")
    results = bench.run()
    assert ResultKind(results[-1].kind) is ResultKind.DONE
    samples = sum(len(r.payload) for r in results if r.kind == ResultKind.AUDIO) // 2
    assert samples == pytest.approx(800, abs=1)


def test_cancel_stops_a_sentence_and_drops_what_is_queued(benches: list[Bench]) -> None:
    bench = make(benches, Teller(pieces=1_000))
    bench.open(1, rate_hz=24_000)
    bench.send(RequestKind.DATA, 1, 1, 1, b"one")
    bench.send(RequestKind.DATA, 1, 1, 2, b"two")
    for _ in range(3):
        bench.worker.poll(bench.now_ms)
    bench.server.receive()
    bench.send(RequestKind.CANCEL, 1, 1)
    bench.send(RequestKind.DATA, 1, 1, 3, b"too late")
    assert seen(bench.run()) == []
    assert ("cancel", 1, 1) in bench.engine.calls
    bench.engine.pieces = 1  # type: ignore[attr-defined]
    bench.send(RequestKind.DATA, 1, 2, 4, b"three")
    assert seen(bench.run()) == [("AUDIO", 1, 2, 4), ("DONE", 1, 2, 4)]


def test_cancel_also_drops_results_that_found_the_ring_full(benches: list[Bench]) -> None:
    bench = make(benches, Teller(pieces=100), config=ChannelConfig(64, 4, 4096))
    bench.open(1, rate_hz=24_000)
    bench.send(RequestKind.DATA, 1, 1, 1, b"one")
    while bench.worker.poll(bench.now_ms):
        pass
    assert bench.worker.is_blocked()
    assert bench.server.receive()
    bench.send(RequestKind.CANCEL, 1, 1)
    after = bench.run()
    assert len(after) <= 2, "at most what was published before the cancel was read"


def test_a_full_result_ring_stops_the_worker_and_loses_nothing(benches: list[Bench]) -> None:
    bench = make(benches, Teller(pieces=20), config=ChannelConfig(64, 4, 4096))
    bench.open(1, rate_hz=24_000)
    bench.send(RequestKind.DATA, 1, 1, 1, b"one")
    while bench.worker.poll(bench.now_ms):
        pass
    assert bench.worker.is_blocked()
    steps = len(bench.engine.batches)
    bench.send(RequestKind.DATA, 1, 1, 2, b"two")
    bench.worker.poll(bench.now_ms)
    assert (len(bench.engine.batches), bench.server.queued()) == (steps, 1)
    kinds = [kind for kind, *_ in seen(bench.run())]
    assert kinds == (["AUDIO"] * 20 + ["DONE"]) * 2


def test_a_refused_stream_says_so_for_every_turn_and_the_others_live(benches: list[Bench]) -> None:
    bench = make(benches, Recorder())
    params = StreamParams(options={"voice": "nobody"}).to_bytes()
    bench.send(RequestKind.OPEN, 1, 0, 0, params)
    (failed,) = bench.run()
    assert json.loads(failed.payload) == {"code": "bad_voice", "message": "There is no voice 'nobody'."}
    bench.send(RequestKind.DATA, 1, 4, 160, pcm(160))
    assert seen(bench.run()) == [("FAILED", 1, 4, 160)]
    assert bench.engine.batches == []


def test_requests_for_unknown_streams_are_ignored(benches: list[Bench]) -> None:
    bench = make(benches, Recorder())
    for kind in (RequestKind.DATA, RequestKind.FLUSH, RequestKind.CANCEL, RequestKind.CLOSE):
        bench.send(kind, 99, 1, 160)
    assert bench.run() == []


def test_close_frees_the_stream_in_the_engine_and_stop_frees_all(benches: list[Bench]) -> None:
    bench = make(benches, Recorder())
    bench.open(1, 2)
    bench.send(RequestKind.CLOSE, 1)
    bench.run()
    assert [call for call in bench.engine.calls if call[0] == "close"] == [("close", 1, 0)]
    bench.send(RequestKind.CLOSE, CONTROL_STREAM)
    bench.run()
    assert bench.worker.is_stopping
    bench.worker.stop()
    assert ("close", 2, 0) in bench.engine.calls


def test_the_flight_recorder_names_the_batch_while_it_runs(benches: list[Bench]) -> None:
    class Looker(Recorder):
        def step(self, batch: Sequence[Item]) -> Sequence[Output]:
            self.flight = bench.server.flight()
            return super().step(batch)

    engine = Looker()
    bench = make(benches, engine)
    bench.open(1, 2)
    for stream in (1, 2):
        bench.send(RequestKind.DATA, stream, 1, 160, pcm(160))
    bench.run()
    assert engine.flight.streams == (1, 2)
    assert engine.flight.deadline_ns == int((bench.now_ms + 5_000) * 1e6)
    assert bench.server.flight().streams == ()


def test_a_backlog_is_taken_as_one_item(benches: list[Bench]) -> None:
    bench = make(benches, Recorder())
    bench.open(1)
    for end in range(160, 1601, 160):
        bench.send(RequestKind.DATA, 1, 1, end, pcm(160))
    assert seen(bench.run()) == [("TEXT", 1, 1, 1600)]


def test_the_batch_window_can_be_changed_while_it_runs(benches: list[Bench]) -> None:
    bench = make(benches, Recorder())
    bench.open(1, 2)
    bench.send(RequestKind.DATA, CONTROL_STREAM, 0, 0, b'{"max_wait_ms": 20.0}')
    bench.send(RequestKind.DATA, 1, 1, 160, pcm(160))
    assert bench.run() == []
    assert bench.worker.due_ms() == bench.now_ms + 20.0
    bench.now_ms += 20.0
    assert seen(bench.run()) == [("TEXT", 1, 1, 160)]


def test_a_stream_whose_partials_nobody_reads_is_worked_for_its_final_transcript_only(
    benches: list[Bench],
) -> None:
    bench = make(benches, Recorder())
    bench.send(RequestKind.OPEN, 1, payload=StreamParams().to_bytes())
    bench.send(RequestKind.OPEN, 2, payload=StreamParams(is_final_only=True).to_bytes())
    for stream in (1, 2):
        bench.send(RequestKind.DATA, stream, seq=160, payload=bytes(320))
    bench.run()
    # The hint overtakes the audio before it: it is about work that is still to do.
    bench.send(RequestKind.DATA, 1, seq=320, payload=bytes(320))
    bench.send(RequestKind.FINAL_ONLY, 1, seq=320)
    bench.send(RequestKind.FINAL_ONLY, 7)  # nobody's
    bench.run()
    asked = [(item.stream, item.is_final_only) for batch in bench.engine.batches for item in batch]
    assert asked == [(1, False), (2, True), (1, True)]


def test_partials_of_all_streams_together_have_a_share_of_the_time_and_no_more(benches: list[Bench]) -> None:
    class Partials(Recorder):
        """Takes 40 ms for a partial of each item that may have one."""

        def step(self, batch: Sequence[Item]) -> list[Output]:
            outputs = list(super().step(batch))
            wanted = [not item.is_final_only for item in batch]
            bench.now_ms += 40.0 * sum(wanted)
            for output in outputs:
                output.is_optional = any(wanted)
            return outputs

    bench = make(benches, Partials())
    bench.worker = Worker(bench.engine, bench.end, BatchLimits(1, 0.0, 0), clock_ms=lambda: bench.now_ms)
    bench.open(1, 2, 3, 4)
    began_ms = bench.now_ms
    for seq in range(160, 160 * 200, 160):
        for stream in (1, 2, 3, 4):
            bench.send(RequestKind.DATA, stream, seq=seq, payload=bytes(320))
        bench.run()
        bench.now_ms += 100.0
    assert bench.server.flight().items == 4 + 4 * 199, "opened, and each chunk stepped"
    asked = [item.is_final_only for batch in bench.engine.batches for item in batch]
    partial_ms = 40.0 * asked.count(False)
    allowed_ms = OPTIONAL_SHARE * (bench.now_ms - began_ms) + OPTIONAL_BURST_MS + 40.0
    assert 0.9 * allowed_ms - OPTIONAL_BURST_MS < partial_ms <= allowed_ms
