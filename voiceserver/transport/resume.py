"""What a request with a session's token is answered, before any upgrade: the call to go on with, or why there is none.

=====  ==========================================================================================
400    a count of messages that is none, or another rate than the session's
404    no such session here, or one of another API key
410    the session is gone, or the token was used
=====  ==========================================================================================
"""

from __future__ import annotations

from voiceserver.transport.http import Caller, OtherProcess, Response, error_response
from voiceserver.transport.session_store import ResumeTarget, SessionStore
from voiceserver.wire import Codec


class ResumeRequests:
    """A ``ResumeHook``."""

    __slots__ = ("_store",)

    def __init__(self, store: SessionStore) -> None:
        self._store = store

    def target_of(
        self, caller: Caller, codec: Codec, key: str
    ) -> ResumeTarget | OtherProcess | Response | None:
        """The call that a request wants to go on with; None if it wants a new one. ``key``: the API key's name."""
        traits = codec.traits
        token = caller.query.get(traits.resume_parameter, "") if traits.resume_parameter else ""
        if not token:
            return None
        after = caller.query.get(traits.after_parameter) if traits.after_parameter else None
        if after is not None and not (after.isascii() and after.isdigit() and len(after) <= 12):
            message = f"{traits.after_parameter} must be the number of messages received, not {after[:40]!r}."
            return error_response(400, "bad_parameter", message, param=traits.after_parameter)
        process = self._store.elsewhere(token)
        if process is not None:
            return OtherProcess(process)
        call = self._store.find(token)
        if not isinstance(call, str) and call.session.key != key:
            call = "unknown"
        if isinstance(call, str):
            return _refusal(call)
        rate_hz = call.codec.input_rate_hz
        if traits.rate_parameter and traits.rate_parameter in caller.query and codec.input_rate_hz != rate_hz:
            message = f"The session's rate is {rate_hz} Hz; a resume cannot change it."
            return error_response(400, "bad_parameter", message, param=traits.rate_parameter)
        return ResumeTarget(call, token, None if after is None else int(after))


def _refusal(reason: str) -> Response:
    if reason == "unknown":
        return error_response(404, "session_unknown", "No session here can be resumed with this token.")
    return error_response(410, "session_gone", f"This session cannot be resumed with this token: {reason}.")
