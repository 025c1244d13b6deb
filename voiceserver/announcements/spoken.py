"""All that one server says without its stages: tones and lines for callers on any wire, fillers, and the lines of each wire that
wants them in a format of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from voiceserver.announcements.earcons import Earcons
from voiceserver.announcements.fillers import fillers_from
from voiceserver.announcements.lines import LINES
from voiceserver.announcements.prerendered import Prerendered

if TYPE_CHECKING:
    from voiceserver.config.schema import SessionConfig
    from voiceserver.pool import Pool
    from voiceserver.wire.request import LineFormat


class Announcements:
    """``formats``: those of the wires whose clients hear lines."""

    __slots__ = ("_prerendered", "earcons", "fillers")

    def __init__(self, session: SessionConfig, formats: Sequence[LineFormat] = ()) -> None:
        self.earcons = Earcons(LINES, session.output_rate_hz)
        self.fillers = fillers_from(session)
        self._prerendered = {one: Prerendered(LINES, one.rate_hz, one.encode) for one in formats}

    def lines_made(self, line_format: LineFormat | None) -> Mapping[str, bytes]:
        """The lines that there are in a wire's format; empty without a format."""
        return self._prerendered[line_format].made if line_format is not None else {}

    def make_lines(self, line_format: LineFormat | None, pool: Pool | None) -> None:
        """Have the lines of one format spoken, unless that was begun."""
        if line_format is not None:
            self._prerendered[line_format].make(pool)

    def make(self, pool: Pool | None) -> None:
        """Have the lines spoken by the tts pool. May be called again for what is missing."""
        self.earcons.make(pool)
        for prerendered in self._prerendered.values():
            prerendered.make(pool)
