"""Types of single fields that come from outside, with the ranges that they are held to; shared by all wires."""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

MAX_TURN_MS: Final = 600_000  # what is said is kept until it is answered, so a turn has an end
MAX_TOOLS: Final = 128
MAX_NAME: Final = 256  # characters
Threshold = Annotated[float, Meta(ge=0, le=1)]
Padding = Annotated[int, Meta(ge=0, le=5_000)]
Silence = Annotated[int, Meta(ge=0, le=60_000)]
TurnLength = Annotated[int, Meta(ge=100, le=MAX_TURN_MS)]
IdleTimeout = Annotated[int, Meta(ge=100, le=3_600_000)]
TurnNumber = Annotated[int, Meta(ge=1, le=2**53)]
Language = Annotated[str, Meta(max_length=64)]
VoiceName = Annotated[str, Meta(max_length=MAX_NAME)]
ModelName = Annotated[str, Meta(max_length=MAX_NAME)]
ToolName = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
Tokens = Annotated[int, Meta(ge=1, le=1_000_000)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
PhoneKey = Literal["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "*", "#", "A", "B", "C", "D"]


def range_of(kind: type[msgspec.Struct], name: str) -> tuple[float, float]:
    """The least and the greatest value that a field takes from outside. Raises KeyError for one that has no range."""
    hint = get_type_hints(kind, include_extras=True)[name]
    for one in (hint, *get_args(hint)):
        for meta in getattr(one, "__metadata__", ()):
            return meta.ge, meta.le
    raise KeyError(name)
