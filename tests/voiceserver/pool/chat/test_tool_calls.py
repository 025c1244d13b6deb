"""Tool calls come out as the model made them, however an endpoint numbers, names and cuts them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.pool.chat.chunks import CallDelta
from voiceserver.pool.chat.tool_calls import ToolCalls
from voiceserver_workers.ipc.messages import ToolPiece

OSLO, ROME = '{"city": "Oslo"}', '{"city": "Rome"}'


def joined(pieces: Iterable[ToolPiece]) -> list[tuple[str, str, str]]:
    """Calls as a session puts them together: id, name and arguments, in the order of their index."""
    calls: dict[int, list[str]] = {}
    for piece in pieces:
        call = calls.setdefault(piece.index, ["", "", ""])
        call[0], call[1] = call[0] or piece.call_id, call[1] or piece.name
        call[2] += piece.arguments
    assert sorted(calls) == list(range(len(calls)))
    return [(call_id, name, arguments) for _, (call_id, name, arguments) in sorted(calls.items())]


def receive(*deltas: CallDelta) -> list[tuple[str, str, str]]:
    ids = itertools.count(1)
    calls = ToolCalls(lambda: f"own_{next(ids)}")
    pieces = [piece for delta in deltas for piece in calls.receive(delta)]
    return joined([*pieces, *calls.finish()])


def cities(*deltas: CallDelta) -> list[str]:
    received = receive(*deltas)
    assert len({call_id for call_id, _, _ in received} - {""}) == len(received)
    assert {name for _, name, _ in received} <= {"weather"}
    return [json.loads(arguments)["city"] for _, _, arguments in received]


def weather(arguments: str = "", number: int | None = 0, call_id: str = "") -> CallDelta:
    return CallDelta(number, call_id, "weather", arguments)


def more(arguments: str, number: int | None = 0, call_id: str = "") -> CallDelta:
    return CallDelta(number, call_id, "", arguments)


BOTH = ["Oslo", "Rome"]


@pytest.mark.parametrize(
    "deltas",
    [
        # NousResearch/hermes-agent#62940: whole calls with ids of their own, all with index 0.
        [weather(OSLO, 0, "a"), weather(ROME, 0, "b")],
        # su-kaka/gcli2api#406 and others of Gemini: neither numbers nor ids.
        [weather(OSLO), weather(ROME)],
        [weather(OSLO, None), weather(ROME, None)],
        [weather(OSLO, None, "a"), weather(ROME, None, "b")],
        # In pieces, one after the other, under one index.
        [weather("", 0, "a"), more('{"city":'), more(' "Oslo"}'), weather("", 0, "b"), more(ROME)],
        [weather('{"city":'), more(' "Oslo"}'), weather('{"city":'), more(' "Rome"}')],
        # In pieces, side by side.
        [weather("", 0), weather("", 1), more('{"city"'), more('{"city"', 1), more(': "Oslo"}'), more(': "Rome"}', 1)],
        # The id with each piece, or an id that changes with each piece.
        [weather("", 0, "a"), more(OSLO, 0, "a"), weather("", 1, "b"), more(ROME, 1, "b")],
        [weather("", 0, "a"), more('{"city":', 0, "x"), more(' "Oslo"}', 0, "y"), weather(ROME, 1, "b")],
        # The name with each piece.
        [weather('{"city":', 0, "a"), weather(' "Oslo"}', 0, "a"), weather(ROME, 1, "b")],
        [weather('{"city":'), weather(' "Oslo"}'), weather("", 1), weather(ROME, 1)],
        # One id for all.
        [weather(OSLO, 0, "call_0"), weather(ROME, 1, "call_0")],
        [weather(OSLO, 0, "weather"), weather(ROME, 0, "weather")],
        # Twice: the same delta, the whole behind its pieces, and as all so far with each piece.
        [weather(OSLO, 0, "a"), weather(OSLO, 0, "a"), weather(ROME, 1, "b"), weather(ROME, 1, "b")],
        [weather(OSLO), weather(OSLO), weather(ROME, 1)],
        [weather("", 0, "a"), more('{"city": '), more('"Oslo"}'), weather('{"city":"Oslo"}', 0, "a"), weather(ROME, 1, "b")],
        [weather("", 0, "a"), more('{"ci'), more('{"city": "Os'), more(OSLO), weather(ROME, 1, "b")],
        # An empty object stands for what is still to come.
        [weather("{}", 0, "a"), more('{"city":'), more(' "Oslo"}'), weather(ROME, 1, "b")],
        # Both in the arguments of one.
        [weather(OSLO + ROME, 0, "a")],
        [weather(OSLO, 0, "a"), more(ROME)],
        # The id behind the name, the name behind the id.
        [weather("", 0), more(OSLO, 0, "a"), weather(ROME, 1)],
        [CallDelta(0, "a"), weather(OSLO, 0), weather(ROME, 1, "b")],
        [CallDelta(0, "a", "", '{"city":'), weather(' "Oslo"}', 0), weather(ROME, 1, "b")],
        # Numbers that no table should have.
        [weather(OSLO, 2**62, "a"), weather(ROME, -5, "b")],
    ],
)  # fmt: skip
def test_two_calls_are_two_calls(deltas: list[CallDelta]) -> None:
    assert cities(*deltas) == BOTH


def test_the_endpoints_id_is_kept_and_a_missing_one_is_given() -> None:
    assert receive(weather(OSLO, 0, "a"), weather(ROME, 1)) == [
        ("a", "weather", OSLO),
        ("own_1", "weather", ROME),
    ]


@pytest.mark.parametrize("arguments", [["{}"], [""], ["", "{}"], ["{}", "{}"], ["{", "}"]])
def test_a_call_without_arguments_is_one_call(arguments: list[str]) -> None:
    first, *others = arguments
    ((_, name, told),) = receive(weather(first), *map(more, others))
    assert (name, told or "{}") == ("weather", "{}")


def test_a_nested_object_that_begins_like_the_whole_is_no_repetition() -> None:
    ((_, _, arguments),) = receive(weather('{"a": '), more('{"a": 1}}'))
    assert arguments == '{"a": {"a": 1}}'


def test_pieces_are_passed_on_as_they_come() -> None:
    calls = ToolCalls()
    passed = [list(calls.receive(delta)) for delta in (weather("", 0, "a"), more('{"city"'), more(": 1}"))]
    assert [[(one.call_id, one.name, one.arguments) for one in pieces] for pieces in passed] == [
        [("a", "weather", "")],
        [("", "", '{"city"')],
        [("", "", ": 1}")],
    ]
    assert list(calls.finish()) == []


def test_arguments_that_are_no_json_are_passed_on_as_they_are() -> None:
    ((_, _, arguments),) = receive(weather('{"city": '), more("{oslo"))
    assert arguments == '{"city": {oslo'


def test_a_call_that_never_gets_a_name_is_none() -> None:
    calls = ToolCalls()
    assert [*calls.receive(CallDelta(0, "a", "", "{}")), *calls.finish()] == []
    assert calls.nameless == 1


# ----------------------------------------------------------------------------- any endpoint that can be understood at all

VALUES = st.dictionaries(
    st.text('ab{}"\\ ', max_size=4), st.text('ab{}"\\ ', max_size=4) | st.integers(), min_size=1
)
CALLS = st.lists(st.tuples(st.sampled_from(["f", "g"]), VALUES), min_size=1, max_size=4, unique_by=str)


@st.composite
def endpoints(draw: st.DrawFn) -> tuple[list[tuple[str, dict[str, object]]], list[CallDelta]]:
    """Calls, and the deltas of an endpoint with some habits."""
    made = draw(CALLS)
    has_ids, numbers = draw(st.booleans()), draw(st.sampled_from(["right", "zero", "none"]))
    repeats_id, repeats_name = draw(st.booleans()), draw(st.booleans())
    form = draw(st.sampled_from(["whole", "pieces", "twice", "pieces and whole"]))
    deltas: list[CallDelta] = []
    for at, (name, value) in enumerate(made):
        text = json.dumps(value)
        cuts = sorted(draw(st.lists(st.integers(1, len(text)), max_size=3))) if "pieces" in form else []
        pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
        pieces += [text] if form != "pieces" and form != "whole" else []
        number = {"right": at, "zero": 0, "none": None}[numbers]
        for part, piece in enumerate(pieces):
            call_id = f"id_{at}" if has_ids and (not part or repeats_id) else ""
            deltas.append(CallDelta(number, call_id, name if not part or repeats_name else "", piece))
    return made, deltas


@given(endpoints())
def test_the_calls_are_those_that_the_model_made(
    case: tuple[list[tuple[str, dict[str, object]]], list[CallDelta]],
) -> None:
    made, deltas = case
    received = receive(*deltas)
    assert [(name, json.loads(arguments)) for _, name, arguments in received] == made
    assert len({call_id for call_id, _, _ in received}) == len(made)
