"""What an installation brings: the demo what it runs, nobody torch who did not ask for it."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sources import ROOT
from voiceserver.config.loader import load
from voiceserver_workers import registry

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Prefixes of distributions that bring CUDA or a framework.
HEAVY = ("torch", "nvidia", "cuda", "triton", "tensorflow", "jax")
TOOLS = {
    "ruff", "mypy", "pytest", "hypothesis", "playwright", "mkdocs-material", "faster-whisper", "piper-tts", "hatchling"
}  # fmt: skip
LARGEST_DEMO_BYTES = 600_000_000
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(?:\[(?P<extras>[\w,\s.-]+)\])?(?P<rest>[^;]*)(?:;(?P<marker>.*))?"
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def parts(requirement: str) -> tuple[str, tuple[str, ...], str]:
    """(name, extras, marker)"""
    found = _REQUIREMENT.fullmatch(requirement.strip())
    assert found is not None, requirement
    extras = tuple(part.strip() for part in (found["extras"] or "").split(",") if part.strip())
    return normal(found["name"]), extras, found["marker"] or ""


def brought(extra: str) -> set[str]:
    """The distributions that ``voiceserver[extra]`` installs here, those that others require included."""
    found: set[str] = set()
    waiting = [*PROJECT["dependencies"], *EXTRAS[extra]]
    while waiting:
        name, extras, _ = parts(waiting.pop())
        if name == "voiceserver":
            waiting += [requirement for extra in extras for requirement in EXTRAS[extra]]
        elif name not in found:
            found.add(name)
            waiting += required_by(name, extras)
    return found


def required_by(name: str, extras: tuple[str, ...]) -> Iterator[str]:
    """As its installed metadata say. One that is not installed here was left out by a marker."""
    try:
        requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in requires:
        marker = parts(requirement)[2]
        asked = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", marker)
        if asked is None or asked[1] in extras:
            yield requirement


def size_of(name: str) -> int:
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return 0
    paths = [Path(str(file.locate())) for file in files]
    return sum(path.stat().st_size for path in paths if path.is_file())


def dry_run(target: str, folder: Path, *arguments: str) -> str:
    """What make would do in a fresh checkout."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target, *arguments],
        cwd=folder, capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"torch", "dev"}))
def test_torch_comes_only_by_its_name(extra: str) -> None:
    assert [name for name in brought(extra) if name.startswith(HEAVY)] == []


def test_torch_has_no_exact_version_for_users() -> None:
    assert not [requirement for requirement in EXTRAS["torch"] if "==" in requirement]
    assert "torch" in brought("torch")


def test_the_demo_brings_the_default_engines_and_no_tools() -> None:
    engines = [stage.engine for stage in load(None, {}).config.stages.by_name().values()]
    of_engines = set().union(*(brought(registry.resolve(engine).extra) for engine in engines))
    assert of_engines <= brought("demo")
    assert brought("demo") & TOOLS == set()
    assert brought("demo") <= brought("all")


def test_the_demo_is_small() -> None:
    assert sum(map(size_of, {*brought("demo"), "pip"})) < LARGEST_DEMO_BYTES


def test_all_brings_the_engines_of_today() -> None:
    for engine in (*registry.PREFERRED["stt"], *registry.PREFERRED["tts"], "chat", "silero"):
        assert brought(registry.resolve(engine).extra) <= brought("all")


@pytest.mark.parametrize("target", ["demo", "serve"])
def test_who_tries_it_installs_what_it_runs(target: str, tmp_path: Path) -> None:
    steps = dry_run(target, tmp_path)
    assert "'.[demo]'" in steps
    assert "[dev]" not in steps
    assert "--quiet" not in steps  # pip shows its progress
    assert "torch" not in steps.replace("no torch", "")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", ".installed-demo"):
        (tmp_path / ".venv" / name).touch()
    assert "install" not in dry_run(target, tmp_path, "--assume-old=pyproject.toml")


def test_who_develops_installs_everything(tmp_path: Path) -> None:
    steps = dry_run("install", tmp_path)
    assert "'.[dev]'" in steps
    assert ".installed-demo" in steps


def test_the_package_says_whose_it_is() -> None:
    assert PROJECT["authors"]
    assert set(PROJECT["urls"]) >= {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())
