"""Server-sent events, sans I/O: bytes in, the data of whole events out."""

from __future__ import annotations

from typing import Final

MAX_EVENT_BYTES: Final = 1_048_576


class EventTooLong(Exception):
    """The peer sends something without an end; nothing of it can be used."""


class SseParser:
    """Gives the ``data`` of each event; comments and other fields are passed over. Lines end with LF, CR LF or CR."""

    __slots__ = ("_data", "_rest", "_size")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that ``chunk`` completes. Raises EventTooLong."""
        data = self._rest + chunk
        # A CR at the end may be half of a CR LF.
        tail = b"\r" if data.endswith(b"\r") else b""
        lines = data[: len(data) - len(tail)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + tail
        events: list[bytes] = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data, self._size = [], 0
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
                self._size += len(line)
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise EventTooLong
        return events

    def finish(self) -> list[bytes]:
        """The last event of a peer that closed without an empty line."""
        return self.feed(b"\n\n")
