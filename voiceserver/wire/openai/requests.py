"""What a ``response.create`` asks for, in neutral words. Rule: an input item is named by its index when it is wrong."""

from __future__ import annotations

from typing import Final

import msgspec

from voiceserver.errors import ProtocolError
from voiceserver.events.events import HistoryItem, ReplyCreate
from voiceserver.events.tools import check_choice, check_tools
from voiceserver.wire.openai.items import Conversation, parse_item, required
from voiceserver.wire.openai.responses import ResponseOptions
from voiceserver.wire.openai.schema import ItemBody, ResponseBody
from voiceserver.wire.openai.settings import (
    WireSettings,
    neutral_tokens,
    neutral_tool_choice,
    neutral_tools,
    read_modalities,
)

MAX_INPUT_ITEMS: Final = 500  # of one response.create; each is work for everybody's loop
MAX_METADATA: Final = 16  # pairs
MAX_METADATA_KEY: Final = 64  # characters
MAX_METADATA_VALUE: Final = 512


def read_create(
    body: ResponseBody, response_id: str, settings: WireSettings, conversation: Conversation
) -> tuple[ReplyCreate, ResponseOptions]:
    """The neutral event, under the id of the response to come, and what its frames will need."""
    is_given = body.max_output_tokens is not msgspec.UNSET
    tokens = neutral_tokens(body.max_output_tokens if is_given else body.max_response_output_tokens)
    speaks = read_modalities(body, "response")
    if body.metadata:
        _check_metadata(body.metadata)
    tools = settings.tools if body.tools is None else body.tools
    if body.tools is not None:
        check_tools(tools, "response.tools")
    if body.tool_choice is not None:
        check_choice(neutral_tool_choice(body.tool_choice), tools, "response.tool_choice")
    options = ResponseOptions(settings)
    options.is_out_of_band = body.conversation == "none"
    options.metadata = body.metadata
    if speaks is not None:
        options.speaks = speaks
    if tokens is not None:
        options.max_output_tokens = tokens
    create = ReplyCreate(
        key=response_id,
        instructions=body.instructions,
        speaks=speaks,
        tools=None if body.tools is None else neutral_tools(body.tools),
        tool_choice=None if body.tool_choice is None else neutral_tool_choice(body.tool_choice),
        max_output_tokens=tokens,
        temperature=body.temperature,
        is_out_of_band=options.is_out_of_band,
        items=None if body.input is None else _items(body.input, conversation),
    )
    return create, options


def _items(bodies: list[ItemBody], conversation: Conversation) -> tuple[HistoryItem, ...]:
    if len(bodies) > MAX_INPUT_ITEMS:
        text = f"Invalid 'response.input': array too long. Expected at most {MAX_INPUT_ITEMS} items, but got {len(bodies)}."
        raise ProtocolError("array_above_max_length", text, param="response.input")
    return tuple(_item(one, index, conversation) for index, one in enumerate(bodies))


def _check_metadata(metadata: dict[str, str]) -> None:
    wrong = ""
    if len(metadata) > MAX_METADATA:
        wrong = f"at most {MAX_METADATA} pairs, but got {len(metadata)}"
    elif any(len(key) > MAX_METADATA_KEY for key in metadata):
        wrong = f"a key may have at most {MAX_METADATA_KEY} characters"
    elif any(len(value) > MAX_METADATA_VALUE for value in metadata.values()):
        wrong = f"a value may have at most {MAX_METADATA_VALUE} characters"
    if wrong:
        param = "response.metadata"
        raise ProtocolError("invalid_value", f"Invalid '{param}': {wrong}.", param=param)


def _item(body: ItemBody, index: int, conversation: Conversation) -> HistoryItem:
    param = f"response.input[{index}]"
    if body.type == "item_reference":
        found = conversation.get(required(body.id, f"{param}.id"))
        if found is None:
            text = f"Item with id '{(body.id or '')[:80]}' not found."
            raise ProtocolError("invalid_value", text, param=f"{param}.id")
        return found.to_history()
    item = parse_item(body, body.id or f"input_{index}", param)
    if any(part.kind == "input_audio" and part.text is None for part in item.parts):
        text = "Audio in a response's input needs a transcript."
        raise ProtocolError("invalid_value", text, param=f"{param}.content")
    return item.to_history()
