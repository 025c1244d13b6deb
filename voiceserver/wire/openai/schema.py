"""Every client event of the Realtime wire, both dialects in one schema. Rule: a wrong field is named by its path.

GA nests audio settings under ``audio``, beta has them flat; a session body may use either, whatever the dialect, because
clients in the field mix them. Unknown fields are passed over: stock clients send settings of other vendors' services.
``null`` means "not given" except where the wire gives it a meaning (turn detection, transcription, noise reduction).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import UNSET, UnsetType

from voiceserver.errors import ProtocolError
from voiceserver.events.fields import Language, ModelName, Padding, Silence, Temperature, ToolName, VoiceName
from voiceserver.wire.decoding import event_id_of, parameter_error, why_unreadable
from voiceserver.wire.openai.audio import MAX_AUDIO_BYTES as MAX_AUDIO_BYTES

Raw = msgspec.Raw
Positive = Annotated[int, msgspec.Meta(ge=0)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=4096)] | Literal["inf"] | None
ItemId = Annotated[str, msgspec.Meta(max_length=128)]
Modalities = list[Literal["text", "audio"]]

# What a transport must let through for an append: base64 of the above, and the JSON around it.
MAX_MESSAGE_BYTES: Final = MAX_AUDIO_BYTES // 3 * 4 + 65_536


class FormatBody(msgspec.Struct, frozen=True):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
    rate: int | None = None


class TranscriptionBody(msgspec.Struct, frozen=True, omit_defaults=True):
    model: ModelName | None = None
    language: Language | None = None
    prompt: str | None = None


class TurnDetectionBody(msgspec.Struct, frozen=True):
    """``server_vad`` and ``semantic_vad`` together; each ignores the other's fields."""

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    prefix_padding_ms: Padding | None = None
    silence_duration_ms: Silence | None = None
    idle_timeout_ms: Annotated[int, msgspec.Meta(ge=5_000, le=30_000)] | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None


class VoiceBody(msgspec.Struct, frozen=True):
    id: VoiceName


class AudioInputBody(msgspec.Struct, frozen=True):
    format: FormatBody | str | None = None
    transcription: TranscriptionBody | UnsetType | None = UNSET
    noise_reduction: Raw | UnsetType = UNSET
    turn_detection: TurnDetectionBody | UnsetType | None = UNSET


class AudioOutputBody(msgspec.Struct, frozen=True):
    format: FormatBody | str | None = None
    voice: VoiceName | VoiceBody | None = None
    speed: Annotated[float, msgspec.Meta(ge=0.25, le=1.5)] | None = None


class AudioBody(msgspec.Struct, frozen=True):
    input: AudioInputBody | None = None
    output: AudioOutputBody | None = None


class ToolBody(msgspec.Struct, frozen=True):
    name: ToolName
    type: Literal["function"] = "function"
    description: str | None = None
    parameters: dict[str, object] | None = None


class ToolChoiceBody(msgspec.Struct, frozen=True):
    type: Literal["function"]
    name: str


class ResumptionBody(msgspec.Struct, frozen=True):
    enabled: bool = False


class SessionBody(msgspec.Struct, frozen=True):
    type: Literal["realtime", "transcription"] | None = None
    model: ModelName | None = None
    instructions: str | None = None
    output_modalities: Modalities | None = None
    max_output_tokens: Tokens | UnsetType = UNSET
    tools: list[ToolBody] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoiceBody | None = None
    audio: AudioBody | None = None
    resumption: ResumptionBody | None = None
    # beta
    modalities: Modalities | None = None
    max_response_output_tokens: Tokens | UnsetType = UNSET
    temperature: Temperature | None = None
    voice: VoiceName | VoiceBody | None = None
    speed: Annotated[float, msgspec.Meta(ge=0.25, le=1.5)] | None = None
    input_audio_format: str | None = None
    output_audio_format: str | None = None
    input_audio_transcription: TranscriptionBody | UnsetType | None = UNSET
    input_audio_noise_reduction: Raw | UnsetType = UNSET
    turn_detection: TurnDetectionBody | UnsetType | None = UNSET
    # Kept and told back, without effect here.
    tracing: Raw | UnsetType = UNSET
    truncation: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET
    include: Raw | UnsetType = UNSET
    reasoning: Raw | UnsetType = UNSET
    parallel_tool_calls: bool | None = None


