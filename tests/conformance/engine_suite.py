"""What every engine promises, as tests. A new engine gives a ``Case`` and passes.

- Batched equals unbatched: what a stream gets does not depend on its neighbours.
- State is per stream; a new stream starts afresh, whoever was there before.
- Opening and closing leaks nothing; a closed stream's place can be had again.
- A cancelled turn gives nothing more; the next turn is as if it had never been.
- Bad options are an EngineError that names the key, bad params a ValueError that does.
- A batch that cannot be served changes nothing, so that it can be retried item by item.
"""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from voiceserver_workers.engine import STAGES, Audio, Engine, EngineError, Item, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind, StreamParams, unpack_speech

NOTHING: Audio = np.empty(0, np.float32)
RATE_HZ = 16000
# More steps than any answer here takes, and each may wait a few milliseconds.
PATIENCE = 5000


class Input(tuple[Audio, str | None, bool]):
    """audio, text, is_flush: one item of a script."""


@dataclass(frozen=True)
class Case:
    """scripts: what streams are given, one per stream, all different. bad_params, bad_options: each wrong in the key
    it has. tolerance: how far numbers may be apart (0: not at all). has_turns: False where state follows the
    caller's audio through all turns."""

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
    inputs = [Input((audio[start : start + chunk], None, False)) for start in range(0, len(audio), chunk)]
    return [*inputs, Input((NOTHING, None, True))] if flush else inputs


def text_script(*texts: str) -> list[Input]:
    return [Input((NOTHING, text, False)) for text in texts]


def reply_script(*said: str) -> list[Input]:
    context = {"sessions": 3, "talkers": 1, "lag_ms": 0.0, "local_time": "2026-01-31T18:05:00"}
    requests = ({"messages": [{"role": "user", "content": text}], "context": context} for text in said)
    return text_script(*(json.dumps(request) for request in requests))


class WorkerHandle:
    """One stream as the worker sees it: its script, its clock, and what came back."""

    def __init__(self, stream: int, script: Sequence[Input], turn: int = 1) -> None:
        self.stream = stream
        self.turn = turn
        self.queue = list(script)
        self.samples = 0
        self.wants_more = False
        self.pieces: list[Piece] = []

    @property
    def is_busy(self) -> bool:
        return self.wants_more or bool(self.queue)

    def next_item(self) -> Item:
        if self.wants_more:
            return Item(self.stream, self.turn, NOTHING, end_ms=self.end_ms, is_continued=True)
        audio, text, is_flush = self.queue.pop(0)
        self.samples += len(audio)
        return Item(self.stream, self.turn, audio, text, self.end_ms, is_flush)

    @property
    def end_ms(self) -> float:
        return self.samples * 1000 / RATE_HZ

    def take(self, output: Output) -> None:
        self.pieces += output.pieces
        self.wants_more = output.more


def run_together(engine: Engine, handles: Sequence[WorkerHandle], steps: int = PATIENCE) -> None:
    """Step all lanes side by side, one batch at a time, until all are done or ``steps`` are over."""
    for _ in range(steps):
        busy = [handle for handle in handles if handle.is_busy]
        if not busy:
            return
        outputs = engine.step([handle.next_item() for handle in busy])
        assert len(outputs) == len(busy)
        for handle, output in zip(busy, outputs, strict=True):
            handle.take(output)
    assert steps != PATIENCE, "the engine asks for more steps without end"


def run_alone(engine: Engine, stream: int, script: Sequence[Input]) -> list[Piece]:
    handle = WorkerHandle(stream, script)
    engine.open(stream, StreamParams())
    run_together(engine, [handle])
    engine.close(stream)
    return handle.pieces


