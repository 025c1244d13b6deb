"""What a child says to its supervisor, a byte a word."""

from __future__ import annotations

from typing import Final

READY: Final = b"r"
DRAIN: Final = b"d"  # somebody pressed the button
