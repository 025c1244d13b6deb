"""Memory that all server processes map: a place per process, and one for those that have ended.

Each place has one writer; a reader that meets a writer at work looks again, and after a few times does without. Nobody ever
waits. The memory is reserved when it is made: a full machine is an error at the start, never a fault in the middle of a call.

=====  ==========================================================================================
bytes  of a place
=====  ==========================================================================================
0..7   version: odd while the place is being written
8..15  length of the figures
16..23 beat: when the event loop of the process last ran, in ns of the monotonic clock; 0: no process
24..   the figures, as bytes that only their writer understands
=====  ==========================================================================================
"""

from __future__ import annotations

import mmap
import os
from typing import Final

from voiceserver_workers.ipc.platform import choose_platform

# A process tells some 20 KB of itself, and 1 KB more for each worker.
PLACE_BYTES: Final = 256 * 1024
# Without a beat for so long, a process is taken to hang: its supervisor is about to find out.
SILENT_MS: Final = 1_000.0
_HEAD_BYTES: Final = 24
_TRIES: Final = 5


class SharedStats:
    """``fd``: of memory with ``places`` places of ``place_bytes``, which stays open as long as this object."""

    def __init__(self, fd: int, places: int, place_bytes: int = PLACE_BYTES) -> None:
        self.fd = fd
        self.places = places
        self._place_bytes = place_bytes
        self._memory = mmap.mmap(fd, places * place_bytes)
        self._words = memoryview(self._memory).cast("Q")

    @classmethod
    def create(cls, places: int, place_bytes: int = PLACE_BYTES) -> SharedStats:
        """Raises OSError when there is no memory or no descriptor for it."""
        fd = choose_platform().create_segment(places * place_bytes)
        try:
            return cls(fd, places, place_bytes)
        except OSError:
            os.close(fd)
            raise

    def put(self, place: int, figures: bytes) -> bool:
        """False: they are too long, and the old ones stay."""
        if len(figures) > self._place_bytes - _HEAD_BYTES:
            return False
        start = place * self._place_bytes
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
        start = place * self._place_bytes
        word = start // 8
        for _ in range(_TRIES):
            version = self._words[word]
            length = min(self._words[word + 1], self._place_bytes - _HEAD_BYTES)
            figures = bytes(self._memory[start + _HEAD_BYTES : start + _HEAD_BYTES + length])
            if version % 2 == 0 and self._words[word] == version:
                return figures
        return b""

    def beat(self, place: int, now_ns: int) -> None:
        """The process of ``place`` lives."""
        self._words[place * self._place_bytes // 8 + 2] = now_ns

    def beat_ns(self, place: int) -> int:
        """The last ``beat``; 0 where there is no process, or where it has not begun."""
        return self._words[place * self._place_bytes // 8 + 2]

    def is_silent(self, place: int, now_ns: int) -> bool:
        """Whether its process has stopped to beat. One that has not begun, or has ended, is not silent but away."""
        beat_ns = self.beat_ns(place)
        return beat_ns > 0 and (now_ns - beat_ns) / 1e6 > SILENT_MS

    def clear(self, place: int) -> None:
        """The process of ``place`` has ended."""
        self.beat(place, 0)
        self.put(place, b"")

    def close(self) -> None:
        self._words.release()
        self._memory.close()
        os.close(self.fd)
