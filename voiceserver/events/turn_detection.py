"""How the end of a turn is found: what a call begins with, and what a client changes of it."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from voiceserver.events.fields import IdleTimeout, Padding, Silence, Threshold, TurnLength


class TurnDetectionChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client changes of how the end of a turn is found; what it leaves out stays. Held to these ranges, which ``range_of``
    tells.

    threshold: Probability from which on a window is speech.
    prefix_padding_ms: Audio before the speech that belongs to the turn.
    silence_duration_ms: Silence that ends a turn.
    min_speech_ms: Speech that begins a turn.
    max_turn_ms: A longer turn is ended.
    creates_reply: Whether a turn is answered.
    interrupts_reply: Whether speech interrupts a reply.
    idle_timeout_ms: Silence after a reply that input.idle tells; null: never.
    max_silence_ms: Where the vad engine judges turns: silence that ends one that sounds unfinished; null: silence_duration_ms.
    min_silence_ms: Where the vad engine judges turns: silence that ends one that sounds finished.
    """

    threshold: Threshold | UnsetType = UNSET
    prefix_padding_ms: Padding | UnsetType = UNSET
    silence_duration_ms: Silence | UnsetType = UNSET
    min_speech_ms: Padding | UnsetType = UNSET
    max_turn_ms: TurnLength | UnsetType = UNSET
    creates_reply: bool | UnsetType = UNSET
    interrupts_reply: bool | UnsetType = UNSET
    idle_timeout_ms: IdleTimeout | UnsetType | None = UNSET
    max_silence_ms: Silence | UnsetType | None = UNSET
    min_silence_ms: Silence | UnsetType = UNSET

    def upon(self, base: TurnDetection) -> TurnDetection:
        """``base`` with these changes."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        changes = {name: value for name, value in given.items() if value is not UNSET}
        return msgspec.structs.replace(base, **changes)


class TurnDetection(TurnDetectionChange, frozen=True, forbid_unknown_fields=True):
    """How the end of a turn is found, whole. ``None`` in place of this object means: by hand (``InputCommit``)."""

    threshold: Threshold = 0.5
    prefix_padding_ms: Padding = 300
    silence_duration_ms: Silence = 500
    min_speech_ms: Padding = 64
    max_turn_ms: TurnLength = 30_000
    creates_reply: bool = True
    interrupts_reply: bool = True
    idle_timeout_ms: IdleTimeout | None = None
    # Where the vad engine judges turns: how long a turn that sounds unfinished may stay open (None: no longer than
    # usual), and how soon one that sounds finished may end.
    max_silence_ms: Silence | None = None
    min_silence_ms: Silence = 250
