"""All that one server says without its stages: tones and lines for callers on any wire, fillers, and the lines of each wire that
wants them in a format of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from voiceserver.announcements.earcons import Earcons
from voiceserver.announcements.fillers import fillers_from
from voiceserver.announcements.lines import LINES
from voiceserver.announcements.spoken_lines import SpokenLines

if TYPE_CHECKING:
    from voiceserver.config.schema import SessionConfig
    from voiceserver.pool import Pool
    from voiceserver.wire.request import LineFormat


class Announcements:
    """``formats``: those of the wires whose clients hear lines."""

    __slots__ = ("_lines", "earcons", "fillers")

    def __init__(self, session: SessionConfig, formats: Sequence[LineFormat] = ()) -> None:
        self.earcons = Earcons(LINES, session.output_rate_hz)
        self.fillers = fillers_from(session)
        self._lines = {one: SpokenLines(LINES, one.rate_hz, one.encode) for one in formats}
        if session.language:
            self.want(session.language)

    def want(self, language: str) -> None:
        """A caller has this language, BCP 47: have the lines spoken in it, where there is a translation and a voice."""
        self.earcons.want(language)
        for lines in self._lines.values():
            lines.want(language)

    def lines_made(self, line_format: LineFormat | None) -> Mapping[str, bytes]:
        """The lines that there are in a wire's format; empty without a format."""
        return self._lines[line_format].made if line_format is not None else {}

    def make_lines(self, line_format: LineFormat | None, pool: Pool | None) -> None:
        """Have the lines of one format spoken, unless that was begun."""
        if line_format is not None:
            self._lines[line_format].make(pool)

    def make(self, pool: Pool | None) -> None:
        """Have the lines spoken by the tts pool. May be called again for what is missing."""
        self.earcons.make(pool)
        for lines in self._lines.values():
            lines.make(pool)
