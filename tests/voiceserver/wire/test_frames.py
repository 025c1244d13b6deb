from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from voiceserver.wire.frames import INCOMPLETE, UNUSUAL, build_frame, find_payload

LIMIT = 70_000


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65_535, 65_536])
def test_a_built_frame_is_what_websockets_builds(length: int) -> None:
    payload = b"x" * length
    assert build_frame(payload) == Frame(Opcode.BINARY, payload).serialize(mask=False)
    assert build_frame(payload.decode()) == Frame(Opcode.TEXT, payload).serialize(mask=False)


@given(
    st.integers(0, 3),
    st.binary(max_size=200) | st.integers(60_000, LIMIT).map(bytes),
    st.sampled_from([1, 2]),
)
def test_the_payload_of_a_whole_frame_is_found(at: int, payload: bytes, opcode: int) -> None:
    data = bytes(at) + Frame(Opcode(opcode), payload).serialize(mask=True)
    start, end = find_payload(data, at, LIMIT)
    assert (end - start, end) == (len(payload), len(data))


@given(st.binary(max_size=400), st.data())
def test_a_cut_frame_says_how_much_is_worth_waiting_for(payload: bytes, data: st.DataObject) -> None:
    whole = Frame(Opcode.BINARY, payload).serialize(mask=True)
    cut = data.draw(st.integers(1, len(whole) - 1))
    start, needed = find_payload(whole[:cut], 0, LIMIT)
    assert start == INCOMPLETE
    assert cut < needed <= len(whole)


@pytest.mark.parametrize(
    "head",
    [b"\x02\x80", b"\x80\x80", b"\x88\x80", b"\xc2\x80", b"\x83\x80", b"\x82\x05", b"\x89\xfe", b"\x03"],
    ids=[
        "fragment",
        "continuation",
        "close",
        "reserved bit",
        "bad opcode",
        "unmasked",
        "long ping",
        "one byte",
    ],
)
def test_everything_else_is_for_the_judge(head: bytes) -> None:
    assert find_payload(head, 0, LIMIT) == (UNUSUAL, 0)


def test_too_big_is_for_the_judge_as_soon_as_the_length_is_known() -> None:
    assert find_payload(b"\x82\xff" + (LIMIT + 1).to_bytes(8, "big"), 0, LIMIT) == (UNUSUAL, 0)
