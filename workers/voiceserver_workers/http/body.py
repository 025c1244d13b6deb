"""The body of an answer, sans I/O: bytes in, the JSON of whole events out.

The bytes decide how they are read, not the content type, because proxies send either kind under any label::

    data: {...}          a server-sent event; its lines end with LF, CR LF or CR, and its empty line may be missing
    {...} or [...]       JSON: one value a line, or one value over many lines
    : event: id: retry:  passed over
    anything else        passed over and counted in ``skipped_lines``

Rule: a line is looked at once, so the work grows with the bytes and not with how they were cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

# Decoding one of them keeps the loop for about 2 ms, the other for 8 ms, once an answer.
MAX_EVENT_BYTES: Final = 262_144
MAX_VALUE_BYTES: Final = 1_048_576  # of one JSON value that is the whole answer

_BOM: Final = b"\xef\xbb\xbf"
_PASSED_OVER: Final = (b":", b"event:", b"id:", b"retry:")
_DONE: Final = b"[DONE]"
_check: Final = msgspec.json.Decoder(msgspec.Raw).decode


class EventTooLong(Exception):
    """The peer sends something without an end; nothing of it can be used."""


class BodyParser:
    """``feed`` bytes, take whole events; ``finish`` gives what the peer did not end."""

    __slots__ = (
        "_ended_with_cr",
        "_event",
        "_event_bytes",
        "_is_value",
        "_line",
        "_max_event_bytes",
        "skipped_lines",
    )

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()  # the beginning of a line
        self._ended_with_cr = False
        self._event: list[bytes] = []
        self._event_bytes = 0
        self._is_value = False  # what is collected began without ``data:``
        self.skipped_lines = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events that ``data`` completes, as they are found. Raises EventTooLong."""
        if self._ended_with_cr and data.startswith(b"\n"):
            data = data[1:]
        self._ended_with_cr = data.endswith(b"\r")
        head, *lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._line += head
        for line in lines:
            yield from self._take_line(bytes(self._line).strip())
            self._line[:] = line
        is_value = self._is_value or self._line.startswith((b"{", b"["))
        limit = MAX_VALUE_BYTES if is_value else self._max_event_bytes
        if len(self._line) + self._event_bytes > limit:
            raise EventTooLong

    def finish(self) -> Iterator[bytes]:
        """The last event of a peer that closed without an empty line."""
        yield from self._take_line(bytes(self._line).strip())
        self._line.clear()
        yield from self._end_event()

    def _take_line(self, line: bytes) -> Iterator[bytes]:
        line = line.removeprefix(_BOM)
        if line.startswith(b"data:"):
            # Some peers leave out the empty lines: a new value behind a whole one is the next event.
            if self._is_value or self._is_whole():
                yield from self._end_event()
            self._collect(line[5:].lstrip())
        elif not line:
            if not self._is_value:
                yield from self._end_event()
        elif line.startswith(_PASSED_OVER):
            return
        elif self._event:
            self._collect(line)
        elif line.startswith((b"{", b"[")):
            self._is_value = True
            self._collect(line)
            if line == _DONE or self._is_whole():
                yield from self._end_event()
        else:
            self.skipped_lines += 1

    def _collect(self, line: bytes) -> None:
        if line:
            self._event.append(line)
            self._event_bytes += len(line) + 1

    def _is_whole(self) -> bool:
        """One line was collected, and it is JSON. More lines than one are judged at their end only."""
        if len(self._event) != 1:
            return False
        if self._event[0] == _DONE:
            return True
        try:
            _check(self._event[0])
        except (msgspec.DecodeError, RecursionError):
            return False
        return True

    def _end_event(self) -> Iterator[bytes]:
        event, self._event = self._event, []
        self._event_bytes = 0
        self._is_value = False
        if event:
            yield b"\n".join(event)
