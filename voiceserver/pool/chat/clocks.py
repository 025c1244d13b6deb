"""When an answer is given up, and when a part of a sentence is said. Pure: ``now_s`` is an argument, seconds of any clock.

Two clocks, because an endpoint may be at work and have nothing to say yet::

    nothing heard from the endpoint     before the first word, any byte is a sign of life (a comment, an empty delta, a thought);
                                        after it, only text, a thought or a piece of a tool call is
    nothing to say to the caller        text waits for the end of its sentence, and the caller has heard what was said before

The first ends the answer, and its message names the setting; the second says what there is, up to a clause or a word.
"""

from __future__ import annotations

import math
from typing import Final

from voiceserver.pool.chat.config import ChatConfig

CHAR_S: Final = 0.055  # of speech; fast, so that the caller does not wait for more than was said
_PARAMS: Final = "stages.reply.params"


class EndpointClock:
    """Nothing heard from the endpoint."""

    __slots__ = ("_asked_s", "_config", "_has_begun", "_heard_s")

    def __init__(self, config: ChatConfig, now_s: float) -> None:
        self._config = config
        self._asked_s = self._heard_s = now_s
        self._has_begun = False

    def hear(self, now_s: float, *, has_begun: bool, is_progress: bool) -> bool:
        """Bytes of the answer came. ``has_begun``: a word was in it, now or before; ``is_progress``: they are more than a comment
        or an empty delta. False: they are no sign of life."""
        is_life = is_progress or not self._has_begun
        self._has_begun = has_begun
        if is_life:
            self._heard_s = now_s
        return is_life

    @property
    def _next(self) -> tuple[float, str]:
        """When the answer is given up, and the setting that says so."""
        config = self._config
        name = "stall_timeout_ms" if self._has_begun else "first_token_timeout_ms"
        silent_s = (
            self._heard_s
            + (config.stall_timeout_ms if self._has_begun else config.first_token_timeout_ms) / 1000.0
        )
        return min((silent_s, name), (self._asked_s + config.timeout_ms / 1000.0, "timeout_ms"))

    @property
    def due_s(self) -> float:
        return self._next[0]

    def complaint(self, now_s: float) -> str:
        name = self._next[1]
        since_s = self._asked_s if name == "timeout_ms" else self._heard_s
        what = {
            "timeout_ms": "was not through with its answer",
            "stall_timeout_ms": "stopped in its answer",
            "first_token_timeout_ms": "did not begin to answer",
        }[name]
        waited_ms = round((now_s - since_s) * 1000.0)
        return f"The reply endpoint {what}; given up after {waited_ms} ms ({_PARAMS}.{name})."


class CallerClock:
    """Nothing to say to the caller."""

    __slots__ = ("_max_unspoken_s", "_spoken_chars", "_spoken_until_s", "_waits_since_s")

    def __init__(self, max_unspoken_ms: float) -> None:
        self._max_unspoken_s = max_unspoken_ms / 1000.0
        self._spoken_chars = 0
        self._spoken_until_s = -math.inf
        self._waits_since_s = math.inf

    def look(self, now_s: float, *, spoken_chars: int, has_rest: bool) -> float:
        """When a part of the sentence is said; inf for never. ``spoken_chars``: of the answer; ``has_rest``: text waits."""
        if spoken_chars > self._spoken_chars:
            new_s = (spoken_chars - self._spoken_chars) * CHAR_S
            self._spoken_until_s = max(self._spoken_until_s, now_s) + new_s
            self._spoken_chars = spoken_chars
            self._waits_since_s = math.inf
        self._waits_since_s = min(self._waits_since_s, now_s) if has_rest else math.inf
        return max(self._waits_since_s, self._spoken_until_s) + self._max_unspoken_s
