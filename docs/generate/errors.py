"""``errors.md``: every code that a caller can get, read from where the code raises or sends it, and the close codes."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import voiceserver
from docs.generate.page import Page, Row, Section
from voiceserver.errors import Refusal
from voiceserver.transport.http import refusal_message

ROOT: Final = Path(voiceserver.__file__).parent
# What makes or sends an error. The first argument that looks like a code is one, and the argument behind it is the message.
SENDERS: Final = frozenset(
    {
        "ProtocolError",
        "BadRequest",
        "ErrorEvent",
        "RemoteFailure",
        "TranscriptFailed",
        "error_response",
        "_unauthorized",
        "fail",
        "give_up",
    }
)
_CODE: Final = re.compile(r"[a-z]+(_[a-z]+)*")
_CLOSE: Final = range(1000, 1016)
_STATUS: Final = range(400, 600)
GAP: Final = "…"  # what a message has in place of a value

CLOSE_CODES: Final[Mapping[int, str]] = {
    1000: "After `session.close`, when a limit is reached (`idle_timeout`, `session_expired`), and when another connection has "
    "the session now (`session_taken_over`).",
    1002: "The peer breaks the WebSocket standard.",
    1003: "A telephone call began wrongly; the reason names the field.",
    1007: "A text message is not UTF-8.",
    1008: "The peer does not read (`slow_reader`), or its key has no time left (`key_talk_exhausted`).",
    1009: "A message is too long, or a request needs more memory than a session may have.",
    1011: "A fault of the server or of an engine, or a peer that answers no ping.",
    1012: "The server is draining. Connect again: another one may answer.",
    1013: "There is no place: a browser that was refused, or anybody whose wait was in vain.",
}
# Where a code is used, by the beginning of its module; the first that fits.
_WHERE: Final = (
    ("wire/openai", "OpenAI Realtime"),
    ("wire/twilio", "Twilio Media Streams"),
    ("wire/whisperlive", "WhisperLive"),
)
SESSION: Final = "Sessions"
HTTP: Final = "HTTP"


class Found(NamedTuple):
    """One place in the code that sends an error. ``number``: the HTTP status or the close code, 0 for neither."""

    where: str
    code: str
    number: int
    message: str


@functools.cache
def found() -> tuple[Found, ...]:
    """Every place, in the order of the modules."""
    return tuple(_found())


def _found() -> Iterator[Found]:
    for path in sorted(ROOT.rglob("*.py")):
        module = path.relative_to(ROOT).with_suffix("").as_posix()
        tree = ast.parse(path.read_text())
        functions = [
            node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        inner = {id(one) for function in functions for one in ast.walk(function) if one is not function}
        for scope in [tree, *functions]:
            nodes = (
                ast.walk(scope)
                if scope is not tree
                else (one for one in ast.walk(tree) if id(one) not in inner)
            )
            for node in nodes:
                yield from _errors_at(module, node, scope)


def _errors_at(module: str, node: ast.AST, scope: ast.AST) -> Iterator[Found]:
    is_refusal = _called(node) in ("_refuse", "Refusal") and module.startswith(
        ("capacity/", "transport/http")
    )
    if isinstance(node, ast.Call) and is_refusal and node.args and (reason := _text(node.args[0])):
        yield Found(HTTP, reason, 503, re.sub(r"\d+", GAP, refusal_message(Refusal(reason, 0.0))))
        return
    if isinstance(node, ast.Call) and _called(node) in SENDERS:
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and _numbers(node.value.elts):
        arguments = list(node.value.elts)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if key is not None and (number := _number(key)) in _CLOSE and (code := _text(value)):
                yield Found(SESSION, code, number, "")
        return
    else:
        return
    for at, argument in enumerate(arguments):
        if isinstance(argument, ast.Constant) and _CODE.fullmatch(str(argument.value)):
            numbers = _numbers(arguments) or ([401] if _called(node) == "_unauthorized" else [0])
            message = _message(arguments[at + 1], scope) if at + 1 < len(arguments) else ""
            where = next((name for start, name in _WHERE if module.startswith(start)), SESSION)
            yield Found(HTTP if numbers[0] in _STATUS else where, str(argument.value), numbers[0], message)
            return


def _called(node: ast.AST) -> str:
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _number(node: ast.AST) -> int:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _numbers(nodes: Iterable[ast.AST]) -> list[int]:
    return [number for one in nodes if (number := _number(one)) in _CLOSE or number in _STATUS]


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _message(node: ast.AST, scope: ast.AST) -> str:
    """The text of a message, with a gap for each value in it; of a variable, the text that it
    was given last before."""
    if isinstance(node, ast.Name):
        given = [
            one.value
            for one in ast.walk(scope)
            if isinstance(one, ast.Assign)
            and ast.unparse(one.targets[0]) == node.id
            and one.lineno < node.lineno
        ]
        return _message(given[-1], scope) if given and not isinstance(given[-1], ast.Name) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(GAP if isinstance(part, ast.FormattedValue) else _text(part) for part in node.values)
    if isinstance(node, ast.Call) and _called(node) == "_not_one_of":
        return f"There is no {_message(node.args[0], scope)}. Allowed: {GAP}."
    return _text(node)


def page() -> Page:
    places = found()
    return Page(
        "errors",
        "Errors and close codes",
        "the modules of voiceserver that send them",
        f"A code is for programs and stays; a message is for people and may change. `{GAP}` stands for a value. An error of a "
        "session leaves the session open unless a close code stands beside it.",
        [
            _section(
                HTTP,
                "Before a WebSocket is open, and from the pages: the `code` of the JSON body.",
                "status",
                places,
            ),
            _section(
                SESSION,
                "On the native wire the `code` of `error`, `transcript.failed` and `reply.done`. The other wires translate.",
                "closes with",
                places,
            ),
            *(_section(name, "Codes of this wire only.", "closes with", places) for _, name in _WHERE),
            Section(
                "Close codes",
                "Of the WebSocket. A code from 3000 to 4999 is one that the client chose.",
                ("code", "meaning"),
                [(f"`{code}`", meaning) for code, meaning in CLOSE_CODES.items()],
            ),
        ],
    )


def _section(where: str, text: str, number: str, places: Sequence[Found]) -> Section:
    by_code: dict[str, list[Found]] = {}
    for one in places:
        if one.where == where:
            by_code.setdefault(one.code, []).append(one)
    rows: list[Row] = []
    for code, given in sorted(by_code.items()):
        numbers = sorted({one.number for one in given if one.number})
        messages = dict.fromkeys(one.message for one in given if one.message)
        rows.append((f"`{code}`", ", ".join(map(str, numbers)), " / ".join(list(messages)[:3])))
    return Section(where, text, ("code", number, "message"), rows)
