"""``events.md``: every event and field of the native wire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, get_args

from docs.generate.fields import fields_of, structs_in, summary_of
from docs.generate.page import Page, Row, Section
from voiceserver.events import events as ev
from voiceserver.wire import native

RATE: Final = {"type": "integer", "minimum": native.MIN_RATE_HZ, "maximum": native.MAX_RATE_HZ}
# The query of the upgrade: what each parameter may be, and what it means.
PARAMETERS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "rate": ({**RATE, "default": native.DEFAULT_RATE_HZ}, "Hz of your audio."),
    "reply_rate": (RATE, "Hz of the reply's audio. The default is the setting `session.output_rate_hz`."),
    "resume": (
        {"type": "string", "minLength": 1},
        "The `resume_token` of a `session.ready`: go on with that session.",
    ),
    "after": (
        {"type": "integer", "minimum": 0},
        "With `resume`: how many messages you have received. The server sends the others.",
    ),
}
CLIENT_NOTE: Final = "What a client may send."
SERVER_NOTE: Final = "What the server sends."
EVENT_ID: Final = "A name of your choice for this message. An `error` about the message brings it back."
HEADS: Final = ("field", "type", "default", "meaning")


def page() -> Page:
    client, server = get_args(ev.ClientEvent), get_args(ev.ServerEvent)
    heard = [kind for kind in server if kind is not ev.ReplyAudio]
    parts = structs_in(*client, *heard)
    return Page(
        "events",
        "Events of the native wire",
        "`voiceserver/events`",
        f"Connect a WebSocket to `{native.PATH}`. **Binary messages are audio**: PCM16, little-endian, mono, any whole number "
        "of samples up to `server.max_message_bytes`. **Text messages are JSON** objects with a `type`. Times that end in "
        "`at_ms` count on the clock of your audio. A server event leaves out a field that has its default, except where "
        "the event says otherwise. The server has the same for a machine, as AsyncAPI, at `/docs/asyncapi.json`.",
        [
            Section("Parameters of the address", "", HEADS, list(_parameters())),
            Section(
                "Client events",
                f"{CLIENT_NOTE} Each may have an `event_id`: {EVENT_ID[0].lower()}{EVENT_ID[1:]}",
            ),
            *map(_section, client),
            Section("Server events", f"{SERVER_NOTE} Binary messages are the audio of the reply."),
            *map(_section, heard),
            Section("Objects", "What fields of events are made of."),
            *(_section(kind, kind.__name__) for kind in parts),
        ],
    )


def _parameters() -> Iterator[Row]:
    for name, (kind, meaning) in PARAMETERS.items():
        least, most = kind.get("minimum"), kind.get("maximum")
        words = kind["type"]
        if least is not None:
            words += f", from {least} to {most}" if most is not None else f", at least {least}"
        yield f"`{name}`", words, _code(str(kind.get("default", ""))), meaning


def _section(kind: type, title: str = "") -> Section:
    config: Any = getattr(kind, "__struct_config__", None)
    text = summary_of(kind)
    if not title and not config.omit_defaults:
        text += "\n\nEvery field is sent, also at its default."
    rows = [
        (f"`{one.name}`", one.kind, "required" if one.is_required else _code(one.default), one.meaning)
        for one in fields_of(kind)
    ]
    return Section(title or f"`{config.tag}`", text, HEADS, rows, level=3)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
