"""The one config model: TOML file, environment, flags; flags win over environment over file over defaults.

The structs here are the schema; ``load`` reads and merges. Every setting has one dotted name (``stages.stt.workers``), which is
its TOML path, its environment name (``VOICESERVER_STAGES__STT__WORKERS``) and its ``--set`` name. A wrong one raises ConfigError
with its name, its value, where it came from, and the nearest name that exists.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec

from voiceserver.errors import ConfigError
from voiceserver.events import MAX_TURN_MS, TurnDetection, range_of

Value = str | int | float | bool


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: int = 8765
    processes: int = 1
    backlog: int = 4096
    max_message_bytes: int = 1_048_576
    handshake_timeout_ms: int = 5_000
    ping_interval_ms: int = 20_000
    ping_timeout_ms: int = 20_000
    idle_timeout_ms: int = 0  # close a session that neither sends nor receives for so long; 0: never
    max_session_ms: int = 0  # 0: no limit
    drain_timeout_ms: int = 10_000
    write_limit_bytes: int = (
        262_144  # unsent bytes of one connection above which its reply stops running ahead
    )
    slow_reader_timeout_ms: int = 15_000  # a reader that stays above the limit for so long is closed
    tls_cert: str = ""
    tls_key: str = ""
    log_level: str = "info"
    log_format: str = "auto"  # auto, console, json
    check_laws: bool = False  # assert the conservation law on every input


class SessionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults of a session; clients may change most of them by ``session.update``."""

    output_rate_hz: int = 24_000
    instructions: str = "You are a helpful voice assistant. Answer briefly, in one or two spoken sentences."
    voice: str = ""
    language: str = ""
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    min_silence_ms: int = 250  # enough where the vad engine (smart_turn) hears that the caller is done
    max_silence_ms: int = 0  # granted where it hears that the caller is not; 0: silence_duration_ms
    min_speech_ms: int = 64
    max_turn_ms: int = 30_000
    max_manual_turn_ms: int = (
        MAX_TURN_MS  # where the client ends turns by hand: one that lasts longer is ended for it
    )
    history_items: int = 200
    resume_window_ms: int = 60_000
    reply_timeout_ms: int = 10_000  # a reply that has not begun by then is announced as failed
    audible_busy: bool = False
    false_interruption_ms: int = 2_000  # an interrupted reply goes on when no words came by then; 0: never
    backchannels: str = ""  # "mm-hm, uh huh": speech of these words only does not end a reply either
    preemptive: bool = False  # ask for the reply at a pause, before the turn is sure to be over
    filler: str = ""  # said while a reply is late: texts with | between, or "tone"; empty: nothing
    filler_after_ms: int = 1_000  # of silence since the end of the turn, and between fillers


class BackpressureConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    busy_after_ms: int = 250
    busy_repeat_ms: int = 1_000
    ready_below_ms: int = 100  # hysteresis: ready again below this lag
    max_backlog_ms: int = 10_000  # oldest audio beyond it is shed, and said
    max_connections: int = 0  # 0: what the open-file limit carries
    max_talkers: int = 0  # 0: learned
    hold: str = "connection"  # what takes a talker's place: a connection, or only speech
    waiting_room: int = 32
    waiting_timeout_ms: int = 60_000
    tenant_share: float = 0.8  # of the talkers' places that callers of one remote address may have; 1: all
    retry_after_ms: int = 2_000  # before there is a measurement


class AuthConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``keys_file``: TOML made with ``voiceserver key``; callers then need a key. ``origins``: of the pages that may connect,
    with commas between; empty: all."""

    keys_file: str = ""
    origins: str = ""
    token_ttl_ms: int = 600_000  # of an ephemeral client token, unless it is asked for with another
    token_secret: str = ""  # signs them; empty: made at each start


class TwilioConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``auth_token``: of the Twilio account; then only upgrades that Twilio has signed are let in. ``public_url``: the ``wss://``
    address of the TwiML, where a proxy in front changes it."""

    auth_token: str = ""
    public_url: str = ""


class LighterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A second, lighter engine of a stage, for the turns of a server that has retreated so far. "none": there is none."""

    engine: str = "none"
    workers: int = 1
    max_batch_size: int = 64
    streams_per_worker: int = 0  # 0: what the engine says
    params: dict[str, Value] = {}


class StageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``engine`` "none" switches the stage off. ``workers`` 0: one per core up to the engine's advice."""

    engine: str = "none"
    workers: int = 1
    max_batch_size: int = 64
    max_wait_ms: float = 0.0
    streams_per_worker: int = 0  # 0: what the engine says
    step_timeout_ms: int = 5_000
    stall_timeout_ms: int = 500  # 0: only step_timeout_ms says what is a hang
    request_slots: int = 1024
    result_slots: int = 2048
    slot_bytes: int = 4096
    params: dict[str, Value] = {}
    lighter: LighterConfig = LighterConfig()

    @property
    def lighter_stage(self) -> StageConfig | None:
        """The configuration of the lighter engine's pool, None without one."""
        lighter = self.lighter
        if lighter.engine in ("", "none") or self.engine in ("", "none"):
            return None
        return msgspec.structs.replace(
            self,
            engine=lighter.engine,
            workers=lighter.workers,
            max_batch_size=lighter.max_batch_size,
            streams_per_worker=lighter.streams_per_worker,
            params=lighter.params,
            lighter=LighterConfig(),
        )


class StagesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    vad: StageConfig = StageConfig(engine="silero", max_wait_ms=10.0, max_batch_size=256)
    stt: StageConfig = StageConfig(engine="pocketsphinx", workers=2, max_batch_size=8)
    reply: StageConfig = StageConfig(engine="concierge")
    tts: StageConfig = StageConfig(engine="espeak")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server: ServerConfig = ServerConfig()
    session: SessionConfig = SessionConfig()
    backpressure: BackpressureConfig = BackpressureConfig()
    auth: AuthConfig = AuthConfig()
    twilio: TwilioConfig = TwilioConfig()
    stages: StagesConfig = StagesConfig()


# ------------------------------------------------------------------------------------------------------- reading

ENV_PREFIX: Final = "VOICESERVER_"
ENV_FILE: Final = "VOICESERVER_CONFIG"  # names the file, as --config does
DEFAULT_FILE: Final = "voiceserver.toml"
# Settings that are never shown. Engines bring parameters of their own, so this goes by how such things are called.
_SECRET: Final = re.compile(
    r"(^|[._-])(key|apikey|token|secret|password|passphrase|credentials?|authorization)$|[.]params[.]headers?[.]",
    re.I,
)
_USER_OF_URL: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_HIDDEN: Final = "********"


class _Setting(NamedTuple):
    key: str
    value: object
    source: str
    is_text: bool  # from an environment variable or a flag: a string that stands for a value


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
            table, _, name = key.rpartition(".")
            # A JSON scalar is a TOML scalar too.
            line = f"{name} = {json.dumps(_shown(key, value))}"
            tables.setdefault(table, []).append(f"{line:<44} # {self.source_of(key)}")
        for table, settings in tables.items():
            lines += [f"[{table}]", *settings, ""]
        return "\n".join(lines)


def _shown(key: str, value: object) -> object:
    """``value`` as it may be printed."""
    if value and _SECRET.search(key) and key != "server.tls_key":  # that is the path of one
        return _HIDDEN
    return _USER_OF_URL.sub(_HIDDEN, value) if isinstance(value, str) else value


def load(path: Path | None, environ: Mapping[str, str], flags: Sequence[tuple[str, str, str]] = ()) -> Loaded:
    """Merge defaults, the TOML file at ``path``, ``environ`` and ``flags``, the later ones winning.

    flags: ``(key, text, name of the flag)``. Raises ConfigError.
    """
    settings = [*_from_file(path), *_from_environment(environ)]
    settings += [_Setting(key, text, flag, True) for key, text, flag in flags]
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
    return Loaded(msgspec.convert(tree, Config), sources)


