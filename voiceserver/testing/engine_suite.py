"""``EngineSuite``: what every engine promises, as tests. A new engine passes it before it has tests of its own.

- Batched equals unbatched: what a stream gets does not depend on its neighbours.
- State is per stream: a new stream starts afresh, whichever stream was there before.
- Opening and closing streams leaks nothing, and the place of a closed stream can be taken again.
- A cancelled turn gives no more results, and the next turn is as if it had never been.
- Bad options raise an ``EngineError`` that names the key; bad parameters raise a ``ValueError`` that does.
- A batch that cannot be served changes nothing, so that the worker can retry it item by item.

Subclass the suite and say in an ``EngineCase`` how the engine is made and what it is given::

    class TestShouter(EngineSuite):
        @pytest.fixture
        def case(self) -> EngineCase:
            return EngineCase(
                "shouter",
                Shouter,
                lambda: [reply_script("hello", "who is there"), reply_script("good bye")],
                bad_params=({"colour": "red"},),
                bad_options=({"colour": "red"},),
            )
"""

from __future__ import annotations

import gc
import json
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest

from voiceserver_workers.engine import STAGES, Audio, Engine, EngineError, Item, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind, StreamParams, unpack_speech

NOTHING: Audio = np.empty(0, np.float32)
RATE_HZ = 16000
# More steps than any answer takes here, and each may wait a few milliseconds.
MOST_STEPS = 5000


class Input(NamedTuple):
    """One item of a script."""

    audio: Audio = NOTHING
    text: str | None = None
    is_flush: bool = False


@dataclass(frozen=True)
class EngineCase:
    """One engine and what the tests give it.

    name: what the test's id shows.
    make: the engine's class, or a function of its parameters that makes one.
    scripts: what streams are given; at least two, all different.
    params: the parameters for ``make``.
    bad_params: each is wrong in its first key.
    bad_options: options of a stream; each is wrong in its first key.
    tolerance: how far numbers of two runs may be apart; 0 is not at all.
    has_turns: False where state follows the caller's audio through all turns.
    """

    name: str
    make: Callable[[Mapping[str, Any]], Engine]
    scripts: Callable[[], Sequence[Sequence[Input]]]
    params: Mapping[str, Any] = field(default_factory=dict)
    bad_params: Sequence[Mapping[str, Any]] = ()
    bad_options: Sequence[Mapping[str, str | int | float | bool]] = ()
    tolerance: float = 0.0
    has_turns: bool = True

    def __str__(self) -> str:
        return self.name


def audio_script(audio: Audio, chunk: int, *, flush: bool) -> list[Input]:
    """``audio`` in chunks of so many samples; ``flush`` ends the utterance after them."""
    inputs = [Input(audio[start : start + chunk]) for start in range(0, len(audio), chunk)]
    return [*inputs, Input(is_flush=True)] if flush else inputs


def text_script(*texts: str) -> list[Input]:
    """One item for each text: sentences for a tts engine."""
    return [Input(text=text) for text in texts]


def reply_script(*asked: str) -> list[Input]:
    """One request to a reply engine for each thing that the user asks."""
    context = {"sessions": 3, "talkers": 1, "lag_ms": 0.0, "local_time": "2026-01-31T18:05:00"}
    requests = ({"messages": [{"role": "user", "content": text}], "context": context} for text in asked)
    return text_script(*(json.dumps(request) for request in requests))


class ScriptedStream:
    """One stream as the worker sees it: its script, its clock, and what came back."""

    def __init__(self, stream_id: int, script: Sequence[Input], turn: int = 1) -> None:
        self.stream_id = stream_id
        self.turn = turn
        self.queue = list(script)
        self.samples = 0
        self.wants_more = False
        self.rest_ms = 0.0
        self.pieces: list[Piece] = []

    @property
    def is_busy(self) -> bool:
        return self.wants_more or bool(self.queue)

    def next_item(self) -> Item:
        if self.wants_more:
            return Item(self.stream_id, self.turn, NOTHING, end_ms=self.end_ms, is_continued=True)
        audio, text, is_flush = self.queue.pop(0)
        self.samples += len(audio)
        return Item(self.stream_id, self.turn, audio, text, self.end_ms, is_flush)

    @property
    def end_ms(self) -> float:
        return self.samples * 1000 / RATE_HZ

    def take(self, output: Output) -> None:
        self.pieces += output.pieces
        self.wants_more = output.more
        self.rest_ms = output.rest_ms if output.more else 0.0


