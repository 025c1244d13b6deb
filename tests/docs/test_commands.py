"""Every command in README and docs has the program, the subcommand, the options and the settings that it names."""

from __future__ import annotations

import importlib
import importlib.util
import re
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import typer

from tests.docs.documents import ROOT, Command, commands
from voiceserver.cli import CLIENTS, app, client
from voiceserver.config.loader import load, parse_assignment

COMMANDS = commands()
# The function behind ``python -m MODULE``; None: it takes no options here.
MAINS: dict[str, str | None] = {
    "benchmarks.soak": "soak",
    "benchmarks.recovery": None,
    "benchmarks.report.tables": "main",
    "voiceserver.testing.chat_endpoint": None,
}
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHELL = {"source", "export", "pip", "docker", "curl", "git", ".venv-bench/bin/locust"}


def is_parsed(group: typer.Typer, words: Sequence[str]) -> None:
    """Fails for an unknown command or option, a missing argument, a value of the wrong kind; runs nothing."""
    command: Any = typer.main.get_command(group)
    arguments = list(words)
    if hasattr(command, "commands") and arguments[:1] != ["--help"]:
        name = arguments.pop(0)
        command = typer.main.get_command(client(name)) if name in CLIENTS else command.commands[name]
    if arguments != ["--help"]:
        command.make_context(command.name, arguments)


def are_settings(assignments: Sequence[str]) -> None:
    load(None, {}, [parse_assignment(text) for text in assignments])


def after(words: Sequence[str], option: str) -> list[str]:
    return [word for before, word in pairwise(words) if before == option]


def run_rule(command: Command) -> None:
    program, *words = command.words
    if program == "voiceserver":
        is_parsed(app, words)
        settings = after(words, "--set")
        # Both or neither; the files are not read here.
        are_settings([text for text in settings if not text.startswith("server.tls_")])
        assert len([text for text in settings if text.startswith("server.tls_")]) in (0, 2)
    elif program == "python":
        assert words[0] == "-m"
        assert importlib.util.find_spec(words[1]) is not None
        main = MAINS[words[1]]
        if main is None:
            assert not words[2:]
            return
        module = typer.Typer()
        module.command()(getattr(importlib.import_module(words[1]), main))
        is_parsed(module, words[2:])
    elif program == "make":
        for word in words:
            name, equals, _ = word.partition("=")
            assert f"$({name})" in MAKEFILE if equals else name in TARGETS, word
    elif program == "pip":
        for extras in re.findall(r"voiceserver\[([^\]]+)\]|\.\[([^\]]+)\]", " ".join(words)):
            assert set("".join(extras).split(",")) <= set(PROJECT["optional-dependencies"])
    elif program == "docker":
        environ = dict(text.split("=", 1) for text in after(words, "-e"))
        load(None, environ)
    else:
        assert program in SHELL, program


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.words], ids=str)
def test_command_can_be_run(command: Command) -> None:
    run_rule(command)


def test_a_wrong_command_fails() -> None:
    for words in (
        ("voiceserver", "serve", "--prt", "1"),
        ("voiceserver", "server"),
        ("voiceserver", "talk", "--speak", "x"),
        ("voiceserver", "serve", "--set", "stages.sst.workers=1"),
        ("python", "-m", "voiceserver.testing.chat_endpoint", "x"),
        ("make", "tea"),
        ("pip", "install", "voiceserver[sugar]"),
    ):
        with pytest.raises(Exception):  # noqa: B017, PT011
            run_rule(Command("", words))


def test_sound_files_in_commands_come_from_a_command_before() -> None:
    """``reply.wav`` is written by the command line client, in README and wherever a page begins with it."""
    made: set[str] = set()
    for command in COMMANDS:
        if command.words[:1] not in (("python",), ("voiceserver",)):
            continue
        written = set(after(command.words, "--out"))
        assert {word for word in command.words if word.endswith(".wav")} - written <= made
        made |= written
    assert made


def test_makefile_helps_with_its_targets() -> None:
    helped = set(re.findall(r'@echo "make ([a-z-]+)', MAKEFILE))
    assert TARGETS - helped <= {"help", "clean", "format"}
