"""What the code says about the fields of its structs: types, ranges, defaults, and the meaning that stands beside them.

A meaning is a line ``name: meaning`` in the docstring of the struct, or the comment on the lines before the field, or
``Meta(description=...)`` of the field's type.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import inspect as types

_NAMES: Final = {
    types.StrType: "string",
    types.IntType: "integer",
    types.FloatType: "number",
    types.BoolType: "boolean",
    types.NoneType: "null",
    types.DictType: "object",
    types.AnyType: "anything",
    types.RawType: "anything",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field. ``kind`` is in words, with its range; ``default`` is JSON, empty where there is none to show."""

    name: str
    kind: str
    default: str
    is_required: bool
    meaning: str


_LINE: Final = re.compile(r"(`{0,2})(\w+)\1: (.+)")


def summary_of(thing: object) -> str:
    """The docstring as running text, without what it says of each field. Line ends within a paragraph are spaces."""
    return summary_in(thing.__doc__ or "")


def summary_in(docstring: str) -> str:
    parts = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts if not _LINE.match(part))


def lines_in(docstring: str) -> dict[str, str]:
    """What a docstring says in lines of ``name: meaning``, in paragraphs of nothing else; a further line may be indented."""
    found: dict[str, str] = {}
    for part in inspect.cleandoc(docstring).split("\n\n"):
        if _LINE.match(part):
            for line in re.sub(r"\n\s+", " ", part).splitlines():
                if said := _LINE.fullmatch(line):
                    found[said[2]] = said[3]
    return found


def fields_of(kind: type) -> Iterator[Field]:
    """The fields of a struct as a peer sees them, in order."""
    meanings = meanings_of(kind)
    described = types.type_info(kind)
    assert isinstance(described, types.StructType)
    for one in described.fields:
        yield Field(
            one.encode_name,
            words_of(one.type),
            default_of(one),
            one.required,
            description_of(one.type) or meanings.get(one.name, ""),
        )


def default_of(one: types.Field) -> str:
    value = one.default
    if one.default_factory is not msgspec.NODEFAULT:
        value = one.default_factory()
    if value in (msgspec.NODEFAULT, msgspec.UNSET):
        return ""
    is_struct = isinstance(value, msgspec.Struct)
    return "{}" if is_struct else json.dumps(msgspec.to_builtins(value), ensure_ascii=False)


def description_of(kind: types.Type) -> str:
    """``Meta(description=...)`` wherever it stands in the type; empty without one."""
    if isinstance(kind, types.Metadata):
        found = str((kind.extra_json_schema or {}).get("description", ""))
        return found or description_of(kind.type)
    if isinstance(kind, types.UnionType):
        return next(filter(None, map(description_of, kind.types)), "")
    return ""


def words_of(kind: types.Type) -> str:
    """The type in words: "integer, from 0 to 5000"."""
    if isinstance(kind, types.Metadata):
        title = (kind.extra_json_schema or {}).get("title")
        return f"string: {title}" if title else words_of(kind.type)
    if isinstance(kind, types.UnionType):
        return " or ".join(sorted(map(words_of, kind.types), key=lambda one: one == "null"))
    if isinstance(kind, types.LiteralType):
        return "one of " + ", ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, types.StructType):
        return f"[{kind.cls.__name__}](#{kind.cls.__name__.lower()})"
    if isinstance(kind, types.VarTupleType | types.ListType):
        most = f", at most {kind.max_length}" if kind.max_length is not None else ""
        return f"list of {words_of(kind.item_type)}{most}"
    if isinstance(kind, types.DictType) and isinstance(kind.value_type, types.StructType):
        return f"object of {words_of(kind.value_type)}"
    return _NAMES[type(kind)] + _range_of(kind)


def _range_of(kind: types.Type) -> str:
    if isinstance(kind, types.IntType | types.FloatType):
        if kind.ge is not None and kind.le is not None:
            return f", from {_number(kind.ge)} to {_number(kind.le)}"
        return f", at least {_number(kind.ge)}" if kind.ge is not None else ""
    if isinstance(kind, types.StrType):
        if kind.pattern is not None:
            return f", `{kind.pattern}`"
        if kind.max_length is not None:
            return f", at most {kind.max_length} characters"
        return ", not empty" if kind.min_length else ""
    return ""


def _number(value: float) -> str:
    return "2^53" if value == 2**53 else f"{value:g}" if isinstance(value, float) else str(value)


def structs_in(*kinds: type) -> list[type]:
    """The structs that the fields of ``kinds`` are made of, each once, ``kinds`` themselves left out."""
    found: dict[type, None] = {}

    def walk(kind: types.Type) -> None:
        if isinstance(kind, types.Metadata):
            walk(kind.type)
        elif isinstance(kind, types.UnionType):
            for one in kind.types:
                walk(one)
        elif isinstance(kind, types.VarTupleType | types.ListType):
            walk(kind.item_type)
        elif isinstance(kind, types.DictType):
            walk(kind.value_type)
        elif isinstance(kind, types.StructType) and kind.cls not in found:
            found[kind.cls] = None
            for field in kind.fields:
                walk(field.type)

    for kind in kinds:
        walk(types.type_info(kind))
    return [kind for kind in found if kind not in kinds]


@functools.cache
def meanings_of(kind: type) -> dict[str, str]:
    """What is said of each field of a class and of those that it inherits from, by the name of the field."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        if base.__module__.split(".")[0] in ("voiceserver", "voiceserver_workers", "voiceserver_clients"):
            found |= _comments_of(base) | lines_in(base.__doc__ or "")
    return found


def _comments_of(kind: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(kind))
    lines = source.splitlines()
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.strip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, str] = {}
    (body,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    for at, node in enumerate(body.body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        after = body.body[at + 1] if at + 1 < len(body.body) else None
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[node.target.id] = " ".join(str(after.value.value).split())
            continue
        before: list[str] = []
        line = node.lineno - 1
        while line > 0 and lines[line - 1].strip().startswith("#"):
            before.insert(0, comments[line][0])
            line -= 1
        behind = [
            comments[line][0] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in comments
        ]
        if before or behind:
            found[node.target.id] = " ".join([*before, *behind])
    return found
