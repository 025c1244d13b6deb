"""What goes wrong, in the words that Realtime clients know. Rule: an ``error`` event never ends the session.

Some stock clients give up on any ``error`` that they do not know, so a server that is only late, or that goes down when the
turn is finished, says so as ``rate_limits.updated`` with the numbers, also while all places are taken. It keeps ``error`` for
audio that is lost and for calls that are refused.

Clients branch on ``code``: cancelling a response that has just finished, or creating one while another runs, is a race
that stock clients pass over in silence, but only under these codes.
"""

from __future__ import annotations

from typing import Final

from voiceserver.errors import ProtocolError
from voiceserver.events.events import ErrorEvent, ServerBusy, ServerDraining
from voiceserver.wire.openai.audio import INPUT_TOKEN_MS

INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"
OVERLOADED: Final = "server_overloaded"

# Codes of the session, in this wire's words.
_CODES: Final = {
    "input_empty": "input_audio_buffer_commit_empty",
    "reply_active": "conversation_already_has_active_response",
    "reply_in_progress": "conversation_already_has_active_response",
    "reply_not_active": "response_cancel_not_active",
    "no_reply": "response_cancel_not_active",
    "voice_frozen": "cannot_update_voice",
    "item_not_found": "invalid_value",
    "item_exists": "invalid_value",
    "audio_misaligned": "invalid_value",
    "invalid_field": "invalid_value",
    "reserved_key": "invalid_value",
}
# Fields of the session, in this wire's words: GA, beta.
_PARAMS: Final = {
    "transcribes": ("session.audio.input.transcription", "session.input_audio_transcription"),
    "turn_detection": ("session.audio.input.turn_detection", "session.turn_detection"),
    "speaks": ("session.output_modalities", "session.modalities"),
    "voice": ("session.audio.output.voice", "session.voice"),
    "replies": ("session.type", "session.type"),
    "item.key": ("item.id", "item.id"),
    "after_key": ("previous_item_id", "previous_item_id"),
}
# Reasons of busy that are about room, not about one caller's own audio running late.
_ROOM: Final = frozenset(
    {
        "capacity",
        "capacity_exhausted",
        "at_capacity",
        "tenant_share",
        "full",
        "waiting",
        "waiting_timeout",
        "no_worker",
        "no_workers",
    }
)


def error_fields(
    kind: str, code: str | None, message: str, param: str | None, event_id: str | None
) -> dict[str, object]:
    return {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}


def code_of(code: str) -> str:
    """A code of the session, in this wire's words."""
    return _CODES.get(code, code)


def describe_mistake(error: ProtocolError, event_id: str | None, is_beta: bool = False) -> dict[str, object]:
    """The ``error`` object for a client's mistake."""
    param = error.param
    if param in _PARAMS:
        param = _PARAMS[param][is_beta]
    code = code_of(error.code) or None
    return error_fields(INVALID_REQUEST, code, error.message, param, error.event_id or event_id)


def describe_error(event: ErrorEvent) -> dict[str, object]:
    if event.code in _ROOM:
        fields = error_fields(OVERLOADED, "capacity_exhausted", event.message, event.param, event.event_id)
        return {**fields, "retry_after_ms": event.retry_after_ms} if event.retry_after_ms else fields
    if event.event_id is not None or event.param is not None:
        code = _CODES.get(event.code, event.code)
        return error_fields(INVALID_REQUEST, code, event.message, event.param, event.event_id)
    return error_fields(SERVER_ERROR, event.code, event.message, None, None)


def _code_of(event: ServerBusy) -> str:
    has_no_room = event.position > 0 or event.step == "waiting" or event.reason in _ROOM
    return "capacity_exhausted" if has_no_room else "input_backpressure"


def is_loss(event: ServerBusy) -> bool:
    """Audio was dropped. A caller who waits for a place, or for a worker, is late and no more: its audio is kept."""
    return event.dropped_ms > 0 or event.step == "shed"


def describe_limit(event: ServerBusy) -> dict[str, object]:
    """The fields of ``rate_limits.updated``: how much audio may be sent now, in tokens, and the numbers of the native wire."""
    limit = {
        "name": "tokens",
        "limit": round((event.lag_ms + event.credit_ms) / INPUT_TOKEN_MS),
        "remaining": round(event.credit_ms / INPUT_TOKEN_MS),
        "reset_seconds": round(max(event.lag_ms, event.retry_after_ms) / 1000.0, 3),
    }
    numbers = {name: getattr(event, name) for name in event.__struct_fields__ if name != "turn"}
    return {"rate_limits": [limit], "busy": {"code": _code_of(event), **numbers}}


def describe_busy(event: ServerBusy) -> dict[str, object]:
    """Recoverable, with the numbers of the native wire beside the fields that every ``error`` has."""
    message = (
        f"The server is busy ({event.stage}: {event.reason}). It is {event.lag_ms:.0f} ms behind; "
        f"{event.credit_ms:.0f} ms of audio may be sent now. The session goes on."
    )
    numbers = {name: getattr(event, name) for name in event.__struct_fields__ if name != "turn"}
    return {**error_fields(OVERLOADED, _code_of(event), message, None, None), **numbers}


def describe_draining(event: ServerDraining) -> dict[str, object]:
    """The fields of ``rate_limits.updated``: no more requests on this connection. The turn in progress is still finished, and a
    client that took an ``error`` for the end would cut it off."""
    message = f"The server is shutting down; the connection closes within {event.deadline_ms:.0f} ms. Reconnect then."
    limit = {
        "name": "requests",
        "limit": 1,
        "remaining": 0,
        "reset_seconds": round(event.deadline_ms / 1000.0, 3),
    }
    told = {"code": "server_draining", "message": message, "deadline_ms": event.deadline_ms}
    return {"rate_limits": [limit], "draining": told}
