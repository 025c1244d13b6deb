"""Places of a stage are given in the order of asking, whatever comes between."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.config.schema import StageConfig
from voiceserver.errors import Refusal
from voiceserver.pool import LossReason, Stream
from voiceserver.pool.inline import InlinePool
from voiceserver.pool.place_queue import PlaceQueue
from voiceserver.testing import engines as broken_engines
from voiceserver_workers.batcher import BatchLimits
from voiceserver_workers.engine import EngineInfo, Item, Output, Piece
from voiceserver_workers.ipc.channel import WorkerEnd
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind, StreamParams
from voiceserver_workers.worker import Worker

PARAMS = StreamParams()
PLACES = 2


class Caller:
    """Asks for a place at once when it is called, as sessions do, as long as it wants one."""

    def __init__(self, pool: InlinePool, served: list[Caller]) -> None:
        self.pool = pool
        self.served = served
        self.stream: Stream | None = None
        self.wants = False
        self.is_called = False

    def ask(self) -> bool:
        self.wants = True
        got = self.pool.try_open(self, PARAMS)
        if isinstance(got, Refusal):
            return False
        self.stream, self.wants = got, False
        self.served.append(self)
        return True

    def leave(self) -> None:
        assert self.stream is not None
        stream, self.stream = self.stream, None
        stream.close()

    def on_result(self, stage: str, record: Record) -> None: ...

    def on_stream_lost(self, stage: str, reason: LossReason) -> None: ...

    def on_room(self, stage: str) -> None:
        self.is_called = True

    def on_tick(self) -> None:
        if self.is_called and self.wants and self.stream is None:
            self.ask()
        self.is_called = False


def worker_of(max_streams: int) -> Callable[[WorkerEnd], Worker]:
    def make(end: WorkerEnd) -> Worker:
        return Worker(broken_engines.Obedient({"max_streams": max_streams}), end, BatchLimits(8))

    return make


class Bench:
    def __init__(self) -> None:
        self.pool = InlinePool("reply", worker_of(PLACES))
        self.pool.now_ms = self.now_ms = 1_000.0
        self.pool.start_workers()
        self.settle()
        self.served: list[Caller] = []

    def settle(self) -> None:
        for _ in range(20):
            self.now_ms += 10.0
            self.pool.step(self.now_ms)

    def caller(self) -> Caller:
        return Caller(self.pool, self.served)


def full() -> tuple[Bench, list[Caller]]:
    bench = Bench()
    inside = [bench.caller() for _ in range(PLACES)]
    assert all(one.ask() for one in inside)
    return bench, inside


def test_a_newcomer_in_the_tick_in_which_a_place_became_free_waits_behind_the_others() -> None:
    bench, inside = full()
    waiting = [bench.caller() for _ in range(3)]
    assert not any(one.ask() for one in waiting)
    inside[0].leave()
    newcomer = bench.caller()
    assert not newcomer.ask()
    assert not waiting[2].ask(), "asking again is no way past the others"
    bench.settle()
    assert bench.served[PLACES:] == waiting[:1]
    for one in (inside[1], waiting[0]):
        one.leave()
        bench.settle()
    assert bench.served[PLACES:] == waiting
    waiting[1].leave()
    bench.settle()
    assert bench.served[-1] is newcomer


def test_more_places_than_people_who_wait_are_for_anybody() -> None:
    bench, inside = full()
    first = bench.caller()
    assert not first.ask()
    for one in inside:
        one.leave()
    assert bench.caller().ask()
    bench.settle()
    assert first.stream is not None


def test_who_has_lost_interest_or_has_left_is_passed_over() -> None:
    bench, inside = full()
    bored, gone, third = (bench.caller() for _ in range(3))
    assert not any(one.ask() for one in (bored, gone, third))
    bored.wants = False
    bench.pool.forget(gone)
    inside[0].leave()
    bench.settle()
    assert third.stream is not None


@given(st.lists(st.integers(min_value=0, max_value=6), max_size=60))
def test_all_are_served_in_the_order_in_which_they_first_asked(moves: list[int]) -> None:
    """0: somebody new asks; 1 to 3: one who waits asks again; 4 and 5: one leaves; 6: time passes."""
    bench = Bench()
    asked: list[Caller] = []
    for move in moves:
        waiting = [one for one in asked if one.wants]
        inside = [one for one in asked if one.stream is not None]
        if move == 0:
            asked.append(bench.caller())
            asked[-1].ask()
        elif move <= 3 and len(waiting) >= move:
            waiting[-move].ask()
        elif move in (4, 5) and inside:
            inside[4 - move].leave()
        elif move == 6:
            bench.settle()
    while any(one.wants for one in asked):
        next(one for one in asked if one.stream is not None).leave()
        bench.settle()
    order = {id(one): index for index, one in enumerate(asked)}
    assert [order[id(one)] for one in bench.served] == list(range(len(asked)))


@pytest.mark.parametrize("asks_again", [True, False])
def test_who_was_called_in_vain_keeps_its_turn(asks_again: bool) -> None:
    bench = Bench()
    queue = PlaceQueue()
    first, second = bench.caller(), bench.caller()
    for one in (first, second):
        queue.wait(one)
    assert list(queue.call(1).values()) == [first]
    assert queue.may_take(first, 0)
    if asks_again:
        queue.wait(first)
    queue.done()
    assert list(queue.call(1).values()) == [first if asks_again else second]


class Speaker:
    """Has turns of ``turn_ms`` of audio, all waiting at once, and hears each of them for as long as it is."""

    def __init__(self, turn_ms: float, *, is_live: bool, turns: int, comes_ms: float = 0.0) -> None:
        self.turn_ms = turn_ms
        self.is_live = is_live
        self.left = turns
        self.comes_ms = comes_ms
        self.heard_ms = 0.0
        self.first_ms: float | None = None

    def on_result(self, stage: str, record: Record) -> None: ...

    def on_stream_lost(self, stage: str, reason: LossReason) -> None: ...

    def on_room(self, stage: str) -> None: ...

    def on_tick(self) -> None: ...


def hear(speakers: list[Speaker], places: int, until_ms: float) -> list[Speaker]:
    """Serve the turns of all, on a clock on which a place hears audio as fast as it was spoken. Returns who was served, turn by
    turn."""
    queue, now_ms = PlaceQueue(), 0.0
    busy: list[tuple[float, int, Speaker]] = []
    served: list[Speaker] = []
    coming = sorted(speakers, key=lambda one: one.comes_ms)
    waiting: list[Speaker] = []

    def take(one: Speaker) -> None:
        queue.admit(one, is_live=one.is_live)
        waiting.remove(one) if one in waiting else None
        one.first_ms = now_ms if one.first_ms is None else one.first_ms
        served.append(one)
        busy.append((now_ms + one.turn_ms, len(served), one))

    def fill() -> None:
        while waiting and len(busy) < places:
            called = list(queue.call(places - len(busy)).values())
            for one in waiting[:]:
                if one in called and queue.may_take(one, places - len(busy), is_live=one.is_live):
                    take(one)
            queue.done()

    while now_ms < until_ms and (busy or coming or waiting):
        while coming and coming[0].comes_ms <= now_ms:
            one = coming.pop(0)
            if len(busy) < places and queue.may_take(one, places - len(busy), is_live=one.is_live):
                take(one)
            else:
                queue.wait(one, is_live=one.is_live)
                waiting.append(one)
        fill()
        times = [min(busy)[0]] if busy else []
        now_ms = min([*times, *(one.comes_ms for one in coming[:1])])
        for end in [one for one in sorted(busy) if one[0] <= now_ms]:
            busy.remove(end)
            one = end[2]
            one.heard_ms += one.turn_ms
            one.left -= 1
            gives_up = queue.is_before(one, len(busy) + 1, is_live=one.is_live, heard_ms=one.turn_ms)
            if not one.left:
                queue.forget(one)
            elif gives_up:
                queue.wait(one, is_live=one.is_live)
                waiting.append(one)
            else:
                take(one)
    return served


lengths = st.sampled_from([300.0, 1_000.0, 2_500.0, 7_000.0, 20_000.0])


@given(st.lists(lengths, min_size=2, max_size=6), st.integers(1, 3), st.booleans())
def test_places_are_given_fairly_in_audio_time(turns_ms: list[float], places: int, is_live: bool) -> None:
    """Whoever has something to say all the time has had as much as the others, to within a few turns, however long it takes."""
    speakers = [Speaker(turn_ms, is_live=is_live, turns=10_000) for turn_ms in turns_ms]
    hear(speakers, places, 400_000.0)
    if places < len(speakers):
        heard = [one.heard_ms for one in speakers]
        assert max(heard) - min(heard) <= 4 * max(turns_ms)


@given(st.lists(lengths, min_size=1, max_size=5), st.integers(1, 3), lengths, st.integers(0, 60))
def test_a_live_speaker_waits_for_the_end_of_one_turn_of_a_recording(
    turns_ms: list[float], places: int, own_ms: float, comes_s: int
) -> None:
    recordings = [Speaker(turn_ms, is_live=False, turns=10_000) for turn_ms in turns_ms]
    speaker = Speaker(own_ms, is_live=True, turns=3, comes_ms=comes_s * 1_000.0)
    hear([*recordings, speaker], places, 200_000.0)
    assert speaker.first_ms is not None
    assert speaker.first_ms - speaker.comes_ms <= max(turns_ms)
    # And goes on without interruption: it is not asked to give its place to a recording.
    assert speaker.heard_ms == 3 * own_ms


@given(lengths, st.integers(1, 8), st.integers(20, 60))
def test_those_who_keep_coming_do_not_keep_out_who_was_here_before(
    turn_ms: float, turns: int, newcomers: int
) -> None:
    first = Speaker(turn_ms, is_live=False, turns=turns)
    others = [Speaker(1_000.0, is_live=False, turns=1, comes_ms=500.0 * at) for at in range(4 * newcomers)]
    served = hear([first, *others], 1, math.inf)
    assert first.left == 0
    # For each ms that it was heard, the others had a bounded time.
    last = max(at for at, one in enumerate(served) if one is first)
    assert last <= 4 * newcomers + turns - 1
    if turns == 1:
        assert served[0] is first


@given(
    st.lists(st.tuples(st.booleans(), lengths, st.integers(1, 4), st.integers(0, 30)), min_size=1, max_size=8)
)
def test_everybody_is_heard_to_the_end_and_nothing_is_kept_of_them(
    speakers: list[tuple[bool, float, int, int]],
) -> None:
    made = [
        Speaker(turn_ms, is_live=is_live, turns=turns, comes_ms=comes_s * 1_000.0)
        for is_live, turn_ms, turns, comes_s in speakers
    ]
    hear(made, 2, math.inf)
    assert all(one.left == 0 for one in made)


def test_a_recording_gives_its_place_back_at_the_end_of_a_turn_and_gets_it_again() -> None:
    """With a real pool: the stream is closed when the turn's last word is told, and opened anew behind those who waited."""
    pool = InlinePool("stt", lambda end: Worker(Deaf(), end, BatchLimits(8)), STT)
    pool.now_ms = now_ms = 1_000.0
    pool.start_workers()

    def settle() -> None:
        nonlocal now_ms
        for _ in range(20):
            now_ms += 10.0
            pool.step(now_ms)

    settle()
    recording, live = Hearer(pool, StreamParams(is_live=False)), Hearer(pool, StreamParams())
    recording.ask()
    settle()
    assert recording.stream is not None
    recording.stream.send(RequestKind.DATA, 1, 16_000, bytes(640))
    recording.stream.send(RequestKind.FLUSH, 1, 16_000)
    live.ask()
    assert live.stream is None
    settle()
    assert live.stream is not None
    assert (recording.lost, recording.finals, recording.stream) == (["moved"], 1, None)
    live.stream.close()
    settle()
    assert recording.stream is not None
    # Nobody waits: it keeps the place from turn to turn.
    recording.stream.send(RequestKind.DATA, 2, 32_000, bytes(640))
    recording.stream.send(RequestKind.FLUSH, 2, 32_000)
    settle()
    assert (recording.lost, recording.finals) == (["moved"], 2)
    assert recording.stream is not None


