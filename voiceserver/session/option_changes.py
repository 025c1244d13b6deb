"""What a client may change of its session's options, and of the tools of one reply. Values in, values out."""

from __future__ import annotations

from typing import Any

import msgspec

from voiceserver.errors import ProtocolError
from voiceserver.events.events import ReplyCreate, SessionUpdate, TurnDetection, TurnDetectionChange
from voiceserver.events.tools import check_choice, check_tools, is_choice
from voiceserver.events.voices import near_voices
from voiceserver.session.settings import SessionOptions, SessionSettings


def changed(
    options: SessionOptions, event: SessionUpdate, settings: SessionSettings, voices: frozenset[str]
) -> SessionOptions:
    """``options`` as ``event`` wants them. ``voices``: of the speech engine; empty: it does not tell them.

    Raises ProtocolError for what this server cannot do, and for what does not fit together.
    """
    changes = {
        name: value
        for name in event.__struct_fields__
        if (value := getattr(event, name)) is not msgspec.UNSET
    }
    _check_stages(changes, settings)
    if changes.get("voice"):
        _check_voice(changes["voice"], voices)
    _settle_tools(options, changes)
    detection = changes.get("turn_detection")
    if detection is not None:
        base = options.turn_detection or settings.options.turn_detection or TurnDetection()
        changes["turn_detection"] = _upon(detection, base)
    return msgspec.structs.replace(options, **changes)


def _check_stages(changes: dict[str, Any], settings: SessionSettings) -> None:
    """What is switched on needs a stage with an engine."""
    if changes.get("turn_detection") is not None and "vad" not in settings.stages:
        raise ProtocolError(
            "turn_detection_unavailable",
            "this server has no vad engine: only null is possible",
            param="turn_detection",
        )
    if changes.get("speaks") and not settings.can_speak:
        raise ProtocolError("speech_unavailable", "this server has no tts engine", param="speaks")
    if changes.get("transcribes") and "stt" not in settings.stages:
        raise ProtocolError("transcription_unavailable", "this server has no stt engine", param="transcribes")
    if changes.get("replies") and "reply" not in settings.stages:
        raise ProtocolError("reply_unavailable", "this server has no reply engine", param="replies")


def _upon(change: TurnDetectionChange, base: TurnDetection) -> TurnDetection:
    after = change.upon(base)
    least_ms, most_ms = after.min_silence_ms, after.max_silence_ms
    is_new = (least_ms, most_ms) != (base.min_silence_ms, base.max_silence_ms)
    if is_new and most_ms is not None and least_ms > most_ms:
        raise ProtocolError(
            "invalid_field",
            f"turn_detection.min_silence_ms ({least_ms}) must be at most max_silence_ms ({most_ms})",
            param="turn_detection.min_silence_ms",
        )
    return after


def _settle_tools(options: SessionOptions, changes: dict[str, Any]) -> None:
    """The tools and the choice among them fit together, whichever of the two changes."""
    tools = changes.get("tools", options.tools)
    if "tools" in changes:
        check_tools(tools, "tools")
        if options.tool_choice and not is_choice(options.tool_choice, tools):
            changes.setdefault("tool_choice", "auto")  # the tool of that name is gone
    if "tool_choice" in changes:
        check_choice(changes["tool_choice"], tools, "tool_choice")


def _check_voice(voice: str, voices: frozenset[str]) -> None:
    near = near_voices(voice, voices)
    if near is not None:
        hint = f"near it: {', '.join(near)}" if near else f"there are: {', '.join(sorted(voices)[:20])}"
        raise ProtocolError(
            "unknown_voice", f"the speech engine has no voice {voice[:80]!r}; {hint}", param="voice"
        )


def with_tools(event: ReplyCreate, options: SessionOptions) -> ReplyCreate:
    """``event`` with a choice that fits its tools. Raises ProtocolError for tools or a choice that cannot be."""
    tools = options.tools if event.tools is None else event.tools
    if event.tools is not None:
        check_tools(tools, "tools")
    if event.tool_choice is not None:
        check_choice(event.tool_choice, tools, "tool_choice")
    elif options.tool_choice and not is_choice(options.tool_choice, tools):
        return msgspec.structs.replace(event, tool_choice="auto")
    return event
