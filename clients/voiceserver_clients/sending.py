"""What a client may send now, and what it must be able to send again. Pure: no clock, no socket.

:class:`Credit` obeys ``server.busy``: while the server is busy only ``credit_ms`` more audio leaves; ``server.ready`` lifts
the limit. :class:`AudioLog` is one run of audio with a cursor: everything is appended at the end and sent from the cursor, so a
resumed connection only moves the cursor back to what the server says it has received. :class:`EventLog` is the same for control
events, each of which has its place in the audio.
"""

from __future__ import annotations

import math
from collections import deque

BYTES_PER_SAMPLE = 2
CREDIT_SLACK_MS = 1e-6


class Credit:
    """Milliseconds of audio that may leave now.

    Busy: exactly the ``credit_ms`` of the last signal, and no more until the next one. Not busy: a window that refills in
    real time, so that a microphone never waits and a file sent at full speed stays at most one window ahead.
    """

    __slots__ = ("_at_ms", "_left_ms", "_window_ms", "is_busy")

    def __init__(self) -> None:
        self.is_busy = False
        self._window_ms = self._left_ms = math.inf
        self._at_ms = 0.0

    def receive_busy(self, credit_ms: float, now_ms: float) -> None:
        self.is_busy = True
        self._left_ms, self._at_ms = max(0.0, credit_ms), now_ms

    def receive_ready(self, credit_ms: float, now_ms: float) -> None:
        """``credit_ms`` 0: the server names no window."""
        self.is_busy = False
        self._window_ms = self._left_ms = credit_ms if credit_ms > 0 else math.inf
        self._at_ms = now_ms

    def left_ms(self, now_ms: float) -> float:
        if self.is_busy:
            return self._left_ms
        return min(self._window_ms, self._left_ms + now_ms - self._at_ms)

    def wait_ms(self, duration_ms: float, now_ms: float) -> float:
        """How long until ``duration_ms`` may leave: 0 now, infinity not before the next signal."""
        missing_ms = min(duration_ms, self._window_ms) - self.left_ms(now_ms)
        if missing_ms <= CREDIT_SLACK_MS:
            return 0.0
        return math.inf if self.is_busy else missing_ms

    def take(self, duration_ms: float, now_ms: float) -> None:
        self._left_ms, self._at_ms = self.left_ms(now_ms) - duration_ms, now_ms


class AudioLog:
    """PCM16 of one session by position. ``keep_ms`` of audio stay behind the cursor, for a resume.

    Positions are samples since the first one of the session.
    """

    __slots__ = ("_chunks", "_cursor", "_end", "_keep_samples", "_next", "_start", "rate_hz")

    def __init__(self, rate_hz: int, keep_ms: float = 0.0) -> None:
        self.rate_hz = rate_hz
        self._keep_samples = int(keep_ms * rate_hz / 1000)
        self._chunks: deque[bytes] = deque()
        self._next = 0  # index in _chunks of the chunk at the cursor
        self._start = self._cursor = self._end = 0

    @property
    def end_ms(self) -> float:
        """Length of everything appended so far."""
        return self._end * 1000 / self.rate_hz

    @property
    def sent_ms(self) -> float:
        return self._cursor * 1000 / self.rate_hz

    @property
    def cursor(self) -> int:
        """How many samples have left."""
        return self._cursor

    @property
    def end(self) -> int:
        """How many samples there are."""
        return self._end

    def append(self, pcm: bytes) -> None:
        """Raises ValueError for a half sample."""
        if len(pcm) % BYTES_PER_SAMPLE:
            raise ValueError(f"{len(pcm)} bytes are not a whole number of 16-bit samples")
        if pcm:
            self._chunks.append(pcm)
            self._end += len(pcm) // BYTES_PER_SAMPLE

    def peek(self) -> bytes | None:
        """The chunk at the cursor, None when everything has been sent."""
        return self._chunks[self._next] if self._next < len(self._chunks) else None

    def advance(self) -> None:
        """The chunk at the cursor has left."""
        self._cursor += len(self._chunks[self._next]) // BYTES_PER_SAMPLE
        self._next += 1
        while self._next and self._cursor - self._start > self._keep_samples:
            self._start += len(self._chunks.popleft()) // BYTES_PER_SAMPLE
            self._next -= 1

    def rewind(self, received_ms: float) -> float:
        """Continue from what the server has received. Returns the gap: ms that it lacks and that are no longer kept."""
        position = min(round(received_ms * self.rate_hz / 1000), self._cursor)
        gap_ms = max(0, self._start - position) * 1000 / self.rate_hz
        self._cursor, self._next = self._start, 0
        while self._cursor < position:
            chunk = self._chunks[self._next]
            samples = len(chunk) // BYTES_PER_SAMPLE
            if self._cursor + samples > position:
                # The server has the first part of this chunk: cut it, so that the cursor stands exactly there.
                cut = (position - self._cursor) * BYTES_PER_SAMPLE
                self._chunks[self._next] = chunk[:cut]
                self._chunks.insert(self._next + 1, chunk[cut:])
                samples = position - self._cursor
            self._cursor += samples
            self._next += 1
        return gap_ms

    def restart(self) -> None:
        """A new session knows nothing: what was sent to the old one is gone, what was not sent is the new beginning."""
        for _ in range(self._next):
            self._chunks.popleft()
        self._next = 0
        self._end -= self._cursor
        self._start = self._cursor = 0


class EventLog:
    """Control events of one session in their order. ``keep`` of those that have left stay behind the cursor, for a resume.

    ``position`` is in samples of the audio: the event leaves when all audio before it has left.
    """

    __slots__ = ("_entries", "_first", "_keep", "_next")

    def __init__(self, keep: int = 0) -> None:
        self._keep = keep
        self._entries: deque[tuple[int, str]] = deque()
        self._first = 0  # how many came before the first entry
        self._next = 0  # index in _entries of the one at the cursor

    @property
    def sent(self) -> int:
        """How many have left, ever."""
        return self._first + self._next

    def append(self, message: str, position: int) -> int:
        """Returns its number: it has left when ``sent`` is more."""
        self._entries.append((position, message))
        return self._first + len(self._entries) - 1

    def peek(self, position: int) -> str | None:
        """The event at the cursor, if all audio before it has left; None if there is none."""
        if self._next == len(self._entries) or self._entries[self._next][0] > position:
            return None
        return self._entries[self._next][1]

    def advance(self) -> None:
        """The event at the cursor has left."""
        self._next += 1
        while self._next > self._keep:
            self._entries.popleft()
            self._first += 1
            self._next -= 1

    def rewind(self, received: int) -> int:
        """Continue after the first ``received``. Returns how many the server lacks that are no longer kept."""
        missing = max(self._first - received, 0)
        self._next = min(max(received - self._first, 0), self._next)
        return missing

    def restart(self, position: int) -> None:
        """A new session: what was sent to the old one is gone; what was not comes first, ``position`` being its zero."""
        for _ in range(self._next):
            self._entries.popleft()
        self._entries = deque((max(place - position, 0), message) for place, message in self._entries)
        self._first = self._next = 0
