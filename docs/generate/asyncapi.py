"""The native wire as an AsyncAPI 3.0 document: one channel, one operation in each direction, one message per event.

A message named as its event type is text, JSON; ``audio.input`` and ``audio.reply`` are binary.
"""

from __future__ import annotations

from typing import Any, Final, get_args

from docs.generate.events import CLIENT_NOTE, EVENT_ID, PARAMETERS, SERVER_NOTE
from docs.generate.fields import summary_of
from docs.generate.schemas import Schema, components_of, plain, reference, version
from voiceserver.events import events as ev
from voiceserver.wire import native

CLIENT_EVENTS: Final[tuple[type, ...]] = get_args(ev.ClientEvent)
SERVER_EVENTS: Final[tuple[type, ...]] = tuple(
    kind for kind in get_args(ev.ServerEvent) if kind is not ev.ReplyAudio
)
AUDIO: Final = {
    "audio.input": "The caller's audio: PCM16, little-endian, mono, at `rate` Hz, any whole number of samples.",
    "audio.reply": "The audio of the reply: PCM16, little-endian, mono, at `output_rate_hz` of `session.ready`.",
}
Document = dict[str, Any]


def tag_of(kind: Any) -> str:
    return str(kind.__struct_config__.tag)


def document() -> Document:
    sent, received = _messages(CLIENT_EVENTS, "client"), _messages(SERVER_EVENTS, "server")
    audio = {name: _audio(name, text) for name, text in AUDIO.items()}
    messages = {**sent, "audio.input": audio["audio.input"], **received, "audio.reply": audio["audio.reply"]}
    names = {"receiveFromClient": [*sent, "audio.input"], "sendToClient": [*received, "audio.reply"]}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "voiceserver, the native wire",
            "version": version(),
            "description": "A voice conversation over one WebSocket. Binary messages are audio, text messages are JSON.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"local": {"host": "127.0.0.1:8765", "protocol": "ws"}},
        "channels": {
            "stream": {
                "address": native.PATH,
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET", "query": _query()}},
            }
        },
        "operations": {
            name: {
                "action": "receive" if name == "receiveFromClient" else "send",
                "channel": {"$ref": "#/channels/stream"},
                "summary": summary,
                "messages": [{"$ref": f"#/channels/stream/messages/{one}"} for one in names[name]],
            }
            for name, summary in (("receiveFromClient", CLIENT_NOTE), ("sendToClient", SERVER_NOTE))
        },
        "components": {"messages": messages, "schemas": _schemas()},
    }


def _messages(kinds: tuple[type, ...], side: str) -> dict[str, Schema]:
    """By name: the type of the event, with the side behind it where both sides have one of that type."""
    found: dict[str, Schema] = {}
    for kind in kinds:
        found[name_of(kind)] = {
            "name": tag_of(kind),
            "title": kind.__name__,
            "summary": plain(summary_of(kind)),
            "contentType": "application/json",
            "payload": reference(kind),
        }
    return found


def name_of(kind: type) -> str:
    """The key of the message of an event. ``input.digit`` exists in both directions."""
    return "input.digit.heard" if kind is ev.DigitHeard else tag_of(kind)


def _audio(name: str, text: str) -> Schema:
    return {
        "name": name,
        "summary": text,
        "contentType": "application/octet-stream",
        "payload": {"type": "string", "format": "binary"},
    }


def _schemas() -> dict[str, Schema]:
    schemas = components_of(*CLIENT_EVENTS, *SERVER_EVENTS)
    for kind in CLIENT_EVENTS:
        schema = schemas[kind.__name__]
        schema["properties"]["event_id"] = {"type": "string", "description": EVENT_ID}
        schema["additionalProperties"] = False  # an unknown field is an error, which names the nearest one
    return schemas


def _query() -> Schema:
    properties: dict[str, Schema] = {}
    for name, (kind, text) in PARAMETERS.items():
        properties[name] = {**kind, "description": text}
    return {"type": "object", "properties": properties, "additionalProperties": False}
