"""What README shows can be pasted: its programs are whole, its commands have the options that they name."""

from __future__ import annotations

import ast
import builtins
import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from voiceserver_clients.load import load
from voiceserver_clients.talk import talk

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^python -m voiceserver_clients\.(\w+) (.*)$", README, re.MULTILINE)
MAINS: dict[str, Callable[..., None]] = {"talk": talk, "load": load}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_are_whole(program: str) -> None:
    tree = ast.parse(program)
    compile(tree, "README.md", "exec")
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    known = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
        elif isinstance(node, ast.MatchAs | ast.ExceptHandler) and node.name:
            known.add(node.name)
    assert {node.id for node in names} <= known


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_commands_name_options_that_there_are(name: str, arguments: str) -> None:
    app = typer.Typer()
    app.command()(MAINS[name])
    words = shlex.split(arguments, comments=True)
    context = typer.main.get_command(app).make_context(name, words)
    assert context.params


def test_sound_files_in_commands_come_from_a_command_before() -> None:
    made: set[str] = set()
    for _, arguments in COMMANDS:
        words = shlex.split(arguments, comments=True)
        files = [word for word in words if word.endswith(".wav")]
        written = {after for word, after in pairwise(words) if word == "--out"}
        assert set(files) - written <= made
        made |= written
    assert made
