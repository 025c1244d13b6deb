"""Is there a voice of this name? For the wires and options where a client names one."""

from __future__ import annotations

import difflib


def near_voices(voice: str, voices: frozenset[str]) -> list[str] | None:
    """None where ``voice`` is one of ``voices``, or a variant of one (espeak's en-us+f3); else those that are spelled alike,
    the nearest first. ``voices`` empty: the speech engine does not say which it has, and answers for itself."""
    plain = voice.partition("+")[0].lower().replace("_", "-")
    if not voices or voice in voices or plain in voices:
        return None
    return difflib.get_close_matches(plain, sorted(voices), n=4, cutoff=0.4)
