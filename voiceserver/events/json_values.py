"""How many values a JSON text has, before any of them is made. Pure.

A decoder makes an object of each value, so a megabyte of ``[],[],[]`` holds the loop for half a second, and a megabyte of text
for one millisecond. Rule: whatever a peer sends is counted before it is decoded; counting takes a few milliseconds a megabyte
at most, whatever is in it.
"""

from __future__ import annotations

from typing import Final

MAX_VALUES: Final = 16_384  # some milliseconds of decoding
# A shorter text has not more: a value and what ends it. A hot path asks before it calls.
FEW_BYTES: Final = 2 * MAX_VALUES


def has_too_many_values(text: bytes) -> bool:  # hot
    """More than ``MAX_VALUES``. What stands within strings does not count; for text that is no JSON the answer is of no use, but
    as quick."""
    if len(text) <= FEW_BYTES or _marks(text) <= MAX_VALUES:
        return False
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 2 * MAX_VALUES:
        return True
    return _marks(b"".join(bare.split(b'"')[::2])) > MAX_VALUES


def _marks(text: bytes) -> int:
    """One for each value but the innermost first ones."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")
