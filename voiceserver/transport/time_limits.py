"""How long a caller may be silent, idle or connected: when to look, and why a call has lasted long enough."""

from __future__ import annotations

import math
from typing import NamedTuple

from voiceserver.config.schema import ServerConfig


class Activity(NamedTuple):
    """Of one caller, in monotonic ms. ``heard_ms``: when a whole frame last came; ``pinged_ms``: when a ping left that is not
    answered, 0 for none; ``active_ms``: when a message last went either way; ``opened_ms``: when the call began."""

    heard_ms: float
    pinged_ms: float
    active_ms: float
    opened_ms: float


def next_look_ms(server: ServerConfig, activity: Activity) -> float:
    """When a limit may be reached; infinity for never."""
    due_ms = math.inf
    if server.ping_interval_ms:
        due_ms = activity.heard_ms + server.ping_interval_ms
        if activity.pinged_ms:
            due_ms = activity.pinged_ms + server.ping_timeout_ms
    if server.idle_timeout_ms:
        due_ms = min(due_ms, activity.active_ms + server.idle_timeout_ms)
    if server.max_session_ms:
        due_ms = min(due_ms, activity.opened_ms + server.max_session_ms)
    return due_ms


def reason_to_end(server: ServerConfig, activity: Activity, now_ms: float) -> tuple[str, str, int] | None:
    """Error code, words and close code of the limit that was reached."""
    if server.max_session_ms and now_ms >= activity.opened_ms + server.max_session_ms:
        return "session_expired", f"A session may last {server.max_session_ms} ms.", 1000
    if server.idle_timeout_ms and now_ms >= activity.active_ms + server.idle_timeout_ms:
        return "idle_timeout", f"Nothing was said for {server.idle_timeout_ms} ms.", 1000
    return None
