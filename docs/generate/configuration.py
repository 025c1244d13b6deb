"""``configuration.md``: every setting with its type, range, default, environment name, flag and meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect as types

from docs.generate.cli import options_of
from docs.generate.fields import default_of, description_of, meanings_of, summary_of, words_of
from docs.generate.page import Page, Row, Section
from voiceserver.config.environment import FILE_VARIABLE, PREFIX
from voiceserver.config.loader import DEFAULT_FILE
from voiceserver.config.rules import problem_of
from voiceserver.config.schema import Config, StageConfig

HEADS: Final = ("setting", "value", "default", "environment", "meaning")
STAGE: Final = "STAGE"
# A value of each type that no rule allows: what is wrong with it says what is allowed.
_IMPOSSIBLE: Final[Mapping[type, object]] = {
    types.IntType: -(10**18),
    types.FloatType: -1e18,
    types.StrType: "\0",
}


def page() -> Page:
    return Page(
        "configuration",
        "Configuration",
        "`voiceserver/config`",
        f"A TOML file (`--config`, `${FILE_VARIABLE}` or `./{DEFAULT_FILE}`), environment variables and flags. Flags win over "
        "the environment, the environment wins over the file. Every setting has one dotted name: `stages.stt.workers` in the "
        f"file, `{environment_name('stages.stt.workers')}` in the environment, `--set stages.stt.workers=2` as a flag. Some "
        "have a flag of their own.\n\n"
        "A setting or a variable that does not exist is refused, with the nearest name that does. `voiceserver config` "
        "prints what is in effect and where each value came from. Times are milliseconds where a name ends in `_ms`.",
        list(_sections()),
    )


def settings() -> Iterator[tuple[str, types.Field, type]]:
    """Every setting: its dotted name, its field and the struct that has it. The stages are one, called STAGE."""

    def walk(kind: type, prefix: str) -> Iterator[tuple[str, types.Field, type]]:
        described = types.type_info(kind)
        assert isinstance(described, types.StructType)
        for field in described.fields:
            inner = field.type.type if isinstance(field.type, types.Metadata) else field.type
            if isinstance(inner, types.StructType):
                name = STAGE if inner.cls is StageConfig else field.name
                yield from walk(inner.cls, f"{prefix}{name}.")
            else:
                yield prefix + field.name, field, kind

    seen: set[str] = set()
    for key, field, kind in walk(Config, ""):
        if key not in seen:
            seen.add(key)
            yield key, field, kind


def environment_name(key: str) -> str:
    return PREFIX + key.upper().replace(".", "__")


def allowed(key: str, field: types.Field) -> str:
    """What the rule of the setting asks for, in its own words; empty where there is no rule."""
    kind = field.type.type if isinstance(field.type, types.Metadata) else field.type
    probe = _IMPOSSIBLE.get(type(kind))
    problem = problem_of(key.replace(STAGE, "stt").split("."), probe) if probe is not None else ""
    return problem.removeprefix("must be ")


def _sections() -> Iterator[Section]:
    flags = {f"server.{name}": flag for name, flag in options_of("serve").items()}
    sections: dict[str, list[Row]] = {}
    kinds: dict[str, type] = {}
    for key, field, kind in settings():
        table = key.rpartition(".")[0]
        kinds[table] = kind
        meaning = description_of(field.type) or meanings_of(kind).get(field.name, "")
        rule = allowed(key, field)
        cell = f"`{key}`, `{flags[key]}`" if key in flags else f"`{key}`"
        value = words_of(field.type) + (f", {rule}" if rule else "")
        sections.setdefault(table, []).append(
            (cell, value, _defaults(key, field), f"`{environment_name(key)}`", meaning)
        )
    for table, rows in sections.items():
        yield Section(f"`[{table}]`", _note(table, kinds[table]), HEADS, rows)


def _note(table: str, kind: type) -> str:
    text = summary_of(kind)
    if STAGE in table:
        text = f"`{STAGE}` is `vad`, `stt`, `reply` or `tts`. {text}"
    return text


def _defaults(key: str, field: types.Field) -> str:
    """The default; where stages differ, that of each."""
    if STAGE not in key:
        return f"`{default_of(field)}`"
    tree: Any = msgspec.to_builtins(Config())
    found: dict[str, list[str]] = {}
    for stage in tree["stages"]:
        value = tree
        for part in key.replace(STAGE, stage).split("."):
            value = value[part]
        found.setdefault(json.dumps(value), []).append(stage)
    if len(found) == 1:
        return f"`{next(iter(found))}`"
    return ", ".join(f"{', '.join(stages)}: `{value}`" for value, stages in found.items())
