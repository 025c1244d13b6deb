"""The native wire, ``/v1/stream``: binary messages are PCM16, text messages are the neutral events as JSON.

It has no state of its own, so all connections with the same rates share one codec. A text message is an object with
``type`` and the fields of that event in ``voiceserver.events.events``; ``event_id``, if given, comes back in an error about it.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from typing import Final, get_args

import msgspec

from voiceserver.errors import ProtocolError
from voiceserver.events import events
from voiceserver.events.events import (
    ClientEvent,
    ErrorEvent,
    ItemAppend,
    ReplyAudio,
    ReplyCreate,
    ServerEvent,
)
from voiceserver.wire import Audio, Codec, CodecTraits, Frame, Received
from voiceserver.wire.decoding import field_error, why_unreadable
from voiceserver.wire.request import Wire, WireRequest

SUBPROTOCOL: Final = "voiceserver"  # for pages that put their key among the subprotocols
PATH: Final = "/v1/stream"
MIN_RATE_HZ: Final = 8_000
MAX_RATE_HZ: Final = 48_000
DEFAULT_RATE_HZ: Final = 16_000
PARAMETERS: Final = ("rate", "reply_rate", "resume", "after")

_BY_TYPE: Final[Mapping[str, type[msgspec.Struct]]] = {
    str(kind.__struct_config__.tag): kind for kind in get_args(events.ClientEvent)
}
_ENVELOPE: Final = ("type", "event_id")
_objects: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_events: Final[msgspec.json.Decoder[ClientEvent]] = msgspec.json.Decoder(ClientEvent)
_encode: Final = msgspec.json.Encoder().encode


class NativeCodec(Codec):
    """Immutable; ``codec_for`` shares it."""

    __slots__ = ("input_rate_hz", "output_rate_hz")

    traits = CodecTraits(
        name="native",
        subprotocol=SUBPROTOCOL,
        binary_is_pcm=True,
        is_shared=True,
        plays_earcons=True,
        resume_parameter="resume",
        after_parameter="after",
        rate_parameter="rate",
    )
    is_resumable = True

    def __init__(self, input_rate_hz: int, output_rate_hz: int) -> None:
        self.input_rate_hz = input_rate_hz
        self.output_rate_hz = output_rate_hz

    def receive_binary(self, message: bytes) -> Received:  # hot
        """PCM16. Raises ProtocolError ``audio_misaligned`` for half a sample; nothing of the message is used."""
        if len(message) & 1:
            raise ProtocolError(
                "audio_misaligned",
                f"A binary message must be whole 16-bit samples; this one has {len(message)} bytes. It was not used.",
            )
        return [Audio(message)] if message else []

    def receive_text(self, message: bytes) -> Received:
        """One JSON event. Raises ProtocolError that names the field and what is allowed."""
        try:
            fields = _objects.decode(message)
        except msgspec.ValidationError:
            raise ProtocolError(
                "invalid_event", "A text message must be a JSON object with a 'type'."
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = why_unreadable(error, message)
            raise ProtocolError("invalid_json", f"A text message must be JSON: {reason}.") from None
        event_id = _text_field(fields, "event_id", None)
        kind = _kind_of(fields, event_id)
        _check_names(kind, fields, event_id)
        try:
            event = _events.decode(message)
        except msgspec.ValidationError as error:
            raise field_error(error, kind, event_id) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = why_unreadable(error, message)
            raise ProtocolError(
                "invalid_json", f"The event must be JSON: {reason}.", event_id=event_id
            ) from None
        _check_items(event, event_id)
        return [event]

    def encode(self, event: ServerEvent) -> list[Frame]:  # hot
        if type(event) is ReplyAudio:
            return [event.pcm]
        return [_encode(event).decode()]

    def encode_protocol_error(self, error: ProtocolError) -> list[Frame]:
        return self.encode(
            ErrorEvent(code=error.code, message=str(error), param=error.param, event_id=error.event_id)
        )


@functools.lru_cache(maxsize=256)
def codec_for(input_rate_hz: int, output_rate_hz: int) -> NativeCodec:
    return NativeCodec(input_rate_hz, output_rate_hz)


def codec_from_query(query: Mapping[str, str], default_reply_rate_hz: int) -> NativeCodec:
    """The codec that ``?rate=16000&reply_rate=24000`` asks for. Raises ProtocolError for anything else."""
    for name in query:
        if name not in PARAMETERS:
            raise ProtocolError(
                "unknown_parameter",
                _not_one_of(f"parameter {name[:80]!r}", name, PARAMETERS),
                param=name[:80],
            )
    if query.get("resume") == "":
        message = "resume must be the resume_token of a session.ready, and is empty; leave it out for a new session."
        raise ProtocolError("bad_parameter", message, param="resume")
    if "after" in query and "resume" not in query:
        message = "after says what a resumed caller has received, so it needs resume=TOKEN beside it."
        raise ProtocolError("bad_parameter", message, param="after")
    return codec_for(
        _rate(query, "rate", DEFAULT_RATE_HZ),
        _rate(query, "reply_rate", default_reply_rate_hz),
    )


def make_codec(request: WireRequest) -> NativeCodec:
    return codec_from_query(request.query, request.config.session.output_rate_hz)


WIRE: Final = Wire(name="native", paths=(PATH,), make_codec=make_codec)


def _rate(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) <= 6 and MIN_RATE_HZ <= int(text) <= MAX_RATE_HZ:
        return int(text)
    raise ProtocolError(
        "unsupported_rate",
        f"{name} must be a whole number of Hz from {MIN_RATE_HZ} to {MAX_RATE_HZ}, not {text[:40]!r}.",
        param=name,
    )


def _kind_of(fields: Mapping[str, msgspec.Raw], event_id: str | None) -> type[msgspec.Struct]:
    name = _text_field(fields, "type", event_id)
    if name is None:
        raise ProtocolError(
            "missing_field", f"'type' is missing; it is one of {_listed(_BY_TYPE)}.", param="type"
        )
    kind = _BY_TYPE.get(name)
    if kind is None:
        raise ProtocolError(
            "unknown_type",
            _not_one_of(f"type {name[:80]!r}", name, _BY_TYPE),
            param="type",
            event_id=event_id,
        )
    return kind


def _check_names(kind: type[msgspec.Struct], fields: Mapping[str, msgspec.Raw], event_id: str | None) -> None:
    allowed = (*_ENVELOPE, *kind.__struct_encode_fields__)
    for name in fields:
        if name not in allowed:
            message = _not_one_of(f"field {name[:80]!r}", name, allowed)
            raise ProtocolError("unknown_field", message, param=name[:80], event_id=event_id)


def _text_field(fields: Mapping[str, msgspec.Raw], name: str, event_id: str | None) -> str | None:
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ProtocolError(
            "invalid_field", f"{name!r} must be a string.", param=name, event_id=event_id
        ) from None


def _check_items(event: ClientEvent, event_id: str | None) -> None:
    """What the fields of an item from a client have to be together."""
    if isinstance(event, ItemAppend):
        items = [("item", event.item)]
    elif isinstance(event, ReplyCreate) and event.items:
        items = [(f"items[{index}]", item) for index, item in enumerate(event.items)]
    else:
        return
    for where, item in items:
        if item.turn:
            path = f"{where}.turn"
            message = f"{path!r}: only what was said has a turn; leave it out, or 0."
            raise ProtocolError("invalid_field", message, param=path, event_id=event_id)
        needed = ""
        if item.role == "tool" and not item.call_id:
            needed, why = "call_id", "An item of role tool answers a call"
        elif item.role == "assistant" and item.call_id and not item.name:
            needed, why = "name", "An item of role assistant with a call_id calls a tool"
        if needed:
            path = f"{where}.{needed}"
            raise ProtocolError(
                "missing_field", f"{path!r} is missing: {why}.", param=path, event_id=event_id
            )


def _not_one_of(what: str, name: str, allowed: Mapping[str, object] | tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(name[:80], list(allowed), n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"There is no {what}.{hint} Allowed: {_listed(allowed)}."


def _listed(names: Mapping[str, object] | tuple[str, ...]) -> str:
    return ", ".join(names)
