"""What is wrong with a client's JSON, in words that name the field and what is allowed. Shared by the wires; for errors only."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import inspect

from voiceserver.errors import ProtocolError

INVALID_ENUM: Final = "Invalid enum value "
_WHERE: Final = re.compile(r" - at (`key` in )?`\$\.?(.*?)`$")
_STEP: Final = re.compile(r"[^.\[\]]+|\[[^\]]*\]")
_LONE_SURROGATE: Final = re.compile(
    rb"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\)(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


class _Envelope(msgspec.Struct):
    event_id: str | None = None


_decode_envelope: Final = msgspec.json.Decoder(_Envelope).decode


def event_id_of(message: bytes) -> str | None:
    """The client's own name for ``message``; None where it has none or is no JSON object."""
    try:
        return _decode_envelope(message).event_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def why_unreadable(error: Exception, message: bytes) -> str:
    """Why ``message`` is no JSON, as the decoder found."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if _LONE_SURROGATE.search(
        message
    ):  # the decoder takes one at the end of a string for the end of the data
        return "it is not valid JSON text (a lone surrogate)"
    return str(error)


def where_wrong(error: msgspec.ValidationError) -> tuple[str, str]:
    """The path of the field, without the ``$``, and what is wrong there."""
    message = str(error)
    found = _WHERE.search(message)
    if found is None:
        return "", message
    message = message[: found.start()]
    return found[2], f"A name in it: {message}" if found[1] else message


def field_error(
    error: msgspec.ValidationError, kind: type, event_id: str | None = None, code: str = "invalid_field"
) -> ProtocolError:
    """``error`` of decoding a ``kind``, in the plain words of our own wires."""
    path, message = where_wrong(error)
    where = f"{path!r}: " if path else ""
    missing = message.startswith("Object missing required field")
    if missing or message.startswith("Object contains unknown field"):
        path = ".".join(filter(None, (path, message.split("`")[1])))
    if message.startswith(INVALID_ENUM):
        message = f"{message[:100]}; allowed: {', '.join(allowed_at(kind, path))}"
    code = "missing_field" if missing and code == "invalid_field" else code
    return ProtocolError(code, f"{where}{message}.", param=path or None, event_id=event_id)


@functools.lru_cache(maxsize=256)
def allowed_at(kind: type, path: str) -> tuple[str, ...]:
    """The values that the field at ``path`` of a ``kind`` may have, where its type lists them; a number beside them in words."""
    found = [inspect.type_info(kind)]
    for step in _STEP.findall(path):
        found = [child for one in _plain(found) for child in _children(one, step)]
    plain = list(_plain(found))
    values = [value for one in plain if isinstance(one, inspect.LiteralType) for value in one.values]
    numbers = [f"an integer from {one.ge} to {one.le}" for one in plain if isinstance(one, inspect.IntType)]
    return tuple(dict.fromkeys([*(str(value) for value in values), *numbers]))


def _plain(kinds: Iterable[inspect.Type]) -> Iterable[Any]:
    for one in kinds:
        if isinstance(one, inspect.UnionType):
            yield from _plain(one.types)
        elif isinstance(one, inspect.Metadata):
            yield from _plain((one.type,))
        else:
            yield one


def _children(kind: inspect.Type, step: str) -> Iterable[inspect.Type]:
    if isinstance(kind, inspect.StructType):
        return [field.type for field in kind.fields if field.encode_name == step]
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        return [kind.item_type]
    if isinstance(kind, inspect.DictType):
        return [kind.value_type]
    return []
