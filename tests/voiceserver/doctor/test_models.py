"""``voiceserver models`` as a person sees it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from voiceserver.cli import app
from voiceserver.doctor import models as commands
from voiceserver.errors import ConfigError
from voiceserver_workers import models
from voiceserver_workers.models import Model


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "voiceserver"


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["models", *arguments])
    return done.exit_code, done.output


def test_each_model_is_listed_with_its_licence_and_the_command_that_brings_it() -> None:
    code, shown = run("list")
    assert code == 0
    for model in (*models.MODELS, *models.CARRIED):
        (row,) = (line for line in shown.splitlines() if line.strip().startswith(f"{model.name} "))
        assert model.licence in row
        assert str(model.megabytes) in row
    assert "voiceserver models fetch whisper-base  # for stages.stt.engine=whisper" in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if "─" in line)


def test_verify_tells_what_is_missing_whole_and_damaged(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [
        Model(
            name, "stt", "en", "nothing", "MIT", 1, (), {"model.bin": hashlib.sha256(b"weights").hexdigest()}
        )
        for name in ("away", "whole", "cut")
    ]
    monkeypatch.setattr(models, "MODELS", tuple(some))
    for name, content in (("whole", b"weights"), ("cut", b"weig")):
        (empty_cache / name).mkdir(parents=True)
        (empty_cache / name / "model.bin").write_bytes(content)
    code, shown = run("verify")
    assert code == 1
    shown = " ".join(shown.split())
    assert "away: not fetched" in shown
    assert "whole: whole" in shown
    assert re.search(
        r"cut: \S+model.bin is not the file that was published: voiceserver models fetch cut", shown
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hibari-heart", "hibari-heart comes with "),
        ("nothing", "no model is called 'nothing'; there is whisper-base"),
    ],
)
def test_what_cannot_be_fetched_is_one_clear_error(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        commands.fetch([name], Console(), permits_non_commercial=False)


def test_a_licence_that_forbids_commercial_use_needs_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model("private", "tts", "en", "nothing", "CC-BY-NC-4.0", 1, (), {}, is_commercial=False)
    monkeypatch.setattr(models, "MODELS", (model,))
    with pytest.raises(ConfigError, match=r"forbids commercial use; --non-commercial accepts it"):
        commands.fetch(["private"], Console(), permits_non_commercial=False)
