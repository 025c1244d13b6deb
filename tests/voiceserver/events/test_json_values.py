"""Values of a JSON text are counted before they are made."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.events.json_values import MAX_VALUES, has_too_many_values

MANY = MAX_VALUES + 2


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b",".join([b"[]"] * MANY) + b"]",
        b"[" + b",".join([b"1.5"] * MANY) + b"]",
        b'{"a":[' + b",".join([b'{"b":""}'] * MANY) + b"]}",
        b"[" + b",".join([b'"' + b'\\"' * 8 + b'"'] * MANY) + b"]",
        b"[" * 2 * MANY,
    ],
)
def test_many_values_are_too_many(text: bytes) -> None:
    assert has_too_many_values(text)


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3\n" * MANY,  # a table, as a tool may give it
        json.dumps([{"a": [1, 2]}] * MANY),  # JSON in JSON
        '"' * MANY,
        "\\" * MANY,
        '\\"' * MANY,
        "x" * 1_000_000,
    ],
)
def test_text_is_one_value_whatever_is_in_it(text: str) -> None:
    assert not has_too_many_values(json.dumps({"type": "item.append", "item": {"text": text}}).encode())


def count(value: object) -> int:
    if isinstance(value, dict):
        return 1 + sum(count(one) for one in value.values())
    return 1 + sum(count(one) for one in value) if isinstance(value, list) else 1


JSON = st.recursive(
    st.none() | st.integers() | st.text('"\\,[{a', max_size=9),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text('"\\,[{a', max_size=3), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(value=JSON, times=st.sampled_from([1, 2_000, 9_000, 40_000]))
def test_what_is_let_through_has_few_values_and_what_is_not_has_many(value: object, times: int) -> None:
    whole = [value] * times
    # A container counts once, and a comma stands between two: from half of the values to all of them and one.
    is_many = has_too_many_values(json.dumps(whole).encode())
    assert not is_many or 2 * count(whole) > MAX_VALUES
    assert is_many or count(whole) <= 2 * MAX_VALUES + 2
