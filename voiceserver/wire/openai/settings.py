"""The session object of the wire: what a ``session.update`` changes, what the session is told of it, how it is shown.

Rule: ``WireSettings`` is immutable; an update that is refused has changed nothing.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from voiceserver.errors import ProtocolError
from voiceserver.events.events import SessionUpdate, Tool, TurnDetection
from voiceserver.events.tools import MAX_DEPTH, check_choice, check_tools, is_choice, is_too_deep
from voiceserver.events.voices import near_voices
from voiceserver.wire.decoding import parameter_error
from voiceserver.wire.openai.audio import FORMATS_BY_NAME, AudioFormat
from voiceserver.wire.openai.errors import code_of
from voiceserver.wire.openai.schema import (
    AudioInputBody,
    AudioOutputBody,
    FormatBody,
    Raw,
    ResponseBody,
    SessionBody,
    ToolBody,
    ToolChoiceBody,
    TranscriptionBody,
    TurnDetectionBody,
    VoiceBody,
)

# Names of the service's own voices. Clients send them by default; unless an engine here has a voice of that name they
# mean "whatever this server speaks with".
PRESET_VOICES: Final = frozenset(
    (
        "alloy",
        "ash",
        "ballad",
        "coral",
        "echo",
        "sage",
        "shimmer",
        "verse",
        "marin",
        "cedar",
        "fable",
        "nova",
        "onyx",
    )
)
# semantic_vad: silence that ends a turn, and how long a turn that sounds unfinished may stay open.
EAGERNESS: Final = {"low": (1_000, 8_000), "medium": (500, 4_000), "auto": (500, 4_000), "high": (300, 2_000)}
_PASSIVE: Final = ("tracing", "truncation", "prompt", "include", "reasoning")


class WireSettings(msgspec.Struct, frozen=True):
    """One connection's session as the client sees it. ``base``: the server's own turn detection."""

    base: TurnDetection = TurnDetection()
    kind: Literal["realtime", "transcription"] = "realtime"
    model: str = ""
    instructions: str = ""
    speaks: bool = True
    tools: tuple[ToolBody, ...] = ()
    tool_choice: str | ToolChoiceBody = "auto"
    max_output_tokens: int | None = None
    temperature: float = 0.8
    input_format: AudioFormat = AudioFormat.PCM
    output_format: AudioFormat = AudioFormat.PCM
    transcription: TranscriptionBody | None = TranscriptionBody()
    noise_reduction: Raw | None = None
    turn_detection: TurnDetectionBody | None = TurnDetectionBody()
    voice: str = "alloy"
    speed: float = 1.0
    resumes: bool = False
    passive: dict[str, Raw | bool] = {}

    @property
    def is_transcription(self) -> bool:
        return self.kind == "transcription"


def parse_format(named: FormatBody | str | None, param: str) -> AudioFormat | None:
    """Raises ProtocolError for a format or rate that is not on this wire."""
    if named is None:
        return None
    name = named if isinstance(named, str) else named.type
    found = FORMATS_BY_NAME.get(name)
    if found is None:
        allowed = ", ".join(f"'{one}'" for one in FORMATS_BY_NAME)
        raise ProtocolError(
            "invalid_value", f"Invalid value: '{name[:80]}'. Supported values are: {allowed}.", param=param
        )
    if isinstance(named, FormatBody) and named.rate not in (None, found.rate_hz):
        text = f"Invalid value: {named.rate}. Supported values are: {found.rate_hz}."
        raise ProtocolError("invalid_value", text, param=f"{param}.rate")
    return found


def voice_name(voice: str | VoiceBody | None) -> str | None:
    return voice.id if isinstance(voice, VoiceBody) else voice


def read_modalities(body: SessionBody | ResponseBody, scope: str) -> bool | None:
    """Whether audio is wanted; None where nothing is said of it. Raises ProtocolError for none at all."""
    name = "modalities" if body.output_modalities is None else "output_modalities"
    wanted = body.modalities if body.output_modalities is None else body.output_modalities
    if wanted is None:
        return None
    if not wanted:
        param = f"{scope}.{name}"
        text = f"Invalid '{param}': expected at least one of 'text' and 'audio'."
        raise ProtocolError("invalid_value", text, param=param)
    return "audio" in wanted


def neutral_tools(tools: tuple[ToolBody, ...] | list[ToolBody]) -> tuple[Tool, ...]:
    return tuple(Tool(tool.name, tool.description or "", tool.parameters or {}) for tool in tools)


def neutral_tool_choice(choice: str | ToolChoiceBody) -> str:
    """``auto``, ``none``, ``required``, or the name of the one function to call."""
    return choice.name if isinstance(choice, ToolChoiceBody) else choice


def neutral_tokens(tokens: int | str | UnsetType | None) -> int | None:
    return tokens if isinstance(tokens, int) else None


def neutral_detection(body: TurnDetectionBody | None, base: TurnDetection) -> TurnDetection | None:
    """What this server's endpointing is told; what the client left out is the server's own."""
    if body is None:
        return None
    creates = body.create_response is not False
    interrupts = body.interrupt_response is not False
    if body.type == "semantic_vad":
        silence_ms, max_silence_ms = EAGERNESS[body.eagerness or "auto"]
        return msgspec.structs.replace(
            base,
            silence_duration_ms=silence_ms,
            max_silence_ms=max_silence_ms,
            min_silence_ms=min(base.min_silence_ms, max_silence_ms),
            creates_reply=creates,
            interrupts_reply=interrupts,
        )
    return msgspec.structs.replace(
        base,
        threshold=base.threshold if body.threshold is None else body.threshold,
        prefix_padding_ms=base.prefix_padding_ms
        if body.prefix_padding_ms is None
        else body.prefix_padding_ms,
        silence_duration_ms=base.silence_duration_ms
        if body.silence_duration_ms is None
        else body.silence_duration_ms,
        idle_timeout_ms=body.idle_timeout_ms,
        creates_reply=creates,
        interrupts_reply=interrupts,
    )


def apply(
    settings: WireSettings, body: SessionBody, voices: frozenset[str]
) -> tuple[WireSettings, dict[str, object]]:
    """The settings after ``body``, and the fields of a neutral ``SessionUpdate`` that say what changed."""
    changes: dict[str, object] = {}
    update: dict[str, object] = {}
    _apply_reply(settings, body, changes, update)
    _apply_audio(settings, body, changes, update, voices)
    if body.type is not None and body.type != settings.kind:
        changes["kind"] = body.type
        update["replies"] = body.type == "realtime"
    if body.model is not None:
        changes["model"] = body.model
    if body.resumption is not None:
        changes["resumes"] = body.resumption.enabled
    passive: dict[str, Raw | bool] = {
        name: _kept(value, name) for name in _PASSIVE if (value := getattr(body, name)) is not UNSET
    }
    if body.parallel_tool_calls is not None:
        passive["parallel_tool_calls"] = body.parallel_tool_calls
    if passive:
        changes["passive"] = settings.passive | passive
    return msgspec.structs.replace(settings, **changes), update


def _kept(value: Raw, name: str) -> Raw:
    """A copy, for a Raw is a view into the whole message. What could not be told back is refused: a Raw was not decoded."""
    param, text = f"session.{name}", bytes(value)
    try:
        text.decode()
        is_deep = text.count(b"[") + text.count(b"{") > MAX_DEPTH and is_too_deep(msgspec.json.decode(text))
    except UnicodeDecodeError:
        raise ProtocolError("invalid_json", "The event is not UTF-8.", param=param) from None
    except RecursionError:
        is_deep = True
    if is_deep:
        message = f"Invalid '{param}': nested too deep, at most {MAX_DEPTH} levels."
        raise ProtocolError("invalid_value", message, param=param)
    return value.copy()


def _apply_reply(
    settings: WireSettings, body: SessionBody, changes: dict[str, object], update: dict[str, object]
) -> None:
    if body.instructions is not None:
        changes["instructions"] = update["instructions"] = body.instructions
    speaks = read_modalities(body, "session")
    if speaks is not None:
        changes["speaks"] = update["speaks"] = speaks
    tools = settings.tools if body.tools is None else tuple(body.tools)
    if body.tools is not None:
        check_tools(tools, "session.tools")
        changes["tools"] = tools
        update["tools"] = neutral_tools(tools)
    if body.tool_choice is not None:
        choice = neutral_tool_choice(body.tool_choice)
        check_choice(choice, tools, "session.tool_choice")
        changes["tool_choice"] = body.tool_choice
        update["tool_choice"] = choice
    elif not is_choice(neutral_tool_choice(settings.tool_choice), tools):  # that tool is gone
        changes["tool_choice"] = update["tool_choice"] = "auto"
    tokens = (
        body.max_output_tokens if body.max_output_tokens is not UNSET else body.max_response_output_tokens
    )
    if tokens is not UNSET and tokens is not None:
        changes["max_output_tokens"] = update["max_output_tokens"] = neutral_tokens(tokens)
    if body.temperature is not None:
        changes["temperature"] = update["temperature"] = body.temperature


def _apply_audio(
    settings: WireSettings,
    body: SessionBody,
    changes: dict[str, object],
    update: dict[str, object],
    voices: frozenset[str],
) -> None:
    heard = (body.audio.input if body.audio is not None else None) or AudioInputBody()
    spoken = (body.audio.output if body.audio is not None else None) or AudioOutputBody()
    formats = (
        ("input", parse_format(heard.format, "session.audio.input.format")),
        ("input", parse_format(body.input_audio_format, "session.input_audio_format")),
        ("output", parse_format(spoken.format, "session.audio.output.format")),
        ("output", parse_format(body.output_audio_format, "session.output_audio_format")),
    )
    for side, wanted in formats:
        if wanted is not None:
            changes[f"{side}_format"] = wanted
    detection = heard.turn_detection if heard.turn_detection is not UNSET else body.turn_detection
    if detection is not UNSET:
        changes["turn_detection"] = detection
        update["turn_detection"] = neutral_detection(detection, settings.base)
    transcription = (
        heard.transcription if heard.transcription is not UNSET else body.input_audio_transcription
    )
    if transcription is not UNSET:
        changes["transcription"] = transcription
        update["transcribes"] = transcription is not None
        if transcription is not None and transcription.language is not None:
            update["language"] = transcription.language
    noise = heard.noise_reduction if heard.noise_reduction is not UNSET else body.input_audio_noise_reduction
    if noise is not UNSET:
        changes["noise_reduction"] = _kept(noise, "audio.input.noise_reduction")
    voice = voice_name(spoken.voice) or voice_name(body.voice)
    if voice is not None and voice != settings.voice:
        check_voice(voice, voices, "session.voice" if spoken.voice is None else "session.audio.output.voice")
        changes["voice"] = voice
        update["voice"] = "" if voice in PRESET_VOICES and voice not in voices else voice
    speed = spoken.speed if spoken.speed is not None else body.speed
    if speed is not None:
        changes["speed"] = update["speed"] = speed


def check_voice(voice: str, voices: frozenset[str], param: str) -> None:
    """Raises ProtocolError for one that neither the speech engine nor the service knows."""
    near = None if voice in PRESET_VOICES else near_voices(voice, voices)
    if near is None:
        return
    shown = ", ".join(f"'{one}'" for one in [*near, *sorted(PRESET_VOICES)])
    raise ProtocolError(
        "invalid_value", f"Invalid value: '{voice[:80]}'. Supported values are: {shown}.", param=param
    )


def to_update(fields: dict[str, object]) -> SessionUpdate:
    return SessionUpdate(**fields)  # type: ignore[arg-type]  # fields are made by ``apply`` alone


def describe_tools(settings: WireSettings) -> list[dict[str, object]]:
    return [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description or "",
            "parameters": tool.parameters or {},
        }
        for tool in settings.tools
    ]


def describe_detection(settings: WireSettings) -> dict[str, object] | None:
    body, base = settings.turn_detection, settings.base
    if body is None:
        return None
    answers: dict[str, object] = {}
    if not settings.is_transcription:
        answers["create_response"] = body.create_response is not False
        answers["interrupt_response"] = body.interrupt_response is not False
    if body.type == "semantic_vad":
        return {"type": "semantic_vad", "eagerness": body.eagerness or "auto", **answers}
    shown = neutral_detection(body, base) or base
    return {
        "type": "server_vad",
        "threshold": shown.threshold,
        "prefix_padding_ms": shown.prefix_padding_ms,
        "silence_duration_ms": shown.silence_duration_ms,
        "idle_timeout_ms": shown.idle_timeout_ms,
        **answers,
    }


def describe_modalities(speaks: bool, is_beta: bool) -> list[str]:
    if not speaks:
        return ["text"]
    return ["audio", "text"] if is_beta else ["audio"]


def describe_session(settings: WireSettings, session_id: str, is_beta: bool) -> dict[str, object]:
    """The ``session`` object of ``session.created`` and ``session.updated``."""
    if is_beta:
        return _describe_beta(settings, session_id)
    heard: dict[str, object] = {
        "format": settings.input_format.describe(),
        "transcription": settings.transcription,
        "noise_reduction": settings.noise_reduction,
        "turn_detection": describe_detection(settings),
    }
    shown: dict[str, object] = {"type": settings.kind, "id": session_id}
    if settings.is_transcription:
        return {**shown, "object": "realtime.transcription_session", "audio": {"input": heard}}
    spoken = {"format": settings.output_format.describe(), "voice": settings.voice, "speed": settings.speed}
    return {
        **shown,
        "object": "realtime.session",
        "model": settings.model,
        "output_modalities": describe_modalities(settings.speaks, is_beta),
        "instructions": settings.instructions,
        "tools": describe_tools(settings),
        "tool_choice": settings.tool_choice,
        "max_output_tokens": settings.max_output_tokens or "inf",
        "audio": {"input": heard, "output": spoken},
        **({"resumption": {"enabled": True}} if settings.resumes else {}),
        **settings.passive,
    }


def _describe_beta(settings: WireSettings, session_id: str) -> dict[str, object]:
    heard: dict[str, object] = {
        "id": session_id,
        "input_audio_format": settings.input_format.beta_name,
        "input_audio_transcription": settings.transcription,
        "input_audio_noise_reduction": settings.noise_reduction,
        "turn_detection": describe_detection(settings),
    }
    if settings.is_transcription:
        return {"object": "realtime.transcription_session", **heard}
    return {
        "object": "realtime.session",
        "model": settings.model,
        "modalities": describe_modalities(settings.speaks, is_beta=True),
        "instructions": settings.instructions,
        "voice": settings.voice,
        "speed": settings.speed,
        "output_audio_format": settings.output_format.beta_name,
        "tools": describe_tools(settings),
        "tool_choice": neutral_tool_choice(settings.tool_choice),
        "temperature": settings.temperature,
        "max_response_output_tokens": settings.max_output_tokens or "inf",
        **({"resumption": {"enabled": True}} if settings.resumes else {}),
        **settings.passive,
        **heard,
    }


def read_session(session: bytes, voices: frozenset[str] = frozenset()) -> SessionBody:
    """The session object (JSON) of a client token. ``voices``: of the speech engine, empty for unknown. Raises ProtocolError
    naming the field that is wrong, for all that no session could begin with."""
    try:
        session.decode()  # the fields that are kept raw are not looked into
        body = msgspec.json.decode(session, type=SessionBody)
        apply(WireSettings(), body, voices)
    except msgspec.ValidationError as error:
        found = parameter_error(error, SessionBody)
        param = f"session.{found.param}" if found.param else "session"
        raise ProtocolError(found.code, found.message, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("invalid_value", "The session cannot be read as JSON.", param="session") from None
    except ProtocolError as error:
        raise ProtocolError(code_of(error.code), error.message, param=error.param) from None
    return body