STT = StageConfig(engine="inline", streams_per_worker=1, request_slots=64, result_slots=128)


class Deaf:
    """Answers each turn with a word."""

    info = EngineInfo("deaf", "stt", rate_hz=16_000)

    def open(self, stream: int, params: StreamParams) -> None: ...

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        return [Output([Piece(ResultKind.FINAL, "word")] if item.is_flush else []) for item in batch]

    def cancel(self, stream: int, turn: int) -> None: ...

    def close(self, stream: int) -> None: ...


class Hearer:
    """A caller of a recogniser, who asks for its place again when it loses it."""

    def __init__(self, pool: InlinePool, params: StreamParams) -> None:
        self.pool = pool
        self.params = params
        self.stream: Stream | None = None
        self.finals = 0
        self.lost: list[str] = []

    def ask(self) -> None:
        got = self.pool.try_open(self, self.params)
        self.stream = None if isinstance(got, Refusal) else got

    def on_result(self, stage: str, record: Record) -> None:
        self.finals += record.kind == ResultKind.FINAL

    def on_stream_lost(self, stage: str, reason: LossReason) -> None:
        self.lost.append(reason)
        self.stream = None

    def on_room(self, stage: str) -> None: ...

    def on_tick(self) -> None:
        if self.stream is None:
            self.ask()
