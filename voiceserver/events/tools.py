"""The tools that a client gives: how many, their names, how deep their parameters are nested, what a choice may name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from voiceserver.errors import ProtocolError
from voiceserver.events.fields import MAX_TOOLS

MAX_DEPTH: Final = (
    64  # what is decoded is encoded again, one level deeper, for engines and clients that have limits too
)
CHOICES: Final = ("auto", "none", "required")


class NamedTool(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> Mapping[str, object] | None: ...


def is_too_deep(value: object) -> bool:
    """Whether decoded JSON has more than ``MAX_DEPTH`` levels of objects and arrays."""
    level: Sequence[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for one in level for child in _children(one) if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def check_tools(tools: Sequence[NamedTool], param: str) -> None:
    """Raises ProtocolError naming the tool, with ``param`` for the path of the list."""
    if len(tools) > MAX_TOOLS:
        message = f"{param} has {len(tools)} tools; there may be at most {MAX_TOOLS}."
        raise ProtocolError("invalid_field", message, param=param)
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.name in names:
            where = f"{param}[{index}].name"
            message = f"{where}: there is a tool {tool.name[:80]!r} already; names of tools are unique."
            raise ProtocolError("invalid_field", message, param=where)
        names.add(tool.name)
        if is_too_deep(tool.parameters):
            where = f"{param}[{index}].parameters"
            message = f"{where} are nested too deep: at most {MAX_DEPTH} levels."
            raise ProtocolError("invalid_field", message, param=where)


def check_choice(choice: str, tools: Sequence[NamedTool], param: str) -> None:
    """Raises ProtocolError for a choice that is neither a mode nor one of ``tools``."""
    if not is_choice(choice, tools):
        names = [*CHOICES, *(tool.name for tool in tools[:20])]
        message = f"{param}: there is no tool {choice[:80]!r}. Allowed: {', '.join(names)}."
        raise ProtocolError("invalid_field", message, param=param)


def is_choice(choice: str, tools: Sequence[NamedTool]) -> bool:
    return choice in CHOICES or any(tool.name == choice for tool in tools)
