"""``cli.md``: every command of ``voiceserver`` with its arguments and options."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import typer.main

from docs.generate.page import Page, Row, Section
from voiceserver import cli

HEADS: Final = ("option", "value", "default", "meaning")
_VALUES: Final[Mapping[object, str]] = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "FILE"}


def commands() -> dict[str, Any]:
    """Every command by its whole name: ``voiceserver``, ``voiceserver serve``, ..."""
    found: dict[str, Any] = {}

    def walk(name: str, command: Any) -> None:
        client = name.removeprefix("voiceserver ")
        found[name] = typer.main.get_command(cli.client(client)) if client in cli.CLIENTS else command
        for one, inner in getattr(command, "commands", {}).items():
            walk(f"{name} {one}", inner)

    walk("voiceserver", typer.main.get_command(cli.app))
    return found


def options_of(command: str) -> dict[str, str]:
    """The options of a command: the flag by the name of the parameter."""
    return {one.name: one.opts[0] for one in commands()[f"voiceserver {command}"].params}


def page() -> Page:
    return Page(
        "cli",
        "Command line",
        "`voiceserver/cli.py`, and the clients that it calls",
        "An error is one line on stderr, and exit code 2. Every command has `--help`.",
        [
            Section(f"`{_usage(name, command)}`", _text(command), HEADS, list(_rows(command)))
            for name, command in commands().items()
        ],
    )


def _usage(name: str, command: Any) -> str:
    arguments = [one.name.upper() for one in command.params if one.param_type_name == "argument"]
    return " ".join([name, *(["COMMAND"] if getattr(command, "commands", None) else []), *arguments])


def _text(command: Any) -> str:
    return " ".join((command.help or "").split())


def _rows(command: Any) -> Iterator[Row]:
    callback = inspect.unwrap(command.callback) if command.callback is not None else None
    hints = get_type_hints(callback, include_extras=True) if callback is not None else {}
    for one in command.params:
        is_argument = one.param_type_name == "argument"
        names = [one.name.upper()] if is_argument else [*one.opts, *one.secondary_opts]
        is_flag = getattr(one, "is_flag", False)
        value = "" if is_flag else (one.metavar or _value_of(hints.get(one.name)))
        default = "required" if one.required else _default(one.default)
        repeated = ", may be repeated" if getattr(one, "multiple", False) else ""
        yield (
            ", ".join(f"`{name}`" for name in names),
            f"`{value}`{repeated}" if value else "",
            default,
            str(one.help or ""),
        )


def _value_of(hint: object) -> str:
    """What the value of an option is called, by the type of its parameter."""
    if get_origin(hint) is Annotated:
        return _value_of(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType, list):
        return next((_value_of(one) for one in get_args(hint) if one is not NoneType), "")
    return _VALUES.get(hint, "TEXT")


def _default(value: object) -> str:
    is_shown = isinstance(value, str | int | float | bool) and value is not False and value != ""
    return f"`{json.dumps(value)}`" if is_shown else ""