def parse_assignment(text: str) -> tuple[str, str, str]:
    """``key=value`` of a ``--set`` flag, as ``load`` takes it. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(text, "expected key=value, like stages.stt.workers=2", "--set")
    return key.strip(), value.strip(), f"--set {key.strip()}"


def _from_file(path: Path | None) -> Iterator[_Setting]:
    if path is None:
        return
    try:
        tree = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(str(path), "there is no such file", "--config") from None
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}", "--config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"is not TOML: {error}", "--config") from None
    for key, value in _leaves(tree):
        yield _Setting(key, value, str(path), False)


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Setting]:
    for name, text in sorted(environ.items()):
        if name.startswith(ENV_PREFIX) and "__" in name:
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            yield _Setting(key, text, f"environment variable {name}", True)


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


def _nearest(key: str) -> str:
    known = [name for name, _ in _leaves(msgspec.to_builtins(Config()))]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _convert(setting: _Setting, kind: Any) -> Value:
    value = setting.value
    if kind == Value and isinstance(value, str) and setting.is_text:
        value = _parse_value(value)
    try:
        return cast("Value", msgspec.convert(value, kind, strict=not setting.is_text))
    except msgspec.ValidationError:
        name = "a string, number or boolean" if kind == Value else _NAMES[kind]
        shown = _shown(setting.key, setting.value)
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


# ------------------------------------------------------------------------------------------------------ checking


def _between(low: float, high: float) -> Callable[[Any], str]:
    return lambda value: "" if low <= value <= high else f"must be from {low} to {high}"


def _at_least(low: float) -> Callable[[Any], str]:
    return lambda value: "" if value >= low else f"must be at least {low}"


def _one_of(*allowed: str) -> Callable[[Any], str]:
    return lambda value: "" if value in allowed else f"must be one of {', '.join(allowed)}"


def _power_of_two(value: Any) -> str:
    return "" if value > 0 and value & (value - 1) == 0 else "must be a power of two"


_DETECTION: Final = (
    "threshold",
    "prefix_padding_ms",
    "silence_duration_ms",
    "min_speech_ms",
    "max_turn_ms",
    "max_silence_ms",
    "min_silence_ms",
)
_RULES: Final[Mapping[str, Callable[[Any], str]]] = {
    "server.port": _between(0, 65_535),
    "server.processes": _at_least(1),
    "server.backlog": _at_least(1),
    "server.max_message_bytes": _between(1_024, 67_108_864),
    "server.handshake_timeout_ms": _at_least(1),
    "server.ping_timeout_ms": _at_least(1),
    "server.slow_reader_timeout_ms": _at_least(1),
    "server.write_limit_bytes": _at_least(1_024),
    "server.log_level": _one_of("debug", "info", "warning", "error"),
    "server.log_format": _one_of("auto", "console", "json"),
    "session.output_rate_hz": _between(8_000, 48_000),
    **{f"session.{name}": _between(*range_of(TurnDetection, name)) for name in _DETECTION},
    "session.max_manual_turn_ms": _between(1_000, 3_600_000),
    "session.filler_after_ms": _at_least(1),
    "auth.token_ttl_ms": _between(1, 7_200_000),
    "backpressure.busy_repeat_ms": _at_least(1),
    "backpressure.max_backlog_ms": _at_least(1),
    "backpressure.hold": _one_of("connection", "speech"),
    "backpressure.tenant_share": _between(0, 1),
    "stages.max_batch_size": _at_least(1),
    "stages.step_timeout_ms": _at_least(1),
    "stages.request_slots": _power_of_two,
    "stages.result_slots": _power_of_two,
    "stages.slot_bytes": _at_least(128),
}


def _check(setting: _Setting, value: Value) -> None:
    parts = _split(setting.key)
    rule = _RULES.get(
        f"stages.{parts[-1]}" if parts[0] == "stages" and "params" not in parts else setting.key
    )
    if rule is None and isinstance(value, int | float) and "params" not in parts:
        rule = _at_least(0)
    problem = rule(value) if rule is not None else ""
    if problem:
        raise ConfigError(setting.key, f"{problem}, not {value!r}", setting.source)
