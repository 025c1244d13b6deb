"""What is done before the loop starts: weights that are made once, and the choice of the engines that ``auto`` stands for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import msgspec

from voiceserver.config.schema import Config, StageConfig
from voiceserver.errors import ConfigError
from voiceserver.installation import missing, missing_message
from voiceserver_workers import registry

if TYPE_CHECKING:
    from voiceserver.observability.logs import Log


def prepare_engines(config: Config, log: Log) -> Config:
    """``config`` with a name in place of each ``auto``, and the weights of those engines made. Where the best engine cannot be
    had, the next one serves, and the log says what keeps the better one away. It blocks, for 20 s at most the first time.
    Raises ConfigError for an engine that was named and whose weights cannot be made."""
    chosen: dict[str, StageConfig] = {}
    for name, stage in config.stages.by_name().items():
        if getattr(config.stages, name).engine == registry.AUTO:
            chosen[name] = _choose(name, stage, log)
        elif problem := _prepare(stage, log):
            raise ConfigError(f"stages.{name}.engine", problem)
    return msgspec.structs.replace(config, stages=msgspec.structs.replace(config.stages, **chosen))


def warn_of_numbers(config: Config, log: Log) -> None:
    """Say once what keeps numbers from being words of the language that the sessions have."""
    packages = missing(("babel", "unicode_rbnf"))
    if config.session.language and "tts" in config.stages.by_name() and packages:
        needs = f"Numbers, dates and money in words of {config.session.language!r} need"
        log.warning("numbers_unavailable", fix=missing_message(needs, packages, ["numbers"]))


def _choose(name: str, stage: StageConfig, log: Log) -> StageConfig:
    """The first of the engines for ``auto`` whose weights are ready."""
    failed: dict[str, str] = {}
    while problem := _prepare(stage, log):
        failed[stage.engine] = problem
        try:
            spec = registry.preferred(name, without=list(failed))
        except registry.EngineLookupError:
            raise ConfigError(f"stages.{name}.engine", problem) from None
        stage = msgspec.structs.replace(stage, engine=spec.name)
    for better, obstacle in (registry.better_than(stage.engine, name) | failed).items():
        log.warning("engine_unavailable", stage=name, engine=better, used=stage.engine, fix=obstacle)
    return stage


def _prepare(stage: StageConfig, log: Log) -> str:
    """Makes what the engine needs before its workers start. Returns what went wrong, empty for nothing."""
    prepare = registry.resolve(stage.engine).prepare
    if not prepare or not registry.is_installed(stage.engine):
        return ""  # the check of engines says what is missing
    module, _, function = prepare.partition(":")

    def say(text: str) -> None:
        log.info("engine_preparing", engine=stage.engine, doing=text)

    try:
        getattr(importlib.import_module(module), function)(stage.params, say)
    except (ValueError, OSError) as error:
        return str(error)
    return ""