def told(pieces: Sequence[Piece]) -> list[tuple[str, object]]:
    """What a caller would get, however it was cut: audio and probabilities run together, the rest in order."""
    story: list[tuple[str, Any]] = []
    for kind, payload in pieces:
        value: Any = payload
        if kind == ResultKind.SPEECH:
            assert isinstance(payload, bytes)
            start_ms, window_ms, probabilities = unpack_speech(payload)
            value = np.array([[start_ms + window_ms * i, p] for i, p in enumerate(probabilities)])
        if story and kind in (ResultKind.AUDIO, ResultKind.SPEECH) and story[-1][0] == kind.name:
            value = np.concatenate((story.pop()[1], value))
        story.append((kind.name, value))
    return story


def assert_same(left: Sequence[Piece], right: Sequence[Piece], tolerance: float) -> None:
    ours, theirs = told(left), told(right)
    assert [kind for kind, _ in ours] == [kind for kind, _ in theirs]
    for (kind, mine), (_, yours) in zip(ours, theirs, strict=True):
        if isinstance(mine, np.ndarray):
            assert isinstance(yours, np.ndarray)
            np.testing.assert_allclose(mine, yours, rtol=0, atol=tolerance, err_msg=kind)
        else:
            assert mine == yours, kind


class EngineSuite:
    """Subclass it with fixtures ``case`` and ``engine``."""

    def test_says_what_it_is(self, engine: Engine) -> None:
        assert engine.info.name
        assert engine.info.stage in STAGES
        is_text_only = engine.info.stage == "reply" and not engine.info.takes_audio
        assert (engine.info.rate_hz > 0) == (not is_text_only)

    def test_a_script_gives_something(self, engine: Engine, case: Case) -> None:
        for stream, script in enumerate(case.scripts(), 1):
            assert run_alone(engine, stream, script)

    def test_batched_equals_unbatched(self, engine: Engine, case: Case) -> None:
        scripts = case.scripts()
        alone = [run_alone(engine, stream, script) for stream, script in enumerate(scripts, 1)]
        handles = [WorkerHandle(stream, script) for stream, script in enumerate(scripts, 101)]
        for handle in handles:
            engine.open(handle.stream, StreamParams())
        run_together(engine, handles)
        for handle, expected in zip(handles, alone, strict=True):
            assert_same(handle.pieces, expected, case.tolerance)
            engine.close(handle.stream)

    def test_order_in_the_batch_does_not_matter(self, engine: Engine, case: Case) -> None:
        scripts = case.scripts()
        forward = [WorkerHandle(stream, script) for stream, script in enumerate(scripts, 1)]
        backward = [WorkerHandle(stream, script) for stream, script in enumerate(scripts, 11)]
        for handles, in_order in ((forward, forward), (backward, backward[::-1])):
            for handle in handles:
                engine.open(handle.stream, StreamParams())
            run_together(engine, in_order)
            for handle in handles:
                engine.close(handle.stream)
        for one, other in zip(forward, backward, strict=True):
            assert_same(one.pieces, other.pieces, case.tolerance)

    def test_a_new_stream_knows_nothing_of_the_last(self, engine: Engine, case: Case) -> None:
        first, second, *_ = case.scripts()
        alone = run_alone(engine, 1, second)
        run_alone(engine, 2, first)
        assert_same(run_alone(engine, 3, second), alone, case.tolerance)

    def test_a_stream_left_in_the_middle_leaves_nothing_behind(self, engine: Engine, case: Case) -> None:
        first, second, *_ = case.scripts()
        alone = run_alone(engine, 1, second)
        engine.open(2, StreamParams())
        run_together(engine, [WorkerHandle(2, first)], steps=1)
        engine.close(2)
        assert_same(run_alone(engine, 3, second), alone, case.tolerance)

    def test_closed_places_can_be_had_again(self, engine: Engine) -> None:
        places = engine.info.max_streams or 100
        for attempt in range(3):
            streams = range(1000 * attempt, 1000 * attempt + places)
            for stream in streams:
                engine.open(stream, StreamParams())
            if engine.info.max_streams:
                with pytest.raises(EngineError):
                    engine.open(999_999, StreamParams())
            for stream in streams:
                engine.close(stream)

    def test_opening_and_closing_leaks_nothing(self, engine: Engine) -> None:
        def cycle(first: int, count: int) -> None:
            for stream in range(first, first + count):
                engine.open(stream, StreamParams())
                engine.close(stream)
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

    def test_opening_twice_is_refused_and_changes_nothing(self, engine: Engine, case: Case) -> None:
        script = case.scripts()[0]
        alone = run_alone(engine, 1, script)
        handle = WorkerHandle(2, script)
        engine.open(2, StreamParams())
        run_together(engine, [handle], steps=1)
        with pytest.raises(EngineError):
            engine.open(2, StreamParams())
        run_together(engine, [handle])
        assert_same(handle.pieces, alone, case.tolerance)
        engine.close(2)

    def test_unknown_streams_are_nothing_to_cancel_or_close(self, engine: Engine) -> None:
        engine.cancel(77, 1)
        engine.close(77)

    def test_a_batch_with_an_unknown_stream_changes_nothing(self, engine: Engine, case: Case) -> None:
        script = case.scripts()[0]
        alone = run_alone(engine, 1, script)
        handle = WorkerHandle(2, script)
        engine.open(2, StreamParams())
        stranger = Item(99, 1, NOTHING, script[0][1])
        for _ in range(PATIENCE):
            if not handle.is_busy:
                break
            item = handle.next_item()
            with pytest.raises((EngineError, KeyError)):
                engine.step([item, stranger])
            handle.take(engine.step([item])[0])
        assert_same(handle.pieces, alone, case.tolerance)
        engine.close(2)

    def test_a_cancelled_turn_gives_nothing_more(self, engine: Engine, case: Case) -> None:
        first, second, *_ = case.scripts()
        if not case.has_turns:
            # Its state is the caller's audio: a cancel must not disturb it.
            alone = run_alone(engine, 1, second)
            handle = WorkerHandle(2, second)
            engine.open(2, StreamParams())
            run_together(engine, [handle], steps=1)
            engine.cancel(2, 1)
            run_together(engine, [handle])
            assert_same(handle.pieces, alone, case.tolerance)
            engine.close(2)
            return
        alone = run_alone(engine, 1, second)
        engine.open(2, StreamParams())
        handle = WorkerHandle(2, first, turn=1)
        run_together(engine, [handle], steps=1)
        engine.cancel(2, 1)
        output = engine.step([Item(2, 1, NOTHING, is_continued=True)])[0]
        assert output.pieces == []
        assert not output.more
        following = WorkerHandle(2, second, turn=2)
        run_together(engine, [following])
        assert_same(following.pieces, alone, case.tolerance)
        engine.close(2)

    def test_cancelling_an_older_turn_leaves_this_one_alone(self, engine: Engine, case: Case) -> None:
        script = case.scripts()[0]
        alone = run_alone(engine, 1, script)
        handle = WorkerHandle(2, script, turn=5)
        engine.open(2, StreamParams())
        run_together(engine, [handle], steps=1)
        engine.cancel(2, 4)
        run_together(engine, [handle])
        assert_same(handle.pieces, alone, case.tolerance)
        engine.close(2)

    def test_bad_options_are_refused_by_name(self, engine: Engine, case: Case) -> None:
        assert case.bad_options
        for options in case.bad_options:
            with pytest.raises(EngineError) as caught:
                engine.open(5, StreamParams(options=options))
            assert caught.value.code == "bad_option"
            assert next(iter(options)) in caught.value.message
        # None of them was opened.
        engine.open(5, StreamParams())
        engine.close(5)

    def test_bad_params_are_refused_by_name(self, case: Case) -> None:
        assert case.bad_params
        for params in case.bad_params:
            with pytest.raises(ValueError, match=next(iter(params))):
                case.make(params)