class PartBody(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None
    transcript: str | None = None
    audio: str | None = None


class ItemBody(msgspec.Struct, frozen=True):
    type: str
    id: ItemId | None = None
    role: Literal["user", "assistant", "system"] | None = None
    content: list[PartBody] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | None = None


class ResponseBody(msgspec.Struct, frozen=True):
    conversation: str | None = None
    input: list[ItemBody] | None = None
    instructions: str | None = None
    output_modalities: Modalities | None = None
    modalities: Modalities | None = None
    max_output_tokens: Tokens | UnsetType = UNSET
    max_response_output_tokens: Tokens | UnsetType = UNSET
    temperature: Temperature | None = None
    tools: list[ToolBody] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoiceBody | None = None
    metadata: dict[str, str] | None = None
    audio: AudioBody | None = None
    voice: VoiceName | VoiceBody | None = None
    output_audio_format: str | None = None


class _Event(msgspec.Struct, frozen=True, tag_field="type"):
    event_id: str | None = None


class SessionUpdateEvent(_Event, frozen=True, kw_only=True, tag="session.update"):
    session: SessionBody


class TranscriptionSessionUpdateEvent(_Event, frozen=True, kw_only=True, tag="transcription_session.update"):
    session: SessionBody


class AppendEvent(_Event, frozen=True, kw_only=True, gc=False, tag="input_audio_buffer.append"):
    audio: str


class CommitEvent(_Event, frozen=True, tag="input_audio_buffer.commit"):
    pass


class ClearEvent(_Event, frozen=True, tag="input_audio_buffer.clear"):
    pass


class ItemCreateEvent(_Event, frozen=True, kw_only=True, tag="conversation.item.create"):
    item: ItemBody
    previous_item_id: str | None = None


class ItemRetrieveEvent(_Event, frozen=True, kw_only=True, tag="conversation.item.retrieve"):
    item_id: str


class ItemDeleteEvent(_Event, frozen=True, kw_only=True, tag="conversation.item.delete"):
    item_id: str


class ItemTruncateEvent(_Event, frozen=True, kw_only=True, tag="conversation.item.truncate"):
    item_id: str
    content_index: Positive
    audio_end_ms: Positive


class ResponseCreateEvent(_Event, frozen=True, tag="response.create"):
    response: ResponseBody | None = None


class ResponseCancelEvent(_Event, frozen=True, tag="response.cancel"):
    response_id: str | None = None


class OutputClearEvent(_Event, frozen=True, tag="output_audio_buffer.clear"):
    pass


WireEvent = (
    SessionUpdateEvent
    | TranscriptionSessionUpdateEvent
    | AppendEvent
    | CommitEvent
    | ClearEvent
    | ItemCreateEvent
    | ItemRetrieveEvent
    | ItemDeleteEvent
    | ItemTruncateEvent
    | ResponseCreateEvent
    | ResponseCancelEvent
    | OutputClearEvent
)


class _Envelope(msgspec.Struct):
    type: str = ""


_BY_TYPE: Final[dict[str, type]] = {str(kind.__struct_config__.tag): kind for kind in get_args(WireEvent)}
_decoder: Final[msgspec.json.Decoder[WireEvent]] = msgspec.json.Decoder(WireEvent)
_decode: Final = _decoder.decode
_decode_envelope: Final = msgspec.json.Decoder(_Envelope).decode


def decode_event(message: bytes) -> WireEvent:  # hot
    """The client event in ``message``. Raises ProtocolError that names the field and carries the event's id."""
    try:
        return _decode(message)
    except msgspec.ValidationError as error:
        raise parameter_error(error, _kind_of(message), event_id_of(message), tuple(_BY_TYPE)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = why_unreadable(error, message)
        raise ProtocolError("invalid_json", f"The event is not valid JSON: {reason}.") from None


def _kind_of(message: bytes) -> type:
    try:
        return _BY_TYPE.get(_decode_envelope(message).type, _Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Envelope
