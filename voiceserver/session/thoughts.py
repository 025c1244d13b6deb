"""Takes a reasoning model's thoughts out of its answer: they are neither said, shown nor kept.

``feed`` deltas, take the answer; ``finish`` gives the rest. What comes out does not depend on where a delta ended: the beginning
of a tag is held until it is known to be one. Linear in the text.

A thought stands between the tags of one of ``PAIRS``, in capitals or not. A closing tag without an opening one is dropped; the
text before it has left already. ``begins_inside``: the prompt template has opened the thought, so the answer begins in it (as
DeepSeek-R1's may). Then nothing is given out before the closing tag, or before the end if there is none: it was no thought.
"""

from __future__ import annotations

import re
from typing import Final

# DeepSeek-R1, Qwen; Claude-like prompts; Gemma; Magistral; Kimi; Seed-OSS; Command A; gpt-oss (Harmony) without its parser.
PAIRS: Final[tuple[tuple[str, str], ...]] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<analysis>", "</analysis>"),
    ("<scratchpad>", "</scratchpad>"),
    ("[think]", "[/think]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<seed:think>", "</seed:think>"),
    ("<|start_thinking|>", "<|end_thinking|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
)
# What Harmony writes around the answer itself.
_FRAMES: Final = ("<|start|>assistant", "<|channel|>final<|message|>", "<|return|>")
_CLOSING_OF: Final = dict(PAIRS)
_CLOSINGS: Final = frozenset(_CLOSING_OF.values())
_TAGS: Final = (*_CLOSING_OF, *_CLOSINGS, *_FRAMES)
_LONGEST: Final = max(map(len, _TAGS))
_tag: Final = re.compile("|".join(map(re.escape, sorted(_TAGS, key=len, reverse=True))), re.IGNORECASE)
_FIRST: Final = frozenset(tag[0] for tag in _TAGS)
_BEGINNINGS: Final = frozenset(tag[:length] for tag in _TAGS for length in range(1, len(tag)))


class Thoughts:
    """``begins_inside``: see above. ``was_closed``: a closing tag came that nothing had opened."""

    __slots__ = ("_closing", "_has_opened", "_held", "_inside", "was_closed")

    def __init__(self, begins_inside: bool = False) -> None:
        self._held = ""  # may be the beginning of a tag
        self._closing = ""  # the tag that ends the thought; "" outside
        self._has_opened = not begins_inside
        self._inside: list[str] = []  # what was held because the answer begins in a thought
        self.was_closed = False

    def feed(self, delta: str) -> str:
        """What of the answer ``delta`` completes."""
        text = self._held + delta
        self._held = ""
        if not self._closing and self._has_opened and _FIRST.isdisjoint(text):
            return text
        keep = _beginning_at_end(text)
        if keep < len(text):
            text, self._held = text[:keep], text[keep:]
        return self._strip(text)

    def finish(self) -> str:
        """The rest of the answer."""
        rest, self._held = self._strip(self._held), ""
        if not self._has_opened:
            rest, self._inside = "".join(self._inside) + rest, []
            self._has_opened = True
        return rest

    def _strip(self, text: str) -> str:
        """``text`` ends outside of a tag."""
        seen: list[str] = []
        at = 0
        for found in _tag.finditer(text):
            tag = found[0].lower()
            if self._closing:
                if tag != self._closing:
                    continue
                self._closing = ""
            else:
                self._see(text[at : found.start()], seen)
                if tag in _CLOSINGS:
                    self._close_unopened(tag)
                else:
                    self._closing = _CLOSING_OF.get(tag, "")
                    self._release(seen)
            at = found.end()
        if not self._closing:
            self._see(text[at:], seen)
        return "".join(seen)

    def _see(self, text: str, seen: list[str]) -> None:
        (seen if self._has_opened else self._inside).append(text)

    def _close_unopened(self, tag: str) -> None:
        if tag == "<|end|>":
            return
        self.was_closed = True
        self._inside = []
        self._has_opened = True

    def _release(self, seen: list[str]) -> None:
        """An opening tag: what was held before it was no thought."""
        seen += self._inside
        self._inside, self._has_opened = [], True


def _beginning_at_end(text: str) -> int:
    """Where a tag may begin that is not complete; the length of ``text`` if nowhere."""
    for at in range(max(len(text) - _LONGEST, 0), len(text)):
        if text[at] in _FIRST and text[at:].lower() in _BEGINNINGS:
            return at
    return len(text)
