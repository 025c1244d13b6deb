"""Conversation items under the ids that the client knows. Rule: ids live in here and nowhere else; the session has keys.

An item the client made has its id for a key; what came of a turn has the key that the session's history gives it:
``user:TURN``, ``reply:TURN``, ``call:TURN:INDEX``.
"""

from __future__ import annotations

from typing import Final, Literal

from voiceserver.errors import ProtocolError
from voiceserver.events.events import HistoryItem
from voiceserver.events.memory import WIDEST_CHARACTER_BYTES
from voiceserver.session.text import split
from voiceserver.wire.openai.dialect import GA_PARTS, Writer
from voiceserver.wire.openai.schema import ItemBody, PartBody

MAX_ITEMS: Final = 1_000
MAX_CHARACTERS: Final = 4_000_000
MAX_PARTS: Final = 100
PART_CHARACTERS: Final = 100  # that a part counts for whatever its text
GROWING: Final = 64  # items, the latest, whose text may still grow
ROOT: Final = "root"

Role = Literal["user", "assistant", "system"]
Status = Literal["in_progress", "completed", "incomplete"]
_PARTS: Final[dict[str, frozenset[str]]] = {
    "user": frozenset({"input_text", "input_audio"}),
    "system": frozenset({"input_text"}),
    "assistant": frozenset({"output_text", "output_audio"}),
}


class Part:
    """One content part. Audio itself is not kept: ``text`` is its transcript, None as long as there is none."""

    __slots__ = ("is_hidden", "kind", "text")

    def __init__(self, kind: str, text: str | None) -> None:
        self.kind = kind
        self.text = text
        self.is_hidden = False  # the client switched transcription off

    def describe(self, writer: Writer) -> dict[str, object]:
        field = "transcript" if self.kind.endswith("audio") else "text"
        return {"type": writer.part_name(self.kind), field: None if self.is_hidden else self.text}


class Item:
    """``message``, ``function_call`` or ``function_call_output``; unused fields stay empty."""

    __slots__ = (
        "arguments",
        "audio_ms",
        "call_id",
        "id",
        "key",
        "name",
        "output",
        "parts",
        "role",
        "status",
        "turn",
        "type",
    )

    def __init__(
        self, item_id: str, kind: str, role: Role | None = None, *, key: str = "", turn: int = 0
    ) -> None:
        self.id = item_id
        self.type = kind
        self.role = role
        self.status: Status = "completed"
        self.parts: list[Part] = []
        self.call_id = ""
        self.name = ""
        self.arguments = ""
        self.output = ""
        self.key = key or item_id
        self.turn = turn
        self.audio_ms = 0.0  # of a reply, sent so far

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.parts if part.text)

    @property
    def size(self) -> int:
        """In characters, about; also what has no text takes memory."""
        size = len(self.arguments) + len(self.output) + len(self.name) + len(self.call_id)
        return size + sum(PART_CHARACTERS + len(part.text or "") for part in self.parts)

    @property
    def is_spoken_reply(self) -> bool:
        return self.role == "assistant" and any(part.kind == "output_audio" for part in self.parts)

    def describe(self, writer: Writer) -> dict[str, object]:
        """The ``item`` object of the wire."""
        shown: dict[str, object] = {
            "id": self.id,
            "object": "realtime.item",
            "type": self.type,
            "status": self.status,
        }
        if self.type == "message":
            return {**shown, "role": self.role, "content": [part.describe(writer) for part in self.parts]}
        shown["call_id"] = self.call_id
        if self.type == "function_call":
            return {**shown, "name": self.name, "arguments": self.arguments}
        return {**shown, "output": self.output}

    def to_history(self) -> HistoryItem:
        """This item as the reply engine gets it."""
        if self.type == "function_call_output":
            return HistoryItem(
                role="tool", text=self.output, call_id=self.call_id, turn=self.turn, key=self.key
            )
        if self.type == "function_call":
            return HistoryItem(
                role="assistant",
                call_id=self.call_id,
                name=self.name,
                arguments=self.arguments,
                turn=self.turn,
                key=self.key,
            )
        return HistoryItem(role=self.role or "user", text=self.text, turn=self.turn, key=self.key)

    def cut(self, audio_end_ms: float) -> None:
        """Keep of the transcript what fits, by words, into the part of the audio that was heard."""
        share = min(audio_end_ms / self.audio_ms, 1.0) if self.audio_ms > 0 else 0.0
        for part in self.parts:
            part.text = split(part.text or "", share)[0]
        self.audio_ms = min(self.audio_ms, audio_end_ms)


