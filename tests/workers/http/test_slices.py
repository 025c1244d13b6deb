"""What an endpoint sends comes in slices, and costs what it is and not what it was packed into."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver_workers.http.slices import MAX_ANSWER_BYTES, SLICE_BYTES, AnswerTooLong, CodingError, Slices


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKED = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "Deflate": zlib.compress,
}


@given(
    st.binary(max_size=20_000),
    st.sampled_from([*PACKED.items(), ("deflate", raw_deflate)]),
    st.integers(1, 5_000),
)
def test_the_body_comes_back_in_slices(data: bytes, packed: tuple[str, type[bytes]], step: int) -> None:
    coding, pack = packed
    sent, slices = pack(data), Slices(coding)
    pieces = [piece for at in range(0, len(sent), step) for piece in slices.feed(sent[at : at + step])]
    assert b"".join(pieces) == data
    assert all(len(piece) <= SLICE_BYTES for piece in pieces)


@pytest.mark.parametrize("unit", [b"x" * 1_000_000, b"data: {}\n\n" * 100_000, b":\n" * 500_000])
def test_a_small_body_that_unpacks_to_a_big_one_ends(unit: bytes) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(unit) for _ in range(40)) + packer.flush()
    unpacked = 0
    slices = Slices("gzip")
    with pytest.raises(AnswerTooLong):  # noqa: PT012
        for piece in slices.feed(bomb):
            unpacked += len(piece)
    assert unpacked <= MAX_ANSWER_BYTES


def test_single_bytes_cost_more_than_they_are() -> None:
    slices = Slices("")
    with pytest.raises(AnswerTooLong):  # noqa: PT012
        for _ in range(MAX_ANSWER_BYTES):
            list(slices.feed(b"x"))


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip"])
def test_a_coding_that_was_not_asked_for_is_refused(coding: str) -> None:
    with pytest.raises(CodingError):
        Slices(coding)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_that_is_not_what_its_coding_says_is_refused(coding: str) -> None:
    with pytest.raises(CodingError):
        list(Slices(coding).feed(b"\xff" * 100))
