"""The messages of one call that its caller is not known to have received, kept so that a resumed caller gets each once.

Messages are numbered from 1 in the order they were sent; ``session.ready`` is not counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from voiceserver.wire.frames import PING, build_head

MAX_CALL_BYTES: Final = 1_048_576  # messages kept of one call: about 20 s of speech at 24 kHz
MESSAGE_BYTES: Final = 48  # of memory that a message costs beside its own
STEP_BYTES: Final = 4_096  # kept more, after which a call that nobody is connected to is weighed again
ASK_BYTES: Final = 65_536  # kept, after which the caller is asked how far it is


class ReplayBuffer:
    """What one call was told and is not known to have received. ``count``: messages ever; ``cut``: how many had left when the
    connection broke; ``heard``: text messages that it has sent, ever."""

    __slots__ = ("_asked", "_frames", "_weighed_bytes", "base", "count", "cut", "heard", "size")

    def __init__(self, base: int = 0) -> None:
        """base: messages that were said before and are not kept: they were about their moment."""
        self._frames: deque[bytes] = deque()
        self._asked = 0
        self.base = self.count = base
        self.cut = 0
        self.heard = 0
        self.size = 0
        self._weighed_bytes = 0

    def add(self, frame: bytes) -> None:  # hot
        self._frames.append(frame)
        self.count += 1
        self.size += len(frame)

    @property
    def memory_bytes(self) -> int:
        return self.size + len(self._frames) * MESSAGE_BYTES

    @property
    def acknowledged(self) -> int:
        return self.count - len(self._frames)

    def acknowledge(self, count: int) -> None:
        """The caller has received ``count`` messages."""
        if count <= self.count:
            while self.acknowledged < count:
                self.size -= len(self._frames.popleft())

    @property
    def is_full(self) -> bool:
        """More is kept than one call may keep."""
        return self.size > MAX_CALL_BYTES

    def mark_cut(self) -> None:
        """The connection is gone: all messages so far have left, and may have arrived."""
        self.cut = self.count
        self._weighed_bytes = self.memory_bytes

    def has_grown(self) -> bool:
        """Whether much was added since this was last true."""
        is_more = self.memory_bytes >= self._weighed_bytes + STEP_BYTES
        if is_more:
            self._weighed_bytes = self.memory_bytes
        return is_more

    def forget_oldest(self) -> None:
        """Keep to the bound of one call."""
        while self.is_full:
            self.size -= len(self._frames.popleft())

    def ask(self, *, is_always: bool = False) -> bytes:
        """A ping whose answer says how far the caller is; empty while there is nothing to ask."""
        if not is_always and (self.size <= ASK_BYTES or self._asked > self.acknowledged):
            return b""
        self._asked = self.count
        return build_head(PING, 8) + self.count.to_bytes(8, "big")

    def after(self, count: int) -> Iterable[bytes]:
        """What is kept of the messages after the first ``count``."""
        skipped = max(count - self.acknowledged, 0)
        return (frame for index, frame in enumerate(self._frames) if index >= skipped)
