"""The pools of a server: which engine serves which stage, checked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from voiceserver.config.environment import environment
from voiceserver.config.schema import Config, StageConfig
from voiceserver.errors import ConfigError
from voiceserver.installation import missing_message
from voiceserver.observability.logs import Log, level_of, worker_output
from voiceserver.pool import OnEvent, Pool, ignore_event
from voiceserver.pool.fallback import FallbackPool
from voiceserver_workers import parameters, registry
from voiceserver_workers.http.address import AddressError, address_of

MakePool = Callable[[str, StageConfig, OnEvent], Pool]


def check_engines(
    config: Config, source_of: Callable[[str], str] = lambda key: "default", *, needs_packages: bool = True
) -> None:
    """Raises ConfigError for an engine that is unknown or serves another stage, for a wrong parameter, and one for all packages
    that engines lack, unless ``needs_packages`` is False. source_of: where a setting came from."""
    lacking: list[tuple[str, registry.EngineMissing]] = []
    for name, stage in config.stages.by_name().items():
        lighter = stage.lighter_stage
        engines = {f"stages.{name}.engine": stage.engine}
        if lighter is not None:
            engines[f"stages.{name}.lighter.engine"] = lighter.engine
        for key, engine in engines.items():
            try:
                registry.check(engine, name)
            except registry.EngineMissing as error:
                lacking.append((key, error))
            except registry.EngineLookupError as error:
                raise ConfigError(key, str(error), source_of(key)) from None
        if lighter is not None:
            _check_lighter(name, stage.engine, lighter.engine, source_of)
            _check_parameters(f"stages.{name}.lighter.params", lighter, source_of)
        _check_parameters(f"stages.{name}.params", stage, source_of)
    if lacking and needs_packages:
        key = lacking[0][0] if len(lacking) == 1 else "stages"
        raise ConfigError(key, _missing_packages([error for _, error in lacking]), source_of(lacking[0][0]))


def _check_parameters(table: str, stage: StageConfig, source_of: Callable[[str], str]) -> None:
    """Those of built-in engines; others check their own when they are made."""
    if registry.resolve(stage.engine).is_remote:
        from voiceserver.pool.chat.config import ChatConfig

        try:
            ChatConfig.from_params(stage.params, key=table)
        except ConfigError as error:
            raise ConfigError(error.key, error.message, source_of(error.key)) from None
        return
    name, _, problem = _problem_of_parameters(stage).partition(": ")
    if problem:
        raise ConfigError(f"{table}.{name}", problem, source_of(f"{table}.{name}"))


def _problem_of_parameters(stage: StageConfig) -> str:
    """ "name: what is wrong"; empty for nothing."""
    problem = parameters.problem_of(stage.engine, stage.params)
    if not problem and registry.resolve(stage.engine).asks:
        try:
            address_of(stage.engine, stage.params, environment())
        except AddressError as error:
            return str(error)
    return problem


def _missing_packages(lacking: Sequence[registry.EngineMissing]) -> str:
    """All that is missing and the one command that brings it."""
    names = list(dict.fromkeys(error.name for error in lacking))
    packages = dict.fromkeys(package for error in lacking for package in error.packages)
    extras = list(dict.fromkeys(error.extra for error in lacking))
    if len(extras) > 1 and registry.WORKER_EXTRA in extras:
        extras.remove(registry.WORKER_EXTRA)  # the others bring it
    what = f"engine {names[0]!r} needs" if len(names) == 1 else f"the engines {', '.join(names)} need"
    return missing_message(what, packages, extras)


def _check_lighter(name: str, engine: str, lighter: str, source_of: Callable[[str], str]) -> None:
    key = f"stages.{name}.lighter.engine"
    problem = ""
    if name == "vad":
        problem = "vad hears the whole call with one engine, so there cannot be a lighter one for some turns"
    elif registry.takes_audio(engine) != registry.takes_audio(lighter):
        problem = f"{engine} and {lighter} do not take the same input: one hears audio, the other reads text"
    if problem:
        raise ConfigError(key, problem, source_of(key))


def make_pool(stage: str, config: StageConfig, on_event: OnEvent) -> Pool:
    """The pool for a stage: of processes if its engine computes, of tasks on the loop if it waits for a network."""
    if registry.resolve(config.engine).is_remote:
        from voiceserver.pool.chat.client import chat_pool

        return chat_pool(stage, config, on_event=on_event)
    from voiceserver.pool.process_pool import ProcessPool

    return ProcessPool(stage, config, on_event=on_event, output_fd=worker_output())


def make_pools(
    config: Config, make_pool: MakePool, log: Log, observe: OnEvent = ignore_event
) -> dict[str, Pool]:
    """One pool for each stage that has an engine, with its lighter engine behind it where there is one. ``observe`` hears what
    the log does."""

    def on_event(name: str, fields: Mapping[str, object]) -> None:
        observe(name, fields)
        log.log(level_of(name), name, **fields)

    def on_lighter_event(name: str, fields: Mapping[str, object]) -> None:
        observe(name, fields)
        log.log(level_of(name), name, **fields, is_lighter=True)

    pools: dict[str, Pool] = {}
    for name, stage in config.stages.by_name().items():
        pools[name] = make_pool(name, stage, on_event)
        if (lighter := stage.lighter_stage) is not None:
            pools[name] = FallbackPool(pools[name], make_pool(name, lighter, on_lighter_event))
    return pools
