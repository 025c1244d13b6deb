"""About how many bytes of memory a session keeps, so that calls which nobody is connected to can be held to a bound.

It is counted as ``voiceserver.events.memory`` counts the values of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from voiceserver.events.memory import OBJECT_BYTES, create_bytes, item_bytes, text_bytes, tool_bytes

if TYPE_CHECKING:
    from voiceserver.session.reply import Reply
    from voiceserver.session.state import SessionState


def reply_bytes(reply: Reply) -> int:
    calls = sum(OBJECT_BYTES + text_bytes(call.arguments) for call in reply.tool_calls.values())
    return (
        len(reply.request)
        + text_bytes(reply.text)
        + sum(map(text_bytes, reply.words.spoken))
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
