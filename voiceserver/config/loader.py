"""From TOML file, environment and flags to one ``Config``; flags win over environment over file over defaults.

A setting is ``stages.stt.workers`` in the file and for ``--set``, ``VOICESERVER_STAGES__STT__WORKERS`` in the environment. A
wrong one raises ConfigError with its name, its value, where it came from, and the nearest name that exists.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec

from voiceserver.config.cores import usable_cores
from voiceserver.config.environment import FILE_VARIABLE, check_names, environment, settings_in
from voiceserver.config.rules import problem_of
from voiceserver.config.schema import Config, LighterConfig, Value
from voiceserver.config.secret_values import shown_value
from voiceserver.errors import ConfigError

DEFAULT_FILE: Final = "voiceserver.toml"
FILE_HELP: Final = f"TOML file; default: ${FILE_VARIABLE}, else ./{DEFAULT_FILE} if there is one."
NO_LIGHTER_VAD: Final = (
    "vad hears the whole call with one engine, so there cannot be a lighter one for some turns"
)
_VAD_LIGHTER: Final = "stages.vad.lighter."


class _Setting(NamedTuple):
    """is_text: it comes from an environment variable or a flag, as a string that stands for a value."""

    key: str
    value: object
    source: str
    is_text: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """The effective configuration. ``sources``: where each key that is not a default came from."""

    config: Config
    sources: Mapping[str, str]

    def source_of(self, key: str) -> str:
        return self.sources.get(key, "default")

    def to_toml(self) -> str:
        """The effective configuration as a file that could be loaded again, each line with its source; secrets hidden."""
        lines: list[str] = []
        tables: dict[str, list[str]] = {}
        for key, value in _leaves(msgspec.to_builtins(self.config)):
            if key.startswith(_VAD_LIGHTER):  # there is no such thing
                continue
            table, _, name = key.rpartition(".")
            # A JSON scalar is a TOML scalar too.
            line = f"{name} = {json.dumps(shown_value(key, value))}"
            tables.setdefault(table, []).append(f"{line:<44} # {self.source_of(key)}")
        for table, settings in tables.items():
            lines += [f"[{table}]", *settings, ""]
        return "\n".join(lines)


def load_command(path: Path | None, flags: Sequence[tuple[str, str, str]]) -> Loaded:
    """``load`` with the environment of this process, and the file that a command reads when it names none. Raises ConfigError."""
    named_by, environ = "--config", environment()
    if path is None and environ.get(FILE_VARIABLE):
        path, named_by = Path(environ[FILE_VARIABLE]), f"environment variable {FILE_VARIABLE}"
    if path is None and Path(DEFAULT_FILE).is_file():
        path, named_by = Path(DEFAULT_FILE), "the working directory"
    return load(path, environ, flags, named_by=named_by)


def load(
    path: Path | None,
    environ: Mapping[str, str],
    flags: Sequence[tuple[str, str, str]] = (),
    *,
    named_by: str = "--config",
) -> Loaded:
    """Merge defaults, the TOML file at ``path``, ``environ`` and ``flags``, the later ones winning.

    flags: ``(key, text, name of the flag)``. named_by: what gave ``path``, for errors. Raises ConfigError.
    """
    settings = list(_from_file(path, named_by))
    settings += [
        _Setting(key, text, f"environment variable {name}", True) for key, text, name in settings_in(environ)
    ]
    settings += [_Setting(key, text, flag, True) for key, text, flag in flags]
    check_names(environ, _known_keys(), {one.value for one in settings if isinstance(one.value, str)})
    tree: dict[str, Any] = msgspec.to_builtins(Config())
    sources: dict[str, str] = {}
    for setting in settings:
        kind = _type_of(setting)
        value = _convert(setting, kind)
        _check(setting, value)
        *tables, name = _split(setting.key)
        table = tree
        for part in tables:
            table = table[part]
        table[name] = value
        sources[setting.key] = setting.source
    _count_workers(tree, sources)
    config = msgspec.convert(tree, Config)
    _check_together(config, sources)
    return Loaded(config, sources)


def _count_workers(tree: Mapping[str, Any], sources: dict[str, str]) -> None:
    """0 workers: as many as there are cores for this server process."""
    count = max(int(usable_cores() / tree["server"]["processes"]), 1)
    for name, stage in tree["stages"].items():
        for key, table in ((f"stages.{name}", stage), (f"stages.{name}.lighter", stage["lighter"])):
            if table["workers"] == 0:
                table["workers"] = count
                sources[f"{key}.workers"] += ", 0: one per core"


def parse_assignment(text: str) -> tuple[str, str, str]:
    """``key=value`` of a ``--set`` flag, as ``load`` takes it. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(text, "expected key=value, like stages.stt.workers=2", "--set")
    return key.strip(), value.strip(), f"--set {key.strip()}"


