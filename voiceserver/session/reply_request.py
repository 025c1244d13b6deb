"""What the reply stage is asked: the conversation, what the client wants of the answer, and what is known about the server."""

from __future__ import annotations

import msgspec

from voiceserver.events.events import HistoryItem, ReplyCreate
from voiceserver.session.history import chat_messages
from voiceserver.session.settings import ServerSnapshot, SessionOptions


def request_fields(
    turn: int, create: ReplyCreate, options: SessionOptions, history: tuple[HistoryItem, ...]
) -> dict[str, object]:
    """All that the answer follows from but the server's state. ``history``: unless the client gave its own items."""
    limit = create.max_output_tokens
    return {
        "turn": turn,
        "messages": chat_messages(history if create.items is None else create.items),
        "instructions": options.instructions if create.instructions is None else create.instructions,
        "tools": options.tools if create.tools is None else create.tools,
        "tool_choice": options.tool_choice if create.tool_choice is None else create.tool_choice,
        "max_output_tokens": options.max_output_tokens if limit is None else limit,
        "temperature": options.temperature if create.temperature is None else create.temperature,
        "language": options.language,
    }


def encode_request(fields: dict[str, object], server_snapshot: ServerSnapshot) -> bytes:
    return msgspec.json.encode({**fields, "context": server_snapshot})


def encode_again(request: bytes, turn: int) -> bytes:
    """The same request as one of ``turn``."""
    return msgspec.json.encode({**msgspec.json.decode(request, type=dict[str, msgspec.Raw]), "turn": turn})
