"""Whose turn it is: what may happen in which state, and which states may follow.

=============== ================= ======================================================================================
event           from              to
=============== ================= ======================================================================================
start           all but listening listening
stop            listening         thinking; speaking where the reply was not interrupted; idle where nobody answers
final           all but idle      as before; thinking may become idle
reply_started   all but speaking  thinking; listening where the caller speaks
reply_done      all but idle      idle; thinking where another turn waits; listening where the caller speaks
cancel          all               the same; speaking goes on where the caller's own turn was given up
=============== ================= ======================================================================================

``final``: the transcript of a turn is here, or there will be none. ``cancel``: the reply is cut off, or the caller's turn is
forgotten. Anything else raises IllegalTransition, before anything has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from voiceserver.errors import IllegalTransition

TurnState = Literal["idle", "listening", "thinking", "speaking"]
TurnEvent = Literal["start", "stop", "final", "reply_started", "reply_done", "cancel"]

TURN: Final[Mapping[TurnState, Mapping[TurnEvent, frozenset[TurnState]]]] = {
    "idle": {
        "start": frozenset({"listening"}),
        "reply_started": frozenset({"thinking"}),
        "cancel": frozenset({"idle"}),
    },
    "listening": {
        "stop": frozenset({"idle", "thinking", "speaking"}),
        "final": frozenset({"listening"}),
        "reply_started": frozenset({"listening"}),
        "reply_done": frozenset({"listening"}),
        "cancel": frozenset({"idle", "listening", "thinking", "speaking"}),
    },
    "thinking": {
        "start": frozenset({"listening"}),
        "final": frozenset({"idle", "thinking"}),
        "reply_started": frozenset({"thinking"}),
        "reply_done": frozenset({"idle", "thinking"}),
        "cancel": frozenset({"idle", "thinking"}),
    },
    "speaking": {
        "start": frozenset({"listening"}),
        "final": frozenset({"speaking"}),
        "reply_done": frozenset({"idle", "thinking"}),
        "cancel": frozenset({"idle", "thinking"}),
    },
}


def check_event(state: TurnState, event: TurnEvent) -> TurnState:
    """``state``. Raises IllegalTransition if ``event`` cannot happen in it."""
    if event not in TURN[state]:
        raise IllegalTransition(f"{event} cannot happen while a session is {state}")
    return state


def check_move(state: TurnState, event: TurnEvent, after: TurnState) -> None:
    """Raises IllegalTransition if ``event`` cannot lead from ``state`` to ``after``."""
    check_event(state, event)
    if after not in TURN[state][event]:
        raise IllegalTransition(f"{event} cannot lead from {state} to {after}")