class Conversation:
    """The items in order. Bounded: the oldest leave without a word, as they do from a model's context."""

    __slots__ = ("_items", "_order", "_size", "_sizes")

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._order: list[str] = []
        self._sizes: dict[str, int] = {}  # as counted
        self._size = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._items

    @property
    def kept_bytes(self) -> int:
        """About what it costs in memory, where every character is a wide one."""
        return self._size * WIDEST_CHARACTER_BYTES

    def get(self, item_id: str) -> Item | None:
        return self._items.get(item_id)

    def in_order(self) -> list[Item]:
        return [self._items[item_id] for item_id in self._order]

    def previous_id(self, item_id: str) -> str | None:
        """The id of the item before, None for the first."""
        index = self._order.index(item_id)
        return self._order[index - 1] if index else None

    def last_id(self) -> str | None:
        return self._order[-1] if self._order else None

    def has_call(self, call_id: str) -> bool:
        return any(one.type == "function_call" and one.call_id == call_id for one in self._items.values())

    def key_of(self, after: str) -> str:
        """Of the item ``after``, as ``ItemAppend.after_key`` wants it; "" for the end."""
        if not after or after == ROOT or after == self.last_id():
            return ROOT if after == ROOT else ""
        previous = self._items.get(after)
        return previous.key if previous is not None else ""

    def add(self, item: Item, after: str = "") -> str | None:
        """Insert after the item of that id ("": at the end; "root": first). The id before it."""
        index = len(self._order)
        if after == ROOT:
            index = 0
        elif after:
            index = self._order.index(after) + 1
        self._order.insert(index, item.id)
        self._items[item.id] = item
        for one in {
            *self._order[-GROWING:],
            item.id,
        }:  # replies and transcripts have grown since they were added
            self._count(one)
        previous = self._order[index - 1] if index else None
        while len(self._order) > 1 and (len(self._order) > MAX_ITEMS or self._size > MAX_CHARACTERS):
            self.remove(next(one for one in self._order if one != item.id))
        return previous

    def remove(self, item_id: str) -> None:
        del self._items[item_id]
        self._order.remove(item_id)
        self._size -= self._sizes.pop(item_id)

    def _count(self, item_id: str) -> None:
        size = self._items[item_id].size
        self._size += size - self._sizes.get(item_id, 0)
        self._sizes[item_id] = size


def parse_item(body: ItemBody, item_id: str, param: str) -> Item:
    """The item a client describes. Raises ProtocolError for what cannot be in a conversation here."""
    if body.type == "message":
        return _parse_message(body, item_id, param)
    item = Item(item_id, body.type)
    if body.type == "function_call":
        item.name = required(body.name or None, f"{param}.name")
        item.arguments = required(body.arguments, f"{param}.arguments")
        item.call_id = body.call_id or f"call_{item_id}"
    elif body.type == "function_call_output":
        item.call_id = required(body.call_id or None, f"{param}.call_id")
        item.output = required(body.output, f"{param}.output")
    else:
        allowed = "'message', 'function_call', and 'function_call_output'"
        text = f"Invalid value: '{body.type[:80]}'. Supported values are: {allowed}."
        raise ProtocolError("invalid_value", text, param=f"{param}.type")
    return item


def _parse_message(body: ItemBody, item_id: str, param: str) -> Item:
    if body.role is None:
        raise ProtocolError(
            "missing_required_parameter",
            f"Missing required parameter: '{param}.role'.",
            param=f"{param}.role",
        )
    if body.content is None:
        path = f"{param}.content"
        raise ProtocolError(
            "missing_required_parameter", f"Missing required parameter: '{path}'.", param=path
        )
    item = Item(item_id, "message", body.role)
    if len(body.content) > MAX_PARTS:
        text = f"Invalid '{param}.content': array too long. Expected at most {MAX_PARTS} parts, but got {len(body.content)}."
        raise ProtocolError("array_above_max_length", text, param=f"{param}.content")
    for index, part in enumerate(body.content):
        item.parts.append(_parse_part(part, body.role, f"{param}.content[{index}]"))
    return item


def _parse_part(part: PartBody, role: Role, param: str) -> Part:
    kind = GA_PARTS.get(part.type, part.type) if role == "assistant" else part.type
    if kind not in _PARTS[role]:
        allowed = ", ".join(f"'{one}'" for one in sorted(_PARTS[role]))
        text = f"Invalid value: '{part.type[:80]}'. Supported values for role '{role}' are: {allowed}."
        raise ProtocolError("invalid_value", text, param=f"{param}.type")
    if kind.endswith("audio"):
        return Part(kind, part.transcript)
    return Part(kind, required(part.text, f"{param}.text"))


def required(value: str | None, param: str) -> str:
    """Raises ProtocolError for None."""
    if value is None:
        raise ProtocolError(
            "missing_required_parameter", f"Missing required parameter: '{param}'.", param=param
        )
    return value
