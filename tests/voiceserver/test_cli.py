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
from voiceserver.config.loader import Loaded


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


def served(monkeypatch: pytest.MonkeyPatch, *flags: str) -> Loaded:
    """What ``voiceserver serve`` would serve."""
    given: list[Loaded] = []

    def serve(loaded: Loaded, *_: object) -> int:
        given.append(loaded)
        return 0

    monkeypatch.setattr("voiceserver.server.run.serve", serve)
    typer.main.get_command(cli.app)(["serve", *flags], standalone_mode=False)
    return given[0]


def test_engines_by_url_have_short_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ("--llm", "http://llm/v1", "--stt", "http://stt/v1", "--tts=http://tts/v1?x={}")
    loaded = served(monkeypatch, "--port", "0", "--set", "stages.tts.params.model=m", *urls)
    stages = loaded.config.stages
    assert [stage.engine for stage in (stages.reply, stages.stt, stages.tts)] == [
        "chat",
        "transcription",
        "speech",
    ]
    assert stages.reply.params == {"base_url": "http://llm/v1"}
    assert stages.stt.params == {"base_url": "http://stt/v1"}
    assert stages.tts.params == {"model": "m", "base_url": "http://tts/v1?x={}"}
    assert loaded.config.server.port == 0
    assert loaded.source_of("stages.reply.engine") == "--llm"


def test_a_flag_that_is_not_given_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert served(monkeypatch).sources == {
        key: source for key, source in served(monkeypatch).sources.items() if "one per core" in source
    }


def test_a_wrong_address_is_told_by_the_setting() -> None:
    refused = run("serve", "--port", "0", "--tts", "localhost:8000")
    assert refused.returncode == 2
    assert "stages.tts.params.base_url: the speech engine needs an address" in refused.stderr
