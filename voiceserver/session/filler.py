"""What a caller hears while a reply is late, so that waiting is not dead air: a line spoken once at the start, or a tone.

::

    end of turn --after_ms--> no sound of the reply yet --> filler --its end + after_ms--> the next one, each once a reply

Rule: only where a reply is owed and nothing of it was said; never over a caller who speaks, never beside another sound of ours,
and never a stage's work. For the client it is the first audio of the reply, so a barge-in and ``played_ms`` treat it as such.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from voiceserver.session.reply import Reply
    from voiceserver.session.state import SessionState

GRACE_MS: Final = (
    300.0  # after a transcript that was late; the answer may come before a filler would be through
)


def due_ms(session: SessionState) -> float:
    """When the caller should hear the next filler; inf for never."""
    reply, fillers = session.reply, session.settings.fillers
    if reply is None or fillers is None or not _is_wanted(session, reply):
        return math.inf
    if reply.fillers >= len(fillers.texts):
        return math.inf
    grace_ms = min(GRACE_MS, fillers.after_ms)
    return max(
        reply.decided_ms + fillers.after_ms,
        reply.plays_until_ms + fillers.after_ms,
        reply.asked_ms + grace_ms,
    )


def _is_wanted(session: SessionState, reply: Reply) -> bool:
    busy_monitor = session.busy_monitor
    return (
        reply.speaks
        and not reply.has_spoken
        and not reply.create.is_out_of_band
        and session.place is None
        and not session.is_output_held
        and not (session.audio_input is not None and session.audio_input.capturing_turn)
        # Who is told aloud that the server is busy need not hear the same in other words.
        and not (session.options.audible_busy and busy_monitor is not None and busy_monitor.is_busy)
    )


def say(session: SessionState, now_ms: float) -> None:
    """``due_ms`` has come."""
    reply, fillers = session.reply, session.settings.fillers
    if reply is not None and fillers is not None:
        text, pcm = fillers.audio(reply.fillers, reply.output_rate_hz, session.options.language)
        session.speech_output.fill(reply, text, pcm, now_ms)
