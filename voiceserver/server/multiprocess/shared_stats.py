"""The board: what each process last told of itself, in memory that all of them map.

One place per child and one for those that ended. Each place has one writer; a reader that meets a writer at work looks again, and
after a few times does without. Nobody ever waits.

=====  ===========================================================
bytes  of a place
=====  ===========================================================
0..7   version: odd while it is being written
8..15  length of what follows
16..   the figures, as bytes that only their writer understands
=====  ===========================================================
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Final

PLACE_BYTES: Final = 2 * 1_048_576  # address space; only what is written takes memory
_HEAD_BYTES: Final = 16
_TRIES: Final = 5


class SharedStats:
    """``fd``: of a file with ``places`` places, which stays open as long as the board."""

    def __init__(self, fd: int, places: int) -> None:
        self.fd = fd
        self.places = places
        self._memory = mmap.mmap(fd, places * PLACE_BYTES)
        self._words = memoryview(self._memory).cast("Q")

    @classmethod
    def create(cls, places: int) -> SharedStats:
        """Raises OSError."""
        with tempfile.TemporaryFile() as file:
            file.truncate(places * PLACE_BYTES)
            return cls(os.dup(file.fileno()), places)

    def put(self, place: int, figures: bytes) -> bool:
        """False: they are too long, and the old ones stay."""
        if len(figures) > PLACE_BYTES - _HEAD_BYTES:
            return False
        start = place * PLACE_BYTES
        word = start // 8
        # A writer that died at work left it odd.
        version = self._words[word] | 1
        self._words[word] = version
        self._words[word + 1] = len(figures)
        self._memory[start + _HEAD_BYTES : start + _HEAD_BYTES + len(figures)] = figures
        self._words[word] = version + 1
        return True

    def get(self, place: int) -> bytes:
        """Empty where nothing was put, or where it is being written all the time."""
        start = place * PLACE_BYTES
        word = start // 8
        for _ in range(_TRIES):
            version = self._words[word]
            length = min(self._words[word + 1], PLACE_BYTES - _HEAD_BYTES)
            figures = bytes(self._memory[start + _HEAD_BYTES : start + _HEAD_BYTES + length])
            if version % 2 == 0 and self._words[word] == version:
                return figures
        return b""

    def close(self) -> None:
        self._words.release()
        self._memory.close()
        os.close(self.fd)
