"""One event of an answer, read field by field. Pure: bytes in, a ``Chunk`` out, and nothing is raised for what is odd.

Endpoints and the proxies before them put anything anywhere: ``choices: null``, a list of parts for text, half a character.
Rule: a field that cannot be read is passed over and named in ``Chunk.odd``, and the fields beside it count all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from voiceserver.events.json_values import has_too_many_values

MAX_TOKENS: Final = 1 << 53  # what a client in JavaScript can count
MAX_CALLS: Final = 128  # of one answer
MAX_CHUNKS: Final = 4_096  # of one list
MAX_PARTS: Final = 1_024  # of one text
MAX_WORD_CHARS: Final = 256  # of an id, a name, a reason
_MAX_DIGITS: Final = 400
_MAX_FAILURES: Final = 8  # each may read the rest of the event
_LONG: Final = 65_536  # an event in which one failure is enough
_BETWEEN: Final = re.compile(r"(?:\s|data:)*+")  # values, and the frames of events that were not taken apart
_NEXT: Final = re.compile(r"\n|data:")  # where a value may begin behind one that is broken
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_RAW_BYTE: Final = re.compile("[\udc80-\udcff]+")
# Fields of a delta that hold the thoughts of a model: a sign of life, and nothing to say.
_THOUGHTS: Final = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks")
_NOTHING: Final = msgspec.Raw(b"null")
_UNREAD: Final = object()
_TEXT_PARTS: Final = ("text", "output_text", "")


class CallDelta(NamedTuple):
    """A piece of a tool call; ``number`` None: the endpoint gives none."""

    number: int | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""


class Chunk(NamedTuple):
    """What one event says. ``text`` may hold halves of characters, see ``TextJoiner``."""

    text: str = ""
    calls: tuple[CallDelta, ...] = ()
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    # The text is that of the whole answer, not of its next piece.
    is_message: bool = False
    # The model thinks.
    has_thoughts: bool = False
    # The endpoint says that it failed.
    is_error: bool = False
    is_done: bool = False
    # Names of the fields that could not be read.
    odd: tuple[str, ...] = ()


def read_event(data: bytes) -> Iterator[Chunk]:
    """The chunks of one event: one, or as many as there are values in it."""
    for value in _values(data):
        # A peer that does not stream may send all its chunks as one list.
        several = value[:MAX_CHUNKS] if isinstance(value, list) and value else [value]
        for one in several:
            # "json": the rest of something; "data": nothing of a chunk was ever in it.
            yield Chunk(odd=("json" if b"{" in data else "data",)) if one is _UNREAD else _read_chunk(one)


def _values(data: bytes) -> Iterable[object]:
    """The JSON values of ``data``; ``_UNREAD`` after them where that is not all of it."""
    if data == b"[DONE]":
        return ["[DONE]"]
    if has_too_many_values(data):
        return _what_is_used(data)
    try:
        return [msgspec.json.decode(data)]
    except (msgspec.DecodeError, RecursionError):
        return _leniently(data)


def _leniently(data: bytes) -> Iterator[object]:
    """Also NaN, line breaks within text, halves of surrogate pairs, bytes that are no UTF-8, and several values in a row."""
    text = data.decode("utf-8", "surrogateescape")
    at, failures = 0, 0
    most = _MAX_FAILURES if len(text) < _LONG else 1
    for _ in range(MAX_CHUNKS):
        between = _BETWEEN.match(text, at)
        at = between.end() if between is not None else at
        if at == len(text) or failures == most:
            break
        if text.startswith("[DONE]", at):
            yield "[DONE]"
            break
        try:
            value, at = _LENIENT.raw_decode(text, at)
            yield value
        except (ValueError, RecursionError):
            failures += 1
            following = _NEXT.search(text, at)
            at = len(text) if following is None else following.start()
    if failures:
        yield _UNREAD


class _UsedOfChoice(msgspec.Struct, omit_defaults=True):
    delta: msgspec.Raw = _NOTHING
    message: msgspec.Raw = _NOTHING
    text: msgspec.Raw = _NOTHING
    finish_reason: msgspec.Raw = _NOTHING


class _UsedOfChunk(msgspec.Struct, omit_defaults=True):
    choices: tuple[_UsedOfChoice] | None = None
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING
    object: msgspec.Raw = _NOTHING


def _what_is_used(data: bytes) -> Iterator[object]:
    """Of one chunk that is too large to be decoded: what is passed over, as probabilities of tokens, makes no values."""
    try:
        chunk = _decode_used(data)
        rest = msgspec.json.encode(chunk)
        if not has_too_many_values(rest):
            yield msgspec.json.decode(rest)
            return
    except (msgspec.DecodeError, RecursionError):
        pass
    yield _UNREAD


_decode_used: Final = msgspec.json.Decoder(_UsedOfChunk).decode


def _number(digits: str) -> int | None:
    return int(digits) if len(digits) <= _MAX_DIGITS else None


_LENIENT: Final = json.JSONDecoder(strict=False, parse_int=_number)


# ------------------------------------------------------------------------------------------------------ field by field


def _read_chunk(value: object) -> Chunk:
    if value == "[DONE]":
        return Chunk(is_done=True)
    if not isinstance(value, dict):
        return Chunk(odd=("data",))
    odd: list[str] = []
    is_error = bool(value.get("error")) or value.get("object") == "error"
    usage = _object(value, "usage", odd)
    choice = _first_choice(value, odd)
    delta, is_message = _delta(choice, odd)
    calls = _calls(delta, odd)
    text = _text(delta.get("content"), "content", odd) or _text(delta.get("refusal"), "refusal", odd)
    if not text and "text" in choice:  # the older interface of completions
        text = _text(choice["text"], "text", odd)
    return Chunk(
        text=text,
        calls=calls,
        finish_reason=_word(choice, "finish_reason", odd),
        prompt_tokens=_tokens(usage, "prompt_tokens", odd),
        completion_tokens=_tokens(usage, "completion_tokens", odd),
        is_message=is_message,
        has_thoughts=any(delta.get(name) for name in _THOUGHTS),
        is_error=is_error,
        odd=tuple(dict.fromkeys(odd)),
    )


def _first_choice(value: Mapping[str, object], odd: list[str]) -> Mapping[str, object]:
    choices = value.get("choices", ())
    if isinstance(choices, dict):  # one choice that nobody put into a list
        return choices
    if not isinstance(choices, list | tuple):
        odd.append("choices")
        return {}
    found = [choice for choice in choices if isinstance(choice, dict)]
    if len(found) < len(choices):
        odd.append("choices")
    # Only the first of several answers is spoken.
    firsts = (choice for choice in found if choice.get("index") in (None, 0))
    return found[0] if len(found) == 1 else next(firsts, {})


def _delta(choice: Mapping[str, object], odd: list[str]) -> tuple[Mapping[str, object], bool]:
    """The next piece, or the whole message of an endpoint that does not stream."""
    delta = _object(choice, "delta", odd)
    message = _object(choice, "message", odd)
    return (delta, False) if delta or not message else (message, True)


def _text(value: object, name: str, odd: list[str]) -> str:
    """Text as it is, or in parts."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        odd.append(name)
        return ""
    texts: list[str] = []
    for part in value[:MAX_PARTS]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            if part.get("type", "") in _TEXT_PARTS:
                texts.append(part["text"])
        elif not (isinstance(part, dict) and part.get("type")):
            odd.append(name)
    return "".join(texts)