def run_together(engine: Engine, streams: Sequence[ScriptedStream], steps: int = MOST_STEPS) -> None:
    """Step all streams in common batches until their scripts are done, or so many times."""
    for _ in range(steps):
        busy = [stream for stream in streams if stream.is_busy]
        if not busy:
            return
        outputs = engine.step([stream.next_item() for stream in busy])
        assert len(outputs) == len(busy)
        for stream, output in zip(busy, outputs, strict=True):
            stream.take(output)
        rest(busy)
    assert steps != MOST_STEPS, "the engine asks for more steps without end"


def rest(streams: Sequence[ScriptedStream]) -> None:
    """As a worker does whose engine waits for somebody else."""
    time.sleep(min(stream.rest_ms for stream in streams) / 1000.0)


def run_alone(engine: Engine, stream_id: int, script: Sequence[Input]) -> list[Piece]:
    """All that a stream gives which has the engine for itself."""
    stream = open_stream(engine, stream_id, script)
    run_together(engine, [stream])
    engine.close(stream_id)
    return stream.pieces


def open_stream(engine: Engine, stream_id: int, script: Sequence[Input], turn: int = 1) -> ScriptedStream:
    engine.open(stream_id, StreamParams())
    return ScriptedStream(stream_id, script, turn)


def run_batched(engine: Engine, first_id: int, scripts: Sequence[Sequence[Input]]) -> list[list[Piece]]:
    """What each of some streams gives that share their batches."""
    streams = [open_stream(engine, stream_id, script) for stream_id, script in enumerate(scripts, first_id)]
    run_together(engine, streams)
    for stream in streams:
        engine.close(stream.stream_id)
    return [stream.pieces for stream in streams]


def joined(pieces: Sequence[Piece]) -> list[tuple[str, object]]:
    """What a caller would get, however it was cut: audio and probabilities joined, the rest in order."""
    results: list[tuple[str, Any]] = []
    for kind, payload in pieces:
        value: Any = payload
        if kind == ResultKind.SPEECH:
            assert isinstance(payload, bytes)
            start_ms, window_ms, probabilities = unpack_speech(payload)
            value = np.array([[start_ms + window_ms * i, p] for i, p in enumerate(probabilities)])
        if results and kind in (ResultKind.AUDIO, ResultKind.SPEECH) and results[-1][0] == kind.name:
            value = np.concatenate((results.pop()[1], value))
        results.append((kind.name, value))
    return results


def assert_same(left: Sequence[Piece], right: Sequence[Piece], tolerance: float) -> None:
    ours, theirs = joined(left), joined(right)
    assert [kind for kind, _ in ours] == [kind for kind, _ in theirs]
    for (kind, mine), (_, yours) in zip(ours, theirs, strict=True):
        if isinstance(mine, np.ndarray):
            assert isinstance(yours, np.ndarray)
            np.testing.assert_allclose(mine, yours, rtol=0, atol=tolerance, err_msg=kind)
        else:
            assert mine == yours, kind


