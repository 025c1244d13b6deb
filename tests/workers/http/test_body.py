"""The body of an answer comes in whole events, whatever the network did to it and whatever it is called."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver_workers.http.body import MAX_EVENT_BYTES, MAX_VALUE_BYTES, BodyParser, EventTooLong

STREAM = b': hello\n\ndata: {"a": 1}\r\n\r\nevent: x\ndata:{"b":\ndata:  2}\nid: 7\nretry: 3\n\n\n\ndata: [DONE]\n\n'


def events(*chunks: bytes) -> list[bytes]:
    parser = BodyParser()
    return [event for chunk in chunks for event in parser.feed(chunk)] + list(parser.finish())


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_events_do_not_depend_on_where_the_bytes_were_cut(cuts: list[int], ending: bytes) -> None:
    stream = STREAM.replace(b"\r\n", b"\n").replace(b"\n", ending)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[start:end] for start, end in pairwise(places)]
    assert events(*chunks) == [b'{"a": 1}', b'{"b":\n2}', b"[DONE]"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"data: last", [b"last"]),
        # The empty lines are missing: some proxies drop them.
        (b'data: {"a": 1}\ndata: {"b": 2}\ndata: [DONE]\n', [b'{"a": 1}', b'{"b": 2}', b"[DONE]"]),
        (b'\xef\xbb\xbfdata: {"a": 1}\n\n', [b'{"a": 1}']),
        (b'data:{"a": 1}\r\rdata:\r\rdata: \r\r', [b'{"a": 1}']),
        # Only the first line of a value has its field name.
        (b'data: {\n  "a": 1\n}\n\ndata: {}\n\n', [b'{\n"a": 1\n}', b"{}"]),
        # JSON, one value a line.
        (b'{"a": 1}\n{"b": 2}\n', [b'{"a": 1}', b'{"b": 2}']),
        # JSON over many lines, empty ones too.
        (b'\n {\n\n "a":\n1}\n', [b'{\n"a":\n1}']),
        # A value behind server-sent events, without a field name: the error of a proxy.
        (b'data: {"a": 1}\n\n{"error": "x"}', [b'{"a": 1}', b'{"error": "x"}']),
        (b'{"a": 1}\ndata: {"b": 2}\n\n', [b'{"a": 1}', b'{"b": 2}']),
        (b'[{"a": 1},\n{"b": 2}]', [b'[{"a": 1},\n{"b": 2}]']),
    ],
)
def test_the_bytes_say_what_they_are(body: bytes, expected: list[bytes]) -> None:
    assert events(body) == expected
    assert events(*(bytes([one]) for one in body)) == expected


def test_what_is_neither_is_counted() -> None:
    parser = BodyParser()
    assert list(parser.feed(b"<html>\n<p>sign in</p>\n</html>\n")) == []
    assert list(parser.finish()) == []
    assert parser.skipped_lines == 3


@pytest.mark.parametrize(
    ("begin", "limit"), [(b"", MAX_EVENT_BYTES), (b"data: ", MAX_EVENT_BYTES), (b"{", MAX_VALUE_BYTES)]
)
def test_a_line_without_an_end_is_refused(begin: bytes, limit: int) -> None:
    parser = BodyParser()
    list(parser.feed(begin + b"x" * (limit - len(begin))))
    with pytest.raises(EventTooLong):
        list(parser.feed(b"x"))


@pytest.mark.parametrize("line", [b"data: x\n", b"{\n"])
def test_an_event_of_lines_without_an_end_is_refused(line: bytes) -> None:
    parser = BodyParser()
    with pytest.raises(EventTooLong):
        list(parser.feed(line * (MAX_VALUE_BYTES // len(line) + 1)))


@given(st.lists(st.dictionaries(st.text(), st.text(), min_size=1), min_size=1, max_size=5))
def test_any_value_comes_back_in_either_form(values: list[dict[str, str]]) -> None:
    lines = [json.dumps(value).encode() for value in values]
    for body in (b"\n".join(lines), b"".join(b"data: " + line + b"\n\n" for line in lines)):
        assert [json.loads(event) for event in events(body)] == values