def _from_file(path: Path | None, named_by: str) -> Iterator[_Setting]:
    if path is None:
        return
    try:
        tree = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(str(path), "there is no such file", named_by) from None
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}", named_by) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"is not TOML: {error}", named_by) from None
    for key, value in _leaves(tree):
        yield _Setting(key, value, str(path), False)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _split(key: str) -> list[str]:
    """The parts of a key; what follows ``params`` is one name, dots and all."""
    parts = key.split(".")
    if "params" in parts[:-1]:
        at = parts.index("params") + 1
        return [*parts[:at], ".".join(parts[at:])]
    return parts


def _type_of(setting: _Setting) -> Any:
    kind: Any = Config
    for part in _split(setting.key):
        if kind == dict[str, Value]:
            return Value
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)} if _is_table(kind) else {}
        if part not in fields:
            raise ConfigError(setting.key, f"there is no such setting{_nearest(setting.key)}", setting.source)
        kind = fields[part]
    if _is_table(kind) or kind == dict[str, Value]:
        raise ConfigError(
            setting.key, f"is a table of settings, not a value: {setting.value!r}", setting.source
        )
    return kind


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _known_keys() -> list[str]:
    return [key for key, _ in _leaves(msgspec.to_builtins(Config()))]


def _nearest(key: str) -> str:
    close = difflib.get_close_matches(key, _known_keys(), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _convert(setting: _Setting, kind: Any) -> Value:
    value = setting.value
    if kind == Value and isinstance(value, str) and setting.is_text:
        value = _parse_value(value)
    try:
        return cast("Value", msgspec.convert(value, kind, strict=not setting.is_text))
    except msgspec.ValidationError:
        name = "a string, number or boolean" if kind == Value else _NAMES[kind]
        shown = shown_value(setting.key, setting.value)
        raise ConfigError(setting.key, f"must be {name}, not {shown!r}", setting.source) from None


_NAMES: Final[Mapping[type, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
}


def _parse_value(text: str) -> object:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str | int | float | bool) else text


def _check(setting: _Setting, value: Value) -> None:
    problem = problem_of(_split(setting.key), value)
    if problem:
        raise ConfigError(setting.key, f"{problem}, not {value!r}", setting.source)
    if setting.key.startswith(_VAD_LIGHTER) and (
        "params" in setting.key or value != getattr(LighterConfig(), setting.key.removeprefix(_VAD_LIGHTER))
    ):
        raise ConfigError(setting.key, NO_LIGHTER_VAD, setting.source)


def _check_together(config: Config, sources: Mapping[str, str]) -> None:
    """What is wrong with settings only because of others."""
    if config.server.tls_key and not config.server.tls_cert:
        problem = "is given without server.tls_cert: wss needs both, and nothing would be encrypted"
        raise ConfigError("server.tls_key", problem, sources.get("server.tls_key", ""))
    every_ms, patience_ms = config.server.ping_interval_ms, config.server.ping_timeout_ms
    if 0 < every_ms < patience_ms:
        key = "server.ping_interval_ms" if "server.ping_interval_ms" in sources else "server.ping_timeout_ms"
        problem = (
            f"a ping each {every_ms} ms cannot wait {patience_ms} ms for its pong: server.ping_interval_ms must be 0 (no pings) "
            "or at least server.ping_timeout_ms"
        )
        raise ConfigError(key, problem, sources.get(key, ""))
