"""The sentences that the server says aloud by itself. They are spoken once and kept (``prerendered``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# By the cue of a BusyCue. ``waiting_N`` is for place N of the waiting room.
LINES: Final[Mapping[str, str]] = {
    "busy": "One moment, please.",
    "waiting": "All our lines are busy. Please hold the line.",
    **{f"waiting_{n}": f"All our lines are busy. You are number {n} in line." for n in range(1, 10)},
    "full": "All our lines are busy. Please call again in a moment.",
    "draining": "I am sorry, I have to end this call. Please call again in a moment.",
    "no_answer": "I am sorry, I have no answer to that.",
    "not_understood": "I am sorry, I did not understand that. Please say it again.",
    "try_again": "I am sorry, I cannot answer just now. Please try again in a moment.",
    "failed": "I am sorry, something went wrong. Please try again.",
}
