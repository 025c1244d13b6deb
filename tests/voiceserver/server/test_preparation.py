"""What ``auto`` becomes at the start of a server, and what is said where the best engine cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import pytest
from structlog.testing import CapturingLogger

from voiceserver.config.loader import load
from voiceserver.config.schema import Config
from voiceserver.errors import ConfigError
from voiceserver.server.preparation import prepare_engines, warn_of_numbers
from voiceserver_workers import registry
from voiceserver_workers.engines import moonshine_weights

pytestmark = pytest.mark.skipif(
    not registry.is_installed("moonshine"), reason="moonshine has no build for this platform"
)


def config(*settings: tuple[str, str]) -> Config:
    return load(None, {}, [(key, value, "--set") for key, value in settings]).config


def said(log: CapturingLogger) -> list[tuple[str, str, Mapping[str, object]]]:
    return [(call.method_name, str(call.args[0]), call.kwargs) for call in log.calls]


def fail(params: Mapping[str, object], say: Callable[[str], None]) -> None:
    raise ValueError("model: the files are not those of version 0.1.4")


def test_names_take_the_place_of_auto_and_nothing_is_said() -> None:
    log = CapturingLogger()
    stages = prepare_engines(config(), log).stages
    assert (stages.stt.engine, stages.tts.engine) == ("moonshine", "hibari")
    assert [line for line in said(log) if line[0] == "warning"] == []
    assert msgspec.structs.replace(stages.stt, engine="auto") == Config().stages.stt


def test_weights_that_cannot_be_made_let_the_next_engine_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moonshine_weights, "prepare", fail)
    log = CapturingLogger()
    assert prepare_engines(config(), log).stages.stt.engine == "pocketsphinx"
    ((method, event, fields),) = said(log)
    assert (method, event) == ("warning", "engine_unavailable")
    assert fields == {
        "stage": "stt",
        "engine": "moonshine",
        "used": "pocketsphinx",
        "fix": "model: the files are not those of version 0.1.4",
    }


def test_an_engine_that_was_named_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moonshine_weights, "prepare", fail)
    with pytest.raises(ConfigError, match=r"stages\.stt\.engine: .*0\.1\.4"):
        prepare_engines(config(("stages.stt.engine", "moonshine")), CapturingLogger())


def test_parameters_stay_with_the_engine_that_was_chosen_and_slow_work_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Mapping[str, object]] = []

    def slow(params: Mapping[str, object], say: Callable[[str], None]) -> None:
        seen.append(params)
        say("converting")

    monkeypatch.setattr(moonshine_weights, "prepare", slow)
    log = CapturingLogger()
    prepare_engines(config(("stages.stt.params.threads", "2")), log)
    assert seen == [{"threads": 2}]
    assert said(log) == [("info", "engine_preparing", {"engine": "moonshine", "doing": "converting"})]


def test_stages_that_are_off_or_need_no_preparation_stay_as_they_are() -> None:
    off = config(("stages.stt.engine", "none"), ("stages.tts.engine", "espeak"))
    assert prepare_engines(off, CapturingLogger()) == off


def test_a_stage_without_a_choice_says_so() -> None:
    with pytest.raises(ConfigError, match=r"stages\.reply\.engine: engine 'auto' has nothing to choose from"):
        prepare_engines(config(("stages.reply.engine", "auto")), CapturingLogger())


def test_a_language_without_the_packages_for_its_numbers_is_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = CapturingLogger()
    warn_of_numbers(config(("session.language", "de")), log)
    assert not log.calls
    monkeypatch.setattr("voiceserver.server.preparation.missing", lambda names: tuple(names))
    warn_of_numbers(config(), log)
    assert not log.calls
    warn_of_numbers(config(("session.language", "de")), log)
    (call,) = log.calls
    assert call.args == ("numbers_unavailable",)
    assert "babel" in call.kwargs["fix"]
    assert "[numbers]" in call.kwargs["fix"]
