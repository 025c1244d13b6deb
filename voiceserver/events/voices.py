"""Which voices there are, for those who let a client name one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping


def voices_of(pools: Mapping[str, object]) -> frozenset[str]:
    """Those of the speech engine among a server's ``pools``; empty where there is none, or it does not tell them."""
    return getattr(pools.get("tts"), "voices", frozenset())


def near_voices(voice: str, voices: frozenset[str]) -> list[str] | None:
    """None where ``voice`` is one of ``voices``, or a variant of one (espeak's en-us+f3); else those that are spelled alike,
    the nearest first. ``voices`` empty: the speech engine does not say which it has, and answers for itself."""
    plain = voice.partition("+")[0].lower().replace("_", "-")
    if not voices or voice in voices or plain in voices:
        return None
    return difflib.get_close_matches(plain, sorted(voices), n=4, cutoff=0.4)
