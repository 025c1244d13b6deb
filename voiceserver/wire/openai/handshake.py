"""What the upgrade request of ``/v1/realtime`` says: dialect, kind of session, key, and the conversation to resume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from voiceserver.errors import ProtocolError
from voiceserver.events.events import TurnDetection
from voiceserver.events.fields import MAX_NAME
from voiceserver.wire.openai.codec import OpenAICodec
from voiceserver.wire.openai.dialect import Dialect
from voiceserver.wire.openai.items import Conversation
from voiceserver.wire.openai.settings import read_session
from voiceserver.wire.request import Wire, WireRequest

PATH: Final = "/v1/realtime"
SUBPROTOCOL: Final = "realtime"
_KEY_PREFIX: Final = "openai-insecure-api-key."
_BETA: Final = "realtime=v1"
_BETA_SUBPROTOCOL: Final = "openai-beta.realtime-v1"


class Request(msgspec.Struct, frozen=True):
    """``api_key`` is what a browser puts among its subprotocols, where it has no header to put it; "" for none."""

    dialect: Dialect = Dialect.GA
    model: str = ""
    is_transcription: bool = False
    has_vendor_events: bool = False
    conversation_id: str = ""
    subprotocol: str | None = None
    api_key: str = ""


def read_request(query: Mapping[str, str], beta_header: str = "", offered: Iterable[str] = ()) -> Request:
    """``beta_header``: of ``OpenAI-Beta``; ``offered``: the subprotocols. Parameters it does not know are passed over.
    Raises ProtocolError."""
    model = query.get("model") or query.get("deployment", "")  # as Azure calls it
    if len(model) > MAX_NAME:
        text = f"Invalid 'model': at most {MAX_NAME} characters, but got {len(model)}."
        raise ProtocolError("string_above_max_length", text, param="model")
    names = [name.strip() for name in offered]
    is_beta = _BETA in beta_header.replace(" ", "").split(",") or _BETA_SUBPROTOCOL in names
    keys = (name.removeprefix(_KEY_PREFIX) for name in names if name.startswith(_KEY_PREFIX))
    return Request(
        dialect=Dialect.BETA if is_beta else Dialect.GA,
        model=model,
        is_transcription=query.get("intent") == "transcription",
        has_vendor_events=query.get("vendor_events", "").lower() in ("1", "true"),
        conversation_id=query.get("conversation_id", ""),
        subprotocol=SUBPROTOCOL if SUBPROTOCOL in names else None,
        api_key=next(keys, ""),
    )


def codec_for(
    request: Request,
    seed: str,
    turn_detection: TurnDetection | None = None,
    voices: frozenset[str] = frozenset(),
    conversation: Conversation | None = None,
    session: bytes = b"",
) -> OpenAICodec:
    """A connection's codec. ``turn_detection``: the server's own, None without vad; ``session``: of its client token, as
    ``read_session`` takes it; the rest: see ``OpenAICodec``. Raises ProtocolError."""
    return OpenAICodec(
        seed,
        request.dialect,
        model=request.model,
        is_transcription=request.is_transcription,
        turn_detection=turn_detection,
        voices=voices,
        has_vendor_events=request.has_vendor_events,
        conversation=conversation,
        given=read_session(session, voices) if session else None,
        detects_turns=turn_detection is not None,
    )


def make_codec(request: WireRequest) -> OpenAICodec:
    headers = request.headers
    offered = ",".join(headers.get_all("Sec-WebSocket-Protocol")).split(",")
    asked = read_request(request.query, ",".join(headers.get_all("OpenAI-Beta")), offered)
    return codec_for(asked, request.seed, request.turn_detection, request.voices, session=request.session)


WIRE: Final = Wire(name="openai", paths=(PATH,), make_codec=make_codec)
