"""Server-sent events come whole, whatever the network did to them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.pool.chat.sse import MAX_EVENT_BYTES, EventTooLong, SseParser

STREAM = b": hello\n\ndata: one\r\n\r\nevent: x\ndata:two\ndata:  three\n\n\n\ndata: [DONE]\n\n"


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_events_do_not_depend_on_where_the_bytes_were_cut(cuts: list[int], ending: bytes) -> None:
    stream = STREAM.replace(b"\r\n", b"\n").replace(b"\n", ending)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    parser = SseParser()
    events: list[bytes] = []
    for start, end in pairwise(places):
        events += parser.feed(stream[start:end])
    assert events + parser.finish() == [b"one", b"two\n three", b"[DONE]"]


def test_an_event_without_an_empty_line_counts_at_the_end() -> None:
    parser = SseParser()
    assert parser.feed(b"data: last") == []
    assert parser.finish() == [b"last"]


def test_a_line_without_an_end_is_refused() -> None:
    parser = SseParser()
    parser.feed(b"x" * MAX_EVENT_BYTES)
    with pytest.raises(EventTooLong):
        parser.feed(b"x")
