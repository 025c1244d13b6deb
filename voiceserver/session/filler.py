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
    from voiceserver.session.settings import FillerAudio

GRACE_MS: Final = (
    300.0  # after a transcript that was late; the answer may come before a filler would be through
)


def due_ms(reply: Reply, fillers: FillerAudio) -> float:
    """When the caller should hear the next filler of a reply that may have one; inf for never."""
    if reply.fillers >= len(fillers.texts):
        return math.inf
    grace_ms = min(GRACE_MS, fillers.after_ms)
    return max(
        reply.decided_ms + fillers.after_ms,
        reply.plays_until_ms + fillers.after_ms,
        reply.asked_ms + grace_ms,
    )


def is_wanted(reply: Reply) -> bool:
    """Whether the reply is one whose silence is filled."""
    return reply.speaks and not reply.has_spoken and not reply.create.is_out_of_band
