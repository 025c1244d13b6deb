"""The clients are commands of ``voiceserver``, and only those who call one load it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from tests.sources import ROOT
from voiceserver import cli


def run(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voiceserver", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_list_of_commands_imports_no_client() -> None:
    script = "import sys\nfrom voiceserver import cli\ntry: cli.app(['--help'])\nfinally: print(sorted(sys.modules))"
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert all(name in printed for name in cli.CLIENTS)
    assert "voiceserver_clients" not in printed


@pytest.mark.parametrize("name", cli.CLIENTS)
def test_the_list_says_of_a_client_what_it_says_of_itself(name: str) -> None:
    command = typer.main.get_command(cli.client(name))
    assert inspect.getdoc(getattr(cli, name)) == inspect.cleandoc(command.help or "")


def test_a_client_reads_its_own_options_and_has_its_own_exit_codes(tmp_path: Path) -> None:
    helped = run("talk", "--help")
    assert helped.returncode == 0
    assert "voiceserver talk" in helped.stdout
    assert "--say" in helped.stdout
    missing = run("talk", "no.wav", folder=tmp_path)
    assert (missing.returncode, missing.stderr) == (2, "no.wav: no such file\n")
    nobody = run("talk", "--url=ws://127.0.0.1:1/v1/stream", "--say=one")
    assert nobody.returncode == 4
    assert len(nobody.stderr.splitlines()) == 1
    unknown = run("load", "--talker", "3")
    assert unknown.returncode == 2
    assert "voiceserver load" in unknown.stderr
