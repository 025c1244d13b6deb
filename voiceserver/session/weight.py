"""About how many bytes of memory a session keeps, so that calls which nobody is connected to can be held to a bound.

Quick to count, and rather too much than too little: the length of a text is known without reading it, and what a client's
JSON costs is taken from its length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from voiceserver.events.events import HistoryItem, ReplyCreate, Tool

if TYPE_CHECKING:
    from voiceserver.session.reply import Reply
    from voiceserver.session.state import SessionState

OBJECT_BYTES: Final = 200  # of an item, a sentence, a message: what is around its text
WIDEST: Final = 4  # bytes of a character in a text that is not all ASCII
OF_JSON: Final = 16  # bytes that one byte of JSON becomes: 7 of usual tools, 28 of nothing but small objects


def text_bytes(text: str | None) -> int:
    return 0 if not text else len(text) if text.isascii() else len(text) * WIDEST


def item_bytes(item: HistoryItem) -> int:
    texts = (item.text, item.arguments, item.name, item.call_id, item.key)
    return OBJECT_BYTES + sum(map(text_bytes, texts))


def tool_bytes(tool: Tool) -> int:
    parameters = len(msgspec.json.encode(tool.parameters)) * OF_JSON if tool.parameters else 0
    return OBJECT_BYTES + text_bytes(tool.name) + text_bytes(tool.description) + parameters


def create_bytes(create: ReplyCreate) -> int:
    """What a client asked of one reply."""
    own = OBJECT_BYTES + text_bytes(create.instructions) + text_bytes(create.key)
    return own + sum(map(tool_bytes, create.tools or ())) + sum(map(item_bytes, create.items or ()))


def reply_bytes(reply: Reply) -> int:
    calls = sum(OBJECT_BYTES + text_bytes(call.arguments) for call in reply.tool_calls.values())
    return (
        len(reply.request)
        + text_bytes(reply.text)
        + reply.say.memory_bytes
        + calls
        + create_bytes(reply.create)
    )


def session_bytes(session: SessionState) -> int:
    """Audio, conversation, instructions and tools, and the replies that are made, wait or may yet go on. What all sessions
    share is not counted."""
    total = 0
    if session.audio_input is not None:
        total += session.audio_input.outbox.memory_bytes + session.audio_input.capture.memory_bytes
    options, common = session.options, session.settings.options
    if options.instructions is not common.instructions:
        total += text_bytes(options.instructions)
    if options.tools is not common.tools:
        total += sum(map(tool_bytes, options.tools))
    total += sum(map(create_bytes, session.queue or ()))
    if session.preemptive_reply is not None:
        held = sum(OBJECT_BYTES + len(record.payload) for _, record in session.preemptive_reply.held)
        total += (
            session.preemptive_reply.ask.memory_bytes
            + len(session.preemptive_reply.request_key.request)
            + held
        )
    if session.has_speech_output:
        total += sum(map(item_bytes, session.speech_output.history.items))
        replies = {id(reply): reply for reply in session.speech_output.kept_replies}
        if session.interrupted is not None:
            replies[id(session.interrupted.reply)] = session.interrupted.reply
        total += sum(map(reply_bytes, replies.values()))
    return total
