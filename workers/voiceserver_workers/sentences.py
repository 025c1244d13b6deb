"""What every tts engine asks of a sentence before it is spoken: not too long, and no control characters in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from voiceserver_workers.engine import EngineError, Item

MAX_TEXT_CHARS = 4000
_UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f]+")


def check_sentences(batch: Sequence[Item]) -> None:
    """Raises EngineError ``text_too_long``; a batch that raises is stepped again item by item."""
    for item in batch:
        if item.text is not None and len(item.text) > MAX_TEXT_CHARS:
            message = f"a sentence may have {MAX_TEXT_CHARS} characters, not {len(item.text)}"
            raise EngineError("text_too_long", message)


def speakable(text: str) -> str:
    """``text`` as an engine may speak it."""
    return _UNSPEAKABLE.sub(" ", text).strip()
