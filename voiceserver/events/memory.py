"""About how many bytes of memory the values of the vocabulary keep, so that what a client makes us keep can be bounded.

Quick to count, and rather too much than too little: the length of a text is known without reading it, and what a client's
JSON costs is taken from its length.
"""

from __future__ import annotations

from typing import Final

import msgspec

from voiceserver.events.events import HistoryItem, ReplyCreate, Tool

# Of an item, a sentence, a message: what is around its text.
OBJECT_BYTES: Final = 200
# Of a character in a text that is not all ASCII.
WIDEST_CHARACTER_BYTES: Final = 4
# What one byte of JSON becomes: 7 for usual tools, 28 for nothing but small objects.
BYTES_PER_JSON_BYTE: Final = 16


def text_bytes(text: str | None) -> int:
    return 0 if not text else len(text) if text.isascii() else len(text) * WIDEST_CHARACTER_BYTES


def item_bytes(item: HistoryItem) -> int:
    texts = (item.text, item.arguments, item.name, item.call_id, item.key)
    return OBJECT_BYTES + sum(map(text_bytes, texts))


def tool_bytes(tool: Tool) -> int:
    parameters = len(msgspec.json.encode(tool.parameters)) * BYTES_PER_JSON_BYTE if tool.parameters else 0
    return OBJECT_BYTES + text_bytes(tool.name) + text_bytes(tool.description) + parameters


def create_bytes(create: ReplyCreate) -> int:
    """What a client asked of one reply."""
    own = OBJECT_BYTES + text_bytes(create.instructions) + text_bytes(create.key)
    return own + sum(map(tool_bytes, create.tools or ())) + sum(map(item_bytes, create.items or ()))
