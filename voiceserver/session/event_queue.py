"""What a session has to say and has not said yet, in order. Its parts put events in, the shell takes them out."""

from __future__ import annotations

from voiceserver.events.events import ServerEvent


class EventQueue(list[ServerEvent]):
    __slots__ = ()

    emit = list.append

    def emit_before(self, mark: int, event: ServerEvent) -> None:
        """Put ``event`` before all that was said since ``mark`` (a length of this queue), because it explains them."""
        self.insert(mark, event)

    def take(self) -> list[ServerEvent]:
        """All of it; nothing is left."""
        taken = self[:]
        self.clear()
        return taken