class EngineSuite:
    """Its tests ask for a fixture ``case``, an ``EngineCase``. Override ``engine`` where making one takes long."""

    @pytest.fixture
    def engine(self, case: EngineCase) -> Engine:
        return case.make(case.params)

    def test_says_what_it_is(self, engine: Engine) -> None:
        assert engine.info.name
        assert engine.info.stage in STAGES
        is_text_only = engine.info.stage == "reply" and not engine.info.takes_audio
        assert (engine.info.rate_hz > 0) == (not is_text_only)

    def test_a_script_gives_something(self, engine: Engine, case: EngineCase) -> None:
        for stream_id, script in enumerate(case.scripts(), 1):
            assert run_alone(engine, stream_id, script)

    def test_batched_equals_unbatched(self, engine: Engine, case: EngineCase) -> None:
        scripts = case.scripts()
        alone = [run_alone(engine, stream_id, script) for stream_id, script in enumerate(scripts, 1)]
        for pieces, expected in zip(run_batched(engine, 101, scripts), alone, strict=True):
            assert_same(pieces, expected, case.tolerance)

    def test_order_in_the_batch_does_not_matter(self, engine: Engine, case: EngineCase) -> None:
        scripts = case.scripts()
        forward, backward = run_batched(engine, 1, scripts), run_batched(engine, 11, scripts[::-1])[::-1]
        for one, other in zip(forward, backward, strict=True):
            assert_same(one, other, case.tolerance)

    def test_a_new_stream_knows_nothing_of_the_last(self, engine: Engine, case: EngineCase) -> None:
        first, second, *_ = case.scripts()
        alone = run_alone(engine, 1, second)
        run_alone(engine, 2, first)
        assert_same(run_alone(engine, 3, second), alone, case.tolerance)

    def test_a_stream_left_in_the_middle_leaves_nothing_behind(
        self, engine: Engine, case: EngineCase
    ) -> None:
        first, second, *_ = case.scripts()
        alone = run_alone(engine, 1, second)
        run_together(engine, [open_stream(engine, 2, first)], steps=1)
        engine.close(2)
        assert_same(run_alone(engine, 3, second), alone, case.tolerance)

    def test_places_of_closed_streams_can_be_taken_again(self, engine: Engine) -> None:
        places = engine.info.max_streams or 100
        for attempt in range(3):
            stream_ids = range(1000 * attempt, 1000 * attempt + places)
            for stream_id in stream_ids:
                engine.open(stream_id, StreamParams())
            if engine.info.max_streams:
                with pytest.raises(EngineError):
                    engine.open(999_999, StreamParams())
            for stream_id in stream_ids:
                engine.close(stream_id)

    def test_opening_and_closing_leaks_nothing(self, engine: Engine) -> None:
        def cycle(first: int, count: int) -> None:
            for stream_id in range(first, first + count):
                engine.open(stream_id, StreamParams())
                engine.close(stream_id)
            gc.collect()

        cycle(0, 50)
        tracemalloc.start()
        try:
            cycle(1000, 50)
            before, _ = tracemalloc.get_traced_memory()
            cycle(2000, 500)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # Under 50 bytes a stream is no object kept; what is left is noise of the interpreter.
        assert after - before < 500 * 50

    def test_opening_twice_is_refused_and_changes_nothing(self, engine: Engine, case: EngineCase) -> None:
        script = case.scripts()[0]
        alone = run_alone(engine, 1, script)
        stream = open_stream(engine, 2, script)
        run_together(engine, [stream], steps=1)
        with pytest.raises(EngineError):
            engine.open(2, StreamParams())
        run_together(engine, [stream])
        assert_same(stream.pieces, alone, case.tolerance)
        engine.close(2)

    def test_unknown_streams_are_nothing_to_cancel_or_close(self, engine: Engine) -> None:
        engine.cancel(77, 1)
        engine.close(77)

    def test_a_batch_with_an_unknown_stream_changes_nothing(self, engine: Engine, case: EngineCase) -> None:
        script = case.scripts()[0]
        alone = run_alone(engine, 1, script)
        stream = open_stream(engine, 2, script)
        stranger = Item(99, 1, NOTHING, script[0][1])
        for _ in range(MOST_STEPS):
            if not stream.is_busy:
                break
            item = stream.next_item()
            with pytest.raises((EngineError, KeyError)):
                engine.step([item, stranger])
            stream.take(engine.step([item])[0])
            rest([stream])
        assert_same(stream.pieces, alone, case.tolerance)
        engine.close(2)

    def test_a_cancelled_turn_gives_nothing_more(self, engine: Engine, case: EngineCase) -> None:
        first, second, *_ = case.scripts()
        if not case.has_turns:
            # Its state is the caller's audio: a cancel must not disturb it.
            alone = run_alone(engine, 1, second)
            stream = open_stream(engine, 2, second)
            run_together(engine, [stream], steps=1)
            engine.cancel(2, 1)
            run_together(engine, [stream])
            assert_same(stream.pieces, alone, case.tolerance)
            engine.close(2)
            return
        alone = run_alone(engine, 1, second)
        stream = open_stream(engine, 2, first)
        run_together(engine, [stream], steps=1)
        engine.cancel(2, 1)
        output = engine.step([Item(2, 1, NOTHING, is_continued=True)])[0]
        assert output.pieces == []
        assert not output.more
        following = ScriptedStream(2, second, turn=2)
        run_together(engine, [following])
        assert_same(following.pieces, alone, case.tolerance)
        engine.close(2)

    def test_cancelling_an_older_turn_leaves_this_one_alone(self, engine: Engine, case: EngineCase) -> None:
        script = case.scripts()[0]
        alone = run_alone(engine, 1, script)
        stream = open_stream(engine, 2, script, turn=5)
        run_together(engine, [stream], steps=1)
        engine.cancel(2, 4)
        run_together(engine, [stream])
        assert_same(stream.pieces, alone, case.tolerance)
        engine.close(2)

    def test_bad_options_are_refused_by_name(self, engine: Engine, case: EngineCase) -> None:
        assert case.bad_options
        for options in case.bad_options:
            with pytest.raises(EngineError) as caught:
                engine.open(5, StreamParams(options=options))
            assert caught.value.code == "bad_option"
            assert next(iter(options)) in caught.value.message
        # None of them was opened.
        engine.open(5, StreamParams())
        engine.close(5)

    def test_bad_params_are_refused_by_name(self, case: EngineCase) -> None:
        assert case.bad_params
        for params in case.bad_params:
            with pytest.raises(ValueError, match=next(iter(params))):
                case.make(params)
