"""GA and beta: the same events under two sets of names. Rule: only this table and ``settings`` know that there are two."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

import msgspec

_encode = msgspec.json.Encoder().encode


class Dialect(Enum):
    GA = "ga"
    BETA = "beta"


BETA_EVENTS: Final = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "conversation.item.added": "conversation.item.created",
}
BETA_PARTS: Final = {"output_audio": "audio", "output_text": "text"}
GA_PARTS: Final = {beta: ga for ga, beta in BETA_PARTS.items()}


class Writer:
    """Makes the frames of one connection: names of its dialect, and an ``event_id`` and other ids that never repeat.

    ``seed``: letters and digits that are this session's own (no clock and no randomness in here, R3).
    """

    __slots__ = ("_count", "_seed", "is_beta")

    def __init__(self, seed: str, dialect: Dialect) -> None:
        self._seed = seed
        self._count = 0
        self.is_beta = dialect is Dialect.BETA

    def new_id(self, kind: str) -> str:
        """An id such as ``item_abc1``, ``kind`` being what stands before the underscore."""
        self._count += 1
        return f"{kind}_{self._seed}{self._count:x}"

    def is_ahead_of(self, one: str) -> bool:
        """Whether ``one`` is an id that ``new_id`` has yet to give."""
        _, _, rest = one.partition(f"_{self._seed}")
        try:
            return int(rest, 16) > self._count
        except ValueError:
            return False

    def event_name(self, name: str) -> str:
        return BETA_EVENTS.get(name, name) if self.is_beta else name

    def part_name(self, name: str) -> str:
        return BETA_PARTS.get(name, name) if self.is_beta else name

    def frame(self, name: str, fields: Mapping[str, object]) -> str:
        """One server event of the GA name ``name``."""
        event = {"type": self.event_name(name), "event_id": self.new_id("event"), **fields}
        return _encode(event).decode()
