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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec

from voiceserver.config.cores import usable_cores
from voiceserver.config.rules import problem_of
from voiceserver.errors import ConfigError
from voiceserver.events.events import MAX_TURN_MS

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
    workers: int = 1  # 0: one per core
    max_batch_size: int = 64
    streams_per_worker: int = 0  # 0: what the engine says
    params: dict[str, Value] = {}


class StageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``engine`` "none" switches the stage off. ``workers`` 0: one per core; ``load`` puts the number in its place."""

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
# What else begins like a setting's variable: for the chat engine, for our client, for the tests in a browser.
OTHER_VARIABLES: Final = (
    ENV_FILE,
    "VOICESERVER_CHAT_API_KEY",
    "VOICESERVER_KEY",
    "VOICESERVER_CHROMIUM",
)
_SERVICE_VARIABLE: Final = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PORT|PROTO|ADDR))?$"
)
_SERVICE_VALUE: Final = re.compile(r"(tcp|udp|sctp)://")
_VAD_LIGHTER: Final = "stages.vad.lighter."
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
            if key.startswith(_VAD_LIGHTER):  # there is no such thing
                continue
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
    settings = [*_from_file(path, named_by), *_from_environment(environ)]
    settings += [_Setting(key, text, flag, True) for key, text, flag in flags]
    _check_names(environ, settings)
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


def _check(setting: _Setting, value: Value) -> None:
    problem = problem_of(_split(setting.key), value)
    if problem:
        raise ConfigError(setting.key, f"{problem}, not {value!r}", setting.source)
    if setting.key.startswith(_VAD_LIGHTER) and (
        "params" in setting.key or value != getattr(LighterConfig(), setting.key.removeprefix(_VAD_LIGHTER))
    ):
        problem = "vad hears the whole call with one engine, so there cannot be a lighter one for some turns"
        raise ConfigError(setting.key, problem, setting.source)


def _check_together(config: Config, sources: Mapping[str, str]) -> None:
    """What is wrong with settings only because of others."""
    if config.server.tls_key and not config.server.tls_cert:
        problem = "is given without server.tls_cert: wss needs both, and nothing would be encrypted"
        raise ConfigError("server.tls_key", problem, sources.get("server.tls_key", ""))


def _check_names(environ: Mapping[str, str], settings: Sequence[_Setting]) -> None:
    """A misspelt variable would be a setting that has no effect, and nobody would know."""
    known = {
        ENV_PREFIX + key.upper().replace(".", "__"): key for key, _ in _leaves(msgspec.to_builtins(Config()))
    }
    named = {setting.value for setting in settings if isinstance(setting.value, str)}  # as api_key_env does
    for name, text in sorted(environ.items()):
        is_ours = name.startswith(ENV_PREFIX) and "__" not in name and name not in OTHER_VARIABLES
        if not is_ours or name in named or _is_of_orchestrator(name, text):
            continue
        close = difflib.get_close_matches(name, [*known, *OTHER_VARIABLES], n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        problem = f"there is no such variable{hint} (a setting's name has two underscores for each dot)"
        raise ConfigError(name, problem, "the environment")


def _is_of_orchestrator(name: str, text: str) -> bool:
    """Kubernetes describes each service to every container; one that is called voiceserver gets these names."""
    return bool(_SERVICE_VARIABLE.search(name) or _SERVICE_VALUE.match(text))
