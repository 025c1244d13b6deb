"""The conversation so far, as the reply stage needs it. Bounded; the oldest items go first, system items last."""

from __future__ import annotations

from typing import Final

import msgspec

from voiceserver.errors import ProtocolError
from voiceserver.events.events import HistoryItem
from voiceserver.events.memory import item_bytes

# Far more than an LLM reads. Without it a client could keep the longest message that there may be in every item. It is counted as
# the request to the reply stage has it, in bytes of JSON, because a ring to a worker takes only so many of them.
MAX_BYTES: Final = 1_000_000
LONGEST_LETTER: Final = 6  # bytes of one character in JSON
_OF_NO_TEXTS: Final = len('["","","","",""]')
SHOWN: Final = 80  # characters of a client's key in an error
_OF_THE_SERVER: Final = ("user:", "reply:", "call:")  # the keys that turns get


def check_key(key: str, param: str) -> None:
    """Raises ProtocolError for a key that a client may not give an item: it would be taken for another one."""
    if key == "root" or key.startswith(_OF_THE_SERVER):
        message = (
            f"{param}: {key[:SHOWN]!r} is a name of the server's own, as 'root' is and all that begin with "
            "'user:', 'reply:' or 'call:'."
        )
        raise ProtocolError("reserved_key", message, param=param)


class History:
    """``limit`` items, of ``max_bytes`` in all: an item that has more alone is refused, or cut if it was said."""

    __slots__ = ("_bytes", "_items", "_limit", "_max_bytes")

    def __init__(self, limit: int, max_bytes: int = MAX_BYTES) -> None:
        self._items: list[HistoryItem] = []
        self._limit = limit
        self._max_bytes = max_bytes
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def items(self) -> tuple[HistoryItem, ...]:
        return tuple(self._items)

    @property
    def memory_bytes(self) -> int:
        return sum(map(item_bytes, self._items))

    def __contains__(self, key: str) -> bool:
        return bool(key) and any(one.key == key for one in self._items)

    def append(self, item: HistoryItem, after_key: str = "") -> None:
        """Raises ProtocolError ``item_not_found`` for an unknown ``after_key``, ``item_exists`` for a used key, and
        ``item_too_long``."""
        if item.key in self:
            message = f"an item with the key {item.key[:SHOWN]!r} exists already"
            raise ProtocolError("item_exists", message, param="item.key")
        size = _length(item)
        if size > self._max_bytes:
            message = f"item: has {size} bytes; the whole conversation may have {self._max_bytes}"
            raise ProtocolError("item_too_long", message, param="item")
        position = len(self._items)
        if after_key == "root":
            position = 0
        elif after_key:
            position = self._find(after_key, "after_key") + 1
        self._insert(position, item, size)

    def record(self, item: HistoryItem) -> None:
        """What was said goes to the end, whatever keys a client has used up."""
        if item.key in self:
            item = msgspec.structs.replace(item, key="")
        size = _length(item)
        if size > self._max_bytes:  # of a text that never ends
            item = msgspec.structs.replace(item, text=item.text[: self._max_bytes // LONGEST_LETTER])
            size = _length(item)
        self._insert(len(self._items), item, size)

    def with_record(self, item: HistoryItem) -> tuple[HistoryItem, ...]:
        """The items as ``record`` would leave them; nothing changes."""
        future = History(self._limit, self._max_bytes)
        future._items = self._items[:]
        future._bytes = self._bytes
        future.record(item)
        return future.items

    def _insert(self, position: int, item: HistoryItem, size: int) -> None:
        self._items.insert(position, item)
        self._bytes += size
        if len(self._items) > self._limit:
            self._drop(next((i for i, one in enumerate(self._items) if one.role != "system"), 0))
        while self._bytes > self._max_bytes and len(self._items) > 1:
            others = [i for i, one in enumerate(self._items) if one is not item]
            self._drop(next((i for i in others if self._items[i].role != "system"), others[0]))

    def _drop(self, index: int) -> None:
        self._bytes -= _length(self._items.pop(index))

    def delete(self, key: str) -> None:
        self._drop(self._find(key, "key"))

    def cut(self, turn: int, text: str) -> None:
        """The reply of ``turn`` was heard only as far as ``text``; unheard replies leave the history."""
        for index in range(len(self._items) - 1, -1, -1):
            item = self._items[index]
            if item.role == "assistant" and item.turn == turn and not item.call_id:
                self._drop(index)
                if text:
                    heard = HistoryItem(role="assistant", text=text, turn=turn, key=item.key)
                    self._items.insert(index, heard)
                    self._bytes += _length(heard)
                return

    def _find(self, key: str, param: str) -> int:
        for index, item in enumerate(self._items):
            if key and item.key == key:
                return index
        raise ProtocolError("item_not_found", f"no item has the key {key[:SHOWN]!r}", param=param)


def _length(item: HistoryItem) -> int:
    """Bytes of JSON."""
    texts = (item.text, item.arguments, item.name, item.call_id, item.key)
    return len(msgspec.json.encode(texts)) - _OF_NO_TEXTS


def chat_messages(items: tuple[HistoryItem, ...]) -> list[dict[str, object]]:
    """The items in the shape of a chat-completions request; neighbouring tool calls share one assistant message."""
    messages: list[dict[str, object]] = []
    calls: list[dict[str, object]] = []
    for item in items:
        if item.role == "assistant" and item.call_id:
            function: dict[str, object] = {"name": item.name, "arguments": item.arguments}
            call: dict[str, object] = {"id": item.call_id, "type": "function", "function": function}
            if not calls:
                messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            calls.append(call)
            continue
        calls = []
        message: dict[str, object] = {"role": item.role, "content": item.text}
        if item.role == "tool":
            message["tool_call_id"] = item.call_id
        messages.append(message)
    return messages
