"""A session's request as the body of a chat-completions call. Pure: no client, no loop.

Endpoints refuse a conversation whose tool calls and their answers do not match, and ours can be cut anywhere (a barge-in,
the history's limit). So each call goes with its answer right behind it, and what lacks its other half stays out.
"""

from __future__ import annotations

from voiceserver.pool.chat.config import ChatConfig
from voiceserver_workers.ipc.messages import ReplyMessage, ReplyRequest, encode

_TOOL_CHOICES = ("auto", "none", "required")


def is_unheard(request: ReplyRequest) -> bool:
    """The caller's turn had no words in it: nothing to ask anybody."""
    last = request.messages[-1] if request.messages else None
    return last is not None and last.role == "user" and not last.text.strip()


def request_body(request: ReplyRequest, config: ChatConfig) -> bytes:
    system = config.system or request.instructions
    messages = [ReplyMessage(role="system", content=system)] if system.strip() else []
    body: dict[str, object] = {
        "messages": [*messages, *_matched(request.messages)],
        "stream": True,
    }
    if config.model:
        body["model"] = config.model
    if config.asks_usage:
        body["stream_options"] = {"include_usage": True}
    temperature = config.temperature if request.temperature is None else request.temperature
    if temperature >= 0.0:
        body["temperature"] = temperature
    limit = config.max_tokens if request.max_output_tokens is None else request.max_output_tokens
    if limit >= 0:
        body[config.max_tokens_field] = limit
    if request.tools:
        body["tools"] = [{"type": "function", "function": tool} for tool in request.tools]
        if request.tool_choice in _TOOL_CHOICES:
            body["tool_choice"] = request.tool_choice
        elif request.tool_choice:
            body["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice}}
    return encode(body)


def _matched(messages: list[ReplyMessage]) -> list[ReplyMessage]:
    answers = {one.tool_call_id: one for one in messages if one.role == "tool" and one.tool_call_id}
    matched: list[ReplyMessage] = []
    for message in messages:
        if message.role == "tool":
            continue
        if message.tool_calls:
            calls = [call for call in message.tool_calls if call.id in answers]
            if calls:
                matched.append(ReplyMessage(role="assistant", content=message.content, tool_calls=calls))
                matched += [answers[call.id] for call in calls]
        elif message.text.strip():
            matched.append(message)
    return matched
