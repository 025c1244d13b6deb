"""How a codec is made: a ``Wire`` says at which paths, and of what in the ``WireRequest`` of a client.

A new wire is a module with a codec and a ``Wire``, and its line in ``voiceserver.wire.registry``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from voiceserver.config.schema import Config
from voiceserver.events.turn_detection import TurnDetection
from voiceserver.wire.traits import Codec


class RequestHeaders(Protocol):
    """The headers of a request; names in any case."""

    def get(self, name: str, default: str, /) -> str: ...

    def get_all(self, name: str, /) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A request for an upgrade, and what the server has for it.

    ``path``: of the request, without the query.
    ``query``: the last value of each parameter.
    ``headers``: of the request.
    ``seed``: letters and digits that no other connection has; for ids.
    ``session``: the session object (JSON) of the client token; empty for none.
    ``config``: of the server.
    ``turn_detection``: the server's own; None on a server without vad.
    ``voices``: names that the speech engine knows; empty for unknown.
    ``lines``: the spoken lines that there are, in the wire's ``line_format``.
    """

    path: str
    query: Mapping[str, str]
    headers: RequestHeaders
    seed: str
    session: bytes
    config: Config
    turn_detection: TurnDetection | None
    voices: frozenset[str]
    lines: Mapping[str, bytes]


def primary_language(language: str) -> str:
    return language.replace("_", "-").partition("-")[0].lower()


def line_name(line: str, language: str) -> str:
    """``language``: primary subtag; "" for the server's own."""
    return f"{language}:{line}" if language else line


def line_of(lines: Mapping[str, bytes], cue: str, position: int, language: str) -> bytes:
    """The best of the spoken lines for a cue: in the caller's language, with the place in line; empty for none."""
    for one in dict.fromkeys((primary_language(language), "")):
        spoken = lines.get(line_name(f"{cue}_{position}", one)) or lines.get(line_name(cue, one))
        if spoken:
            return spoken
    return b""


@dataclass(frozen=True, slots=True)
class LineFormat:
    """How a wire wants the lines that are spoken once and kept.

    ``rate_hz``: at which they are spoken.
    ``encode``: PCM16 at that rate to the bytes that the codec is given.
    """

    rate_hz: int
    encode: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Wire:
    """One wire protocol, as the server offers it.

    ``name``: that of its codec's traits.
    ``paths``: of its WebSockets.
    ``make_codec``: raises ProtocolError for a request that cannot be served (HTTP 400), Forbidden for one that may not (403).
    ``line_format``: None for a wire whose clients hear no lines.
    ``is_self_signed``: whether callers prove in another way than by an API key who they are, as the server is configured.
    """

    name: str
    paths: tuple[str, ...]
    make_codec: Callable[[WireRequest], Codec]
    line_format: LineFormat | None = None
    is_self_signed: Callable[[Config], bool] = lambda config: False
