"""What is wrong with a client's JSON, in words that name the field and what is allowed. Shared by the wires; for errors only."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import pybase64
from msgspec import inspect

from voiceserver.errors import ProtocolError

_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_BLANKS: Final = b" \t\r\n\f\v"
_INVALID_ENUM: Final = "Invalid enum value "
_RANGE: Final = re.compile(r"Expected `(?P<kind>\w+)`.* (?P<sign>[<>]=?) (?P<bound>\S+)$")
_WHERE: Final = re.compile(r" - at (`key` in )?`\$\.?(.*?)`$")
_STEP: Final = re.compile(r"[^.\[\]]+|\[[^\]]*\]")
# What it begins with is looked for first, because that is quick; what stands before it is looked at only there.
_LONE_SURROGATE: Final = re.compile(
    rb"\\u(?<!\\\\u)[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|[c-fC-F](?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F])[0-9a-fA-F]{2})"
)


def decode_base64(text: str) -> bytes:  # hot
    """The bytes of ``text``: base64 as RFC 4648 has it, and as clients send it, which is without padding, with line breaks
    (MIME), or in the alphabet for addresses. Raises ValueError."""
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        bare = text.encode().translate(_URL_SAFE, _BLANKS).rstrip(b"=")
        if len(bare) % 4 == 1 or len(text) - len(bare) > len(bare) + 2:
            raise
        return pybase64.b64decode(bare + b"=" * (-len(bare) % 4), validate=True)


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


def _where_wrong(error: msgspec.ValidationError) -> tuple[str, str]:
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
    """``error`` of decoding a ``kind``, with the codes and words of voiceserver's own wires."""
    path, message = _where_wrong(error)
    where = f"{path!r}: " if path else ""
    missing = message.startswith("Object missing required field")
    if missing or message.startswith("Object contains unknown field"):
        path = ".".join(filter(None, (path, message.split("`")[1])))
    if message.startswith(_INVALID_ENUM):
        message = f"{message[:100]}; allowed: {', '.join(_allowed_at(kind, path))}"
    code = "missing_field" if missing and code == "invalid_field" else code
    return ProtocolError(code, f"{where}{message}.", param=path or None, event_id=event_id)


def parameter_error(
    error: msgspec.ValidationError, kind: type, event_id: str | None = None, types: tuple[str, ...] = ()
) -> ProtocolError:
    """``error`` of decoding a ``kind``, with codes and words of OpenAI's API. ``types``: the events that ``type`` may name."""
    path, message = _where_wrong(error)
    path = path.replace("[...]", "[]")
    if message.startswith("Object missing required field"):
        path = ".".join(filter(None, (path, message.split("`")[1])))
        return ProtocolError(
            "missing_required_parameter",
            f"Missing required parameter: '{path}'.",
            param=path,
            event_id=event_id,
        )
    if path == "type" and message.startswith("Invalid value"):
        code, text = "invalid_value", _not_supported(message.removeprefix("Invalid value "), types)
    elif message.startswith(_INVALID_ENUM):
        code, text = (
            "invalid_value",
            _not_supported(message.removeprefix(_INVALID_ENUM), _allowed_at(kind, path)),
        )
    else:
        code, text = _worded(message, path)
    return ProtocolError(code, text, param=path or None, event_id=event_id)


def _not_supported(value: str, allowed: tuple[str, ...]) -> str:
    listed = ", ".join(one if " " in one else f"'{one}'" for one in allowed)
    return f"Invalid value: {value[:90]}. Supported values are: {listed}."


def _worded(message: str, path: str) -> tuple[str, str]:
    bounds = _RANGE.match(message)
    if bounds is not None:
        kind = "integer" if bounds["kind"] == "int" else "decimal"
        which, words = (
            ("above_max", "above maximum") if bounds["sign"][0] == "<" else ("below_min", "below minimum")
        )
        if "length" in message:
            return f"string_{which}_length", f"Invalid '{path}': {message}."
        text = f"Invalid '{path}': {kind} {words} value. Expected a value {bounds['sign']} {bounds['bound']}."
        return f"{kind}_{which}_value", text
    if message.startswith("Expected `") and ", got `" in message:
        wanted, got = message.removeprefix("Expected ").split(", got ", 1)
        where = f"'{path}'" if path else "the event"
        return "invalid_type", f"Invalid type for {where}: expected {wanted}, but got {got} instead."
    return "invalid_value", f"Invalid '{path}': {message}." if path else f"{message}."


@functools.lru_cache(maxsize=256)
def _allowed_at(kind: type, path: str) -> tuple[str, ...]:
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
