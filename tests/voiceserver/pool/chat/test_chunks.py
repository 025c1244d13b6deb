"""An event is read field by field: an odd field costs itself and nothing else."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.pool.chat.chunks import CallDelta, Chunk, TextJoiner, read_event


def read(value: object) -> Chunk:
    (chunk,) = read_event(value if isinstance(value, bytes) else json.dumps(value).encode())
    return chunk


def delta(**fields: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": fields}]}


# ---------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("value", [None, "", "ping", 7, 1.5, True, [], [1], [None]])
def test_json_that_is_no_chunk_is_passed_over(value: object) -> None:
    assert read(value) == Chunk(odd=("data",))


@pytest.mark.parametrize("data", [b"no json", b"\xff\xfe", b"[" * 100_000])
def test_bytes_that_are_no_json_are_passed_over(data: bytes) -> None:
    assert list(read_event(data)) == [Chunk(odd=("data",))]


@pytest.mark.parametrize("data", [b"{", b'{"a": ', b"{\n" * 100_000])
def test_a_part_of_json_is_told_from_what_never_was_any(data: bytes) -> None:
    assert list(read_event(data)) == [Chunk(odd=("json",))]


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b'{"choices":[{"delta":{"content":"a\tb"}}]}', ["a\tb"]),
        (b'{"choices":[{"delta":{"content":"a\nb"}}]}', ["a\nb"]),
        (b'{"choices":[{"delta":{"content":"a"},"logprobs":NaN}],"x":-Infinity}', ["a"]),
        (b'{"choices":[{"delta":{"content":"a"}}],"n":' + b"9" * 5_000 + b"}", ["a"]),
        (b'{"choices":[{"delta":{"content":"a"}}],"n":1e999}', ["a"]),
        (b'{"choices":[{"delta":{"content":"a"}}]}\n{"choices":[{"delta":{"content":"b"}}]}', ["a", "b"]),
        (b'[{"choices":[{"delta":{"content":"a"}}]},{"choices":[{"delta":{"content":"b"}}]}]', ["a", "b"]),
        (b'{"choices":[{"delta":{"content":"a"}}]}[DONE]', ["a", ""]),
        (b'{"cho\n{"choices":[{"delta":{"content":"b"}}]}', ["b", ""]),
        (b'{"choices":[{"delta":{"content":"a"}}]}}', ["a", ""]),
        (b'{"chdata: {"choices":[{"delta":{"content":"b"}}]}', ["b", ""]),
    ],
)
def test_json_that_is_not_quite_json_is_read(data: bytes, texts: list[str]) -> None:
    assert [chunk.text for chunk in read_event(data)] == texts


@pytest.mark.parametrize("data", [b"[DONE]", b'"[DONE]"', b" [DONE] "])
def test_the_end_is_read(data: bytes) -> None:
    assert read(data).is_done


# ---------------------------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (delta(content="a"), "a"),
        (delta(content=None, refusal="no"), "no"),
        (delta(content=["a", {"type": "text", "text": "b"}, {"text": "c"}, {"type": "image"}]), "abc"),
        (delta(content={"type": "text", "text": "a"}), "a"),
        (delta(content=[{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "a"}]), "a"),
        (delta(content=[{"type": "thinking", "text": "x"}, {"type": "text", "text": "a"}]), "a"),
        ({"choices": {"delta": {"content": "a"}}}, "a"),
        ({"choices": [{"text": "a"}]}, "a"),
        ({"choices": [{"delta": None, "message": {"content": "a"}}]}, "a"),
        (
            {"choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "b"}}]},
            "a",
        ),
        (
            {"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]},
            "a",
        ),
        ({"choices": [None, {"delta": {"content": "a"}}]}, "a"),
    ],
)
def test_text_is_found_in_the_forms_that_endpoints_send(value: object, text: str) -> None:
    assert read(value).text == text


@pytest.mark.parametrize(
    ("value", "odd"),
    [
        ({"choices": None}, "choices"),
        ({"choices": "x"}, "choices"),
        ({"choices": [1]}, "choices"),
        ({"choices": [{"delta": "x"}]}, "delta"),
        (delta(content=7), "content"),
        (delta(content=[1]), "content"),
        (delta(content=True), "content"),
        (delta(tool_calls="x"), "tool_calls"),
        (delta(tool_calls=[None]), "tool_calls"),
        (delta(tool_calls=[{}]), "tool_calls"),
        (delta(tool_calls=[{"id": 7, "function": {"name": "f"}}]), "id"),
        (delta(tool_calls=[{"index": "0", "function": {"name": "f"}}]), "index"),
        (delta(tool_calls=[{"function": {"name": "f", "arguments": 7}}]), "arguments"),
        ({"choices": [{"finish_reason": 1}]}, "finish_reason"),
        ({"choices": [], "usage": 7}, "usage"),
        ({"choices": [], "usage": {"prompt_tokens": None}}, "prompt_tokens"),
        ({"choices": [], "usage": {"prompt_tokens": -5}}, "prompt_tokens"),
        ({"choices": [], "usage": {"completion_tokens": 10**23}}, "completion_tokens"),
        ({"choices": [], "usage": {"completion_tokens": "4"}}, "completion_tokens"),
    ],
)
def test_a_field_that_cannot_be_read_is_named(value: object, odd: str) -> None:
    chunk = read(value)
    assert (chunk.odd, chunk.text) == ((odd,), "")


def test_token_counts_may_be_decimal_numbers_and_one_may_be_missing() -> None:
    chunk = read({"choices": [], "usage": {"prompt_tokens": 3.0, "completion_tokens": None}})
    assert (chunk.prompt_tokens, chunk.completion_tokens) == (3, None)


@pytest.mark.parametrize(
    ("arguments", "read_as"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ({"a": 1}, '{"a":1}'),
        ([1], "[1]"),
        ({}, "{}"),
        ({"a\ud83d": ["\ud83d", {"b": None}]}, '{"a":["",{"b":null}]}'),
        ("\ud83d{}", "{}"),
        (None, ""),
    ],
)
def test_arguments_are_text_or_the_object_itself(arguments: object, read_as: str) -> None:
    (call,) = read(delta(tool_calls=[{"id": "c", "function": {"name": "f", "arguments": arguments}}])).calls
    assert call == CallDelta(None, "c", "f", read_as)


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_calls": {"function": {"name": "f", "arguments": "{}"}}},
        {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"function_call": {"name": "f", "arguments": "{}"}},
    ],
)
def test_calls_are_found_in_the_forms_that_endpoints_send(fields: dict[str, Any]) -> None:
    assert read(delta(**fields)).calls == (CallDelta(None, "", "f", "{}"),)


@pytest.mark.parametrize("error", [{"message": "x"}, "overloaded", ["x"], True, 1])
def test_an_error_is_one_in_any_form(error: object) -> None:
    assert read({"error": error}).is_error
    assert read({"object": "error", "message": "x"}).is_error


@pytest.mark.parametrize("error", [None, "", {}, [], False, 0])
def test_no_error_is_none_in_any_form(error: object) -> None:
    assert not read({"error": error, "choices": []}).is_error


# ------------------------------------------------------------------------------------------------------ characters


@given(st.text(), st.data())
def test_text_cut_anywhere_within_a_character_is_whole_again(text: str, data: st.DataObject) -> None:
    utf8, utf16 = text.encode(), text.encode("utf-16-le")
    for raw, unit in ((utf8, 1), (utf16, 2)):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(raw) // unit), max_size=5)))
        places = [0, *(cut * unit for cut in cuts), len(raw)]
        parts = [raw[start:end] for start, end in pairwise(places)]
        joiner = TextJoiner()
        if unit == 1:
            pieces = [joiner.feed(part.decode("utf-8", "surrogateescape")) for part in parts]
        else:
            pieces = [joiner.feed(part.decode("utf-16-le", "surrogatepass")) for part in parts]
        joiner.finish()
        assert ("".join(pieces), joiner.skipped) == (text, 0)


@given(st.lists(st.sampled_from(["a", "é", "😀", "\ud83d", "\ude00", "\udce2", "\udc82", "\udcff"])))
def test_halves_without_another_half_are_passed_over(parts: list[str]) -> None:
    joiner = TextJoiner()
    joined = "".join(map(joiner.feed, parts))
    joiner.finish()
    assert joined.encode().decode() == joined  # no half is left in it
    assert joined.count("a") == parts.count("a")
    assert joined.count("é") >= parts.count("é")


@given(st.binary())
def test_no_bytes_raise(data: bytes) -> None:
    for chunk in read_event(data):
        assert chunk.text.encode("utf-8", "surrogatepass") is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["choices", "delta", "text"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["choices", "usage", "error", "object"]), JSON))
def test_no_value_raises(value: object) -> None:
    list(read_event(json.dumps(value).encode()))


def test_what_is_passed_over_makes_no_values_and_loses_no_text() -> None:
    """As the probabilities of all tokens, which some proxies send unasked."""
    words = [{"token": "word", "logprob": -0.1, "bytes": [1, 2, 3, 4]}] * 5_000
    choice = {"message": {"content": "Hi."}, "logprobs": {"content": words}, "finish_reason": "stop"}
    (chunk,) = read_event(json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3}}).encode())
    assert (chunk.text, chunk.finish_reason, chunk.prompt_tokens, chunk.odd) == ("Hi.", "stop", 3, ())


@pytest.mark.parametrize("event", [b'{"choices":[%s]}', b"[%s]", b'{"choices":[{"delta":{"content":[%s]}}]}'])
def test_more_values_than_an_event_can_have_are_passed_over(event: bytes) -> None:
    (chunk,) = read_event(event % b",".join([b"{}"] * 20_000))
    assert (chunk.text, chunk.odd) == ("", ("json",))
