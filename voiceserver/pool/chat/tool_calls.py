"""Which piece belongs to which tool call. Pure: deltas of the endpoint in, pieces for the session out.

Endpoints number calls from 0, or give every call 0, or none a number; they send ids once, always or never, and arguments whole,
in pieces, as all so far, or twice. Read in this order::

    an id that is new, with a name      another call
    an id or a number that is known     that call; another one, if this is a second whole call
    neither                             the last call

Rule: calls are numbered here, in the order in which they come, and each has an id. A piece that may be a repetition waits for
the end of the answer: there all that came either is one JSON value, or several calls, or the same call twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Final
from uuid import uuid4

from voiceserver.pool.chat.chunks import MAX_CALLS, CallDelta
from voiceserver_workers.ipc.messages import ToolPiece

_MAYBE_NEXT: Final = re.compile(r"\A\s*\{|\}\s*\{")  # a brace where another object may begin
_scan: Final = json.JSONDecoder().raw_decode


MAX_ARGUMENT_CHARS: Final = 131_072  # of all calls of an answer
MAX_JOINED: Final = 16  # calls in the arguments of one


class TooManyCalls(Exception):
    """More calls, or longer ones, than any answer has."""


def new_call_id() -> str:
    return f"call_{uuid4().hex[:24]}"


class _Call:
    __slots__ = ("arguments", "call_id", "endpoint_id", "held", "index", "name", "number", "told")

    def __init__(self, index: int, delta: CallDelta) -> None:
        self.index = index
        self.number = delta.number
        self.endpoint_id = delta.call_id
        self.call_id = delta.call_id
        self.name = ""
        self.arguments = ""  # that were passed on
        self.told = False  # the session knows of it
        self.held: list[str] = []

    @property
    def all_arguments(self) -> str:
        return self.arguments + "".join(self.held)


class ToolCalls:
    """``receive`` deltas, ``finish`` at the end of the answer; both give pieces for the session."""

    __slots__ = ("_calls", "_left_chars", "_new_id", "nameless")

    def __init__(self, new_id: Callable[[], str] = new_call_id) -> None:
        self._calls: list[_Call] = []
        self._new_id = new_id
        self._left_chars = MAX_ARGUMENT_CHARS
        self.nameless = 0  # calls that never got a name, at the end

    def __len__(self) -> int:
        return len(self._calls)

    def receive(self, delta: CallDelta) -> Iterator[ToolPiece]:
        """Raises TooManyCalls."""
        self._left_chars -= len(delta.arguments)
        if self._left_chars < 0:
            raise TooManyCalls
        call = self._call_of(delta) or self._begin(delta)
        call.endpoint_id = call.endpoint_id or delta.call_id
        call.name = call.name or delta.name
        piece = delta.arguments
        # It may be what came before, once more; and an empty object may stand for what is still to come.
        is_doubtful = _MAYBE_NEXT.search(piece, 0 if call.arguments else 1) or piece.strip() == "{}"
        if call.held or is_doubtful or not call.name:
            call.held += [piece] if piece else []
            piece = ""
        if call.name and (piece or not call.told):
            yield self._pass_on(call, piece)

    def finish(self) -> Iterator[ToolPiece]:
        for call in list(self._calls):
            if call.name:
                yield from self._settle(call)
            else:
                self.nameless += 1

    # ------------------------------------------------------------------------------------------------- which call

    def _call_of(self, delta: CallDelta) -> _Call | None:
        """The call that ``delta`` goes on with; None: it begins one."""
        if not self._calls:
            return None
        found = None
        if delta.call_id:
            found = self._last(lambda call: call.endpoint_id == delta.call_id)
            if found is not None and delta.name and delta.number not in (None, found.number):
                return None  # the endpoint gives all its calls one id
        if found is None and delta.number is not None:
            found = self._last(lambda call: call.number == delta.number)
        elif found is None:
            found = self._calls[-1]
        if found is None or (delta.call_id and delta.name and found.endpoint_id not in ("", delta.call_id)):
            return None
        return None if _begins_another(found, delta) else found

    def _last(self, is_meant: Callable[[_Call], bool]) -> _Call | None:
        return next((call for call in reversed(self._calls) if is_meant(call)), None)

    def _begin(self, delta: CallDelta) -> _Call:
        if len(self._calls) >= MAX_CALLS:
            raise TooManyCalls
        call = _Call(len(self._calls), delta)
        if not call.call_id or any(one.call_id == call.call_id for one in self._calls):
            call.call_id = self._new_id()
        self._calls.append(call)
        return call

    # --------------------------------------------------------------------------------------------------- at the end

    def _settle(self, call: _Call) -> Iterator[ToolPiece]:
        """What was held, now that all is there."""
        if not call.held:
            return
        held, last = "".join(call.held), call.held[-1]
        call.held = []
        values = _objects(call.arguments + held)
        if not values:
            # All so far with each piece; if it is not that either, it is passed on as it is.
            is_all = bool(_objects(last)) and last.startswith(call.arguments)
            yield self._pass_on(call, last[len(call.arguments) :] if is_all else held)
            return
        distinct = [one for at, one in enumerate(values) if one[1] not in [two[1] for two in values[:at]]]
        # An empty object before another one stood for it.
        if len(distinct) > 1 and not call.arguments:
            distinct = [one for one in distinct if one[1]]
        first, *others = distinct
        if not call.arguments or not _objects(call.arguments):
            yield self._pass_on(call, first[0][len(call.arguments) :])
        for text, _ in others:
            another = self._begin(CallDelta(call.number))
            another.name = call.name
            yield self._pass_on(another, text)

    def _pass_on(self, call: _Call, arguments: str) -> ToolPiece:
        call.arguments += arguments
        is_new, call.told = not call.told, True
        return ToolPiece(
            index=call.index,
            call_id=call.call_id if is_new else "",
            name=call.name if is_new else "",
            arguments=arguments,
        )


def _begins_another(call: _Call, delta: CallDelta) -> bool:
    """``delta`` has the id or the number of ``call``, and is a call of its own all the same."""
    if not delta.name or not call.name:
        return False
    if delta.name != call.name:
        return True
    mine, its = _objects(call.all_arguments), _objects(delta.arguments)
    if not mine or not delta.arguments or (delta.call_id and not its):
        return False
    return not its or mine[-1][1] not in ({}, its[0][1])


def _objects(text: str) -> list[tuple[str, object]]:
    """The JSON objects that ``text`` is made of, each as text and as a value; none if it is made of anything else, or
    of more than MAX_JOINED."""
    found: list[tuple[str, object]] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        if text[at] != "{":
            return []
        try:
            value, end = _scan(text, at)
        except (ValueError, RecursionError):
            return []
        found.append((text[at:end], value))
        at = end
        if len(found) > MAX_JOINED:
            return []
    return found
