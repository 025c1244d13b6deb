"""Whatever an endpoint sends, others have the loop every few milliseconds of work. Work is counted, not timed: every call of a
function, Python's or C's, is one, and the clock of the test goes on by it."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import pytest

from voiceserver.pool.chat.attempts import Attempts
from voiceserver.pool.chat.chunks import read_event
from voiceserver.pool.chat.config import ChatConfig
from voiceserver.pool.remote_pool import RemoteFailure
from voiceserver.session import sentences
from voiceserver_workers.http.body import MAX_VALUE_BYTES

CALL_S = 0.25e-6  # of a machine of today
# 2 ms of work are 8,000 calls; what was begun within them is brought to its end.
MOST_CALLS = 16_000
MOST_BYTES = 12 * MAX_VALUE_BYTES  # a megabyte of values that were all made takes 30 and more
MOST_RECORDS = 64  # 128 characters may be 43 sentences


class CountedLoop:
    """A loop whose time is the work done."""

    def __init__(self) -> None:
        self.calls = 0
        self.turns = 0

    def time(self) -> float:
        return self.calls * CALL_S

    def call_at(self, when: float, callback: Callable[[], object], /) -> CountedLoop:
        return self

    def cancel(self) -> None:
        pass

    def reschedule(self, when: float | None, /) -> None:
        pass

    def drive(self, work: Coroutine[Any, Any, object]) -> list[int]:
        """Run to the end; the calls of each turn on the loop."""

        def count(frame: FrameType, event: str, arg: object) -> None:
            self.calls += event in ("call", "c_call")

        turns: list[int] = []
        while True:
            self.turns += 1
            before, was = self.calls, sys.getprofile()
            sys.setprofile(count)
            try:
                work.send(None)
            except (StopIteration, RemoteFailure):
                return [*turns, self.calls - before]
            finally:
                sys.setprofile(was)
                turns.append(self.calls - before)


def sse(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def delta(**fields: object) -> bytes:
    return sse({"choices": [{"index": 0, "delta": fields}]})


def tool(index: int, arguments: str = "{}", name: str = "f") -> dict[str, object]:
    return {"index": index, "id": f"c{index}", "function": {"name": name, "arguments": arguments}}


def message(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()


SENT: dict[str, tuple[str, bytes]] = {
    "comments": ("", b":\n" * 50_000),
    "events that say nothing": ("", b"data: {}\n\n" * 10_000),
    "events that are no JSON": ("", b"data: {\n\n" * 10_000),
    "lines that are nothing": ("", b"x\n" * 50_000),
    "events without empty lines": ("", b"data: {}\n" * 10_000),
    "empty deltas": ("", delta(content="") * 3_000),
    "words": ("", delta(content="word ") * 5_000),
    "sentences": ("", delta(content="Here is one. ") * 3_000),
    "one long delta of words": ("", delta(content="word " * 40_000)),
    "one long delta without a space": ("", delta(content="x" * 200_000)),
    "one long delta of marks": ("", delta(content="." * 200_000)),
    "one long delta of abbreviations": ("", delta(content="e.g. " * 40_000)),
    "one long delta of half characters": ("", b'data: {"choices":[{"delta":{"content":"' + b"a\xff" * 100_000 + b'"}}]}\n\n'),
    "text in many parts": ("", delta(content=["a. "] * 30_000)),
    "parts that are none": ("", delta(content=[0] * 100_000)),
    "choices that are none": ("", sse({"choices": [0] * 100_000})),
    "a whole answer": ("", message("Word. " * 150_000)),
    "values one a line": ("", (message("A. ") + b"\n") * 3_000),
    "a list of chunks": ("", b"[" + b",".join([message("A. ")] * 8_000) + b"]"),
    "many calls in one event": ("", delta(tool_calls=[tool(n) for n in range(3_000)])),
    "many calls": ("", b"".join(delta(tool_calls=[tool(n)]) for n in range(3_000))),
    "arguments without an end": ("", delta(tool_calls=[tool(0, "y" * 100)]) * 3_000),
    "arguments that may be new": ("", delta(tool_calls=[tool(0, '{"a":"}')]) * 3_000),
    "arguments of empty objects": ("", delta(tool_calls=[tool(0, "{}" * 40_000)])),
    "arguments as an object": ("", delta(tool_calls={"function": {"name": "f", "arguments": [[n] for n in range(20_000)]}})),
    "a line without an end": ("", b"data: " + b"x" * 400_000),
    "values in choices": ("", b'{"choices":[' + b",".join([b"{}"] * 340_000) + b"]}"),
    "values in an unknown field": ("", b'{"x":[' + b",".join([b"[]"] * 340_000) + b"]}"),
    "values behind a number that is none": ("", b'{"z":NaN,"x":[' + b",".join([b"[]"] * 340_000) + b"]}"),
    "values that do not end": ("", b'{"choices":[' + b",".join([b"[]"] * 340_000)),
    "compressed comments": ("gzip", gzip.compress(b":\n" * 60_000)),
    "compressed white space": ("gzip", gzip.compress(b" " * 4_000_000)),
    "compressed events": ("gzip", gzip.compress(b"data: {}\n\n" * 5_000)),
}  # fmt: skip


@pytest.mark.parametrize("step", [65_536, 1])
@pytest.mark.parametrize("name", SENT)
def test_others_have_the_loop_every_few_milliseconds(name: str, step: int) -> None:
    coding, body = SENT[name]
    if step == 1:
        body = body[:5_000]
    loop = CountedLoop()
    records: list[int] = []
    config = ChatConfig("http://x/v1")
    attempts = Attempts(config, loop, lambda *_: records.append(loop.turns), lambda _: None)

    async def receive() -> None:
        attempts.begin_body(coding)
        for at in range(0, len(body), step):
            if not await attempts.receive(body[at : at + step], loop):
                return
        await attempts.end_body()

    sentences.load()  # what is made once is not counted
    turns = loop.drive(receive())
    assert max(turns) <= MOST_CALLS
    assert max(Counter(records).values(), default=0) <= MOST_RECORDS


@pytest.mark.parametrize("name", SENT)
def test_an_event_makes_a_bounded_number_of_values(name: str) -> None:
    coding, body = SENT[name]
    if len(body) > MAX_VALUE_BYTES or coding:
        return
    tracemalloc.start()
    try:
        for _ in read_event(body.removeprefix(b"data:")):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= MOST_BYTES