def _calls(delta: Mapping[str, object], odd: list[str]) -> tuple[CallDelta, ...]:
    listed = delta.get("tool_calls")
    if listed is None and delta.get("function_call") is not None:  # the older interface of one function
        listed = [{"function": delta["function_call"]}]
    if listed is None:
        return ()
    if isinstance(listed, dict):
        listed = [listed]
    if not isinstance(listed, list):
        odd.append("tool_calls")
        return ()
    if len(listed) > MAX_CALLS:
        odd.append("tool_calls")
    calls = (_call(one, odd) for one in listed[:MAX_CALLS])
    return tuple(call for call in calls if call is not None)


def _call(value: object, odd: list[str]) -> CallDelta | None:
    if not isinstance(value, dict):
        odd.append("tool_calls")
        return None
    function = _object(value, "function", odd)
    number = value.get("index")
    if not isinstance(number, int) or isinstance(number, bool):
        if number is not None:
            odd.append("index")
        number = None
    call = CallDelta(
        number=number,
        call_id=_word(value, "id", odd),
        name=_word(function, "name", odd),
        arguments=_arguments(function.get("arguments"), odd),
    )
    if call.call_id or call.name or call.arguments or function:
        return call
    odd.append("tool_calls")
    return None


def _arguments(value: object, odd: list[str]) -> str:
    """JSON in text, or the object itself."""
    if isinstance(value, dict | list):
        return _whole_characters(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    if isinstance(value, str):
        return _whole_characters(value)
    if value is not None:
        odd.append("arguments")
    return ""


def _object(value: Mapping[str, object], name: str, odd: list[str]) -> Mapping[str, object]:
    """An object; an empty one where it is missing, null or something else."""
    found = value.get(name)
    if isinstance(found, dict):
        return found
    if found is not None:
        odd.append(name)
    return {}


def _word(value: Mapping[str, object], name: str, odd: list[str]) -> str:
    found = value.get(name)
    if isinstance(found, str):
        return _whole_characters(found[:MAX_WORD_CHARS])
    if found is not None:
        odd.append(name)
    return ""


def _tokens(usage: Mapping[str, object], name: str, odd: list[str]) -> int | None:
    """A count; some endpoints send it as a decimal number."""
    found = usage.get(name)
    if isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found <= MAX_TOKENS:
        return round(found)
    if name in usage:
        odd.append(name)
    return None


# -------------------------------------------------------------------------------------------------- whole characters


class TextJoiner:
    """Joins characters that were cut in two: halves of a surrogate pair, and bytes of one character in two deltas.
    ``skipped``: halves whose other half never came."""

    __slots__ = ("_rest", "skipped")

    def __init__(self) -> None:
        self._rest = ""
        self.skipped = 0

    def feed(self, text: str) -> str:
        """The whole characters of what came so far."""
        if self._rest:
            text, self._rest = self._rest + text, ""
        if not _SURROGATE.search(text):
            return text
        # UTF-16 puts the halves of a pair together again.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        text = _RAW_BYTE.sub(_of_bytes, text)
        end = len(text)
        while end and end > len(text) - 4 and _SURROGATE.match(text[end - 1]):
            end -= 1
        self._rest = text[end:]
        whole, skipped = _SURROGATE.subn("", text[:end])
        self.skipped += skipped
        return whole

    def finish(self) -> None:
        """Nothing comes any more: what is left has no other half."""
        self.skipped += len(self._rest)
        self._rest = ""


def _of_bytes(match: re.Match[str]) -> str:
    return match[0].encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def _whole_characters(text: str) -> str:
    """Halves of characters are left out."""
    return text.encode("utf-8", "ignore").decode()
