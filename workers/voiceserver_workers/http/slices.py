"""The bytes of an answer in slices, decompressed where they are compressed. Pure: how much comes at once is bounded here.

A few hundred bytes of gzip can be a megabyte: what a peer sends says nothing of the work that it makes. Rule: no slice is longer
than SLICE_BYTES, and the slices of an answer together cost at most MAX_ANSWER_BYTES, each of them SLICE_COST_BYTES at least.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

SLICE_BYTES: Final = 4_096
SLICE_COST_BYTES: Final = 256  # of what is counted: a byte alone makes as much work as these
MAX_ANSWER_BYTES: Final = 16_777_216
CODINGS: Final = ("", "identity", "gzip", "x-gzip", "deflate")


class AnswerTooLong(Exception):
    """The peer sends more than an answer can be."""


class CodingError(Exception):
    """The body is compressed in a way that was not asked for, or wrongly."""


class Slices:
    """``coding``: the Content-Encoding of the body. Raises CodingError for one that is unknown."""

    __slots__ = ("_coding", "_inflate", "_left_bytes")

    def __init__(self, coding: str) -> None:
        self._coding = coding.strip().lower()
        if self._coding not in CODINGS:
            raise CodingError
        self._inflate = zlib.decompressobj(32 + zlib.MAX_WBITS) if self._coding not in CODINGS[:2] else None
        self._left_bytes = MAX_ANSWER_BYTES

    def feed(self, data: bytes) -> Iterator[bytes]:
        """``data`` of the network in slices. Raises AnswerTooLong and CodingError."""
        for at in range(0, len(data), SLICE_BYTES):
            piece = data[at : at + SLICE_BYTES]
            if self._inflate is None:
                yield self._paid(piece)
            else:
                yield from self._inflated(piece)

    def _inflated(self, piece: bytes) -> Iterator[bytes]:
        inflate = self._inflate
        assert inflate is not None
        while piece and not inflate.eof:
            try:
                plain = inflate.decompress(piece, SLICE_BYTES)
            except zlib.error:
                if self._coding != "deflate":
                    raise CodingError from None
                # Some peers leave out the header of zlib.
                self._coding = ""
                inflate = self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
                continue
            piece = inflate.unconsumed_tail
            yield self._paid(plain)

    def _paid(self, piece: bytes) -> bytes:
        self._left_bytes -= max(len(piece), SLICE_COST_BYTES)
        if self._left_bytes < 0:
            raise AnswerTooLong
        return piece
