from __future__ import annotations

import inspect
import tomllib
from pathlib import Path

import msgspec
import pytest

from voiceserver.config import loader
from voiceserver.config.loader import load, parse_assignment
from voiceserver.config.schema import (
    AuthConfig,
    BackpressureConfig,
    Config,
    LighterConfig,
    ServerConfig,
    SessionConfig,
    StageConfig,
    StagesConfig,
    TwilioConfig,
    meanings_of,
)
from voiceserver.errors import ConfigError
from voiceserver.pool.chat.config import ChatConfig
from voiceserver_workers.ipc.layout import ChannelConfig


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "voiceserver.toml"
    path.write_text(
        '[server]\nport = 9000\nhost = "::1"\n[stages.stt]\nworkers = 4\n[stages.reply.params]\n"base.url" = "http://x"\n'
    )
    return path


def test_flags_win_over_environment_over_file_over_defaults(file: Path) -> None:
    environ = {"VOICESERVER_SERVER__PORT": "9001", "VOICESERVER_STAGES__STT__WORKERS": "5", "HOME": "/"}
    loaded = load(file, environ, [("server.port", "9002", "--port")])
    server, stages = loaded.config.server, loaded.config.stages
    assert (server.port, server.host, stages.stt.workers, stages.stt.engine) == (
        9002,
        "::1",
        5,
        "auto",
    )
    assert loaded.source_of("server.port") == "--port"
    assert loaded.source_of("stages.stt.workers") == "environment variable VOICESERVER_STAGES__STT__WORKERS"
    assert loaded.source_of("server.host") == str(file)
    assert loaded.source_of("server.backlog") == "default"


def test_nothing_given_is_the_defaults() -> None:
    assert load(None, {}).config == Config()


def test_engine_parameters_are_free_and_keep_their_types(file: Path) -> None:
    environ = {"VOICESERVER_STAGES__REPLY__PARAMS__TIMEOUT": "2.5"}
    flags = [
        parse_assignment("stages.reply.params.model=gpt=4"),
        parse_assignment("stages.reply.params.is_x = true"),
    ]
    params = load(file, environ, flags).config.stages.reply.params
    assert params == {"base.url": "http://x", "timeout": 2.5, "model": "gpt=4", "is_x": True}


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("server.prot", "1", "did you mean server.port?"),
        ("stages.tts.slot_byte", "1", "did you mean stages.tts.slot_bytes?"),
        ("nothing.like_it", "1", "no such setting"),
        ("server.port", "http", "must be a whole number, not 'http'"),
        ("server.port", "70000", "must be from 0 to 65535, not 70000"),
        ("server.check_laws", "maybe", "must be true or false"),
        ("session.threshold", "1.5", "must be from 0 to 1"),
        ("session.prefix_padding_ms", "5001", "must be from 0 to 5000"),
        ("session.max_turn_ms", "50", "must be from 100 to 600000"),
        ("session.max_manual_turn_ms", "0", "must be from 1000 to 3600000"),
        ("server.log_format", "xml", "must be one of auto, console, json, not 'xml'"),
        ("backpressure.hold", "breath", "connection, speech"),
        ("stages.vad.request_slots", "1000", "power of two"),
        ("stages.vad.workers", "-1", "must be from 0 to 1024"),
        ("stages.tts.lighter.workers", "2000", "must be from 0 to 1024"),
        ("stages.reply.slot_bytes", "1000", "must be a multiple of 64 from 128 to 1048576, not 1000"),
        ("stages.reply.slot_bytes", "64", "must be a multiple of 64 from 128"),
        ("stages.stt.request_slots", "1", "must be a power of two from 2 to 65536, not 1"),
        ("stages.stt.result_slots", "1", "must be a power of two from 2"),
        ("stages.stt.result_slots", "1099511627776", "must be a power of two from 2 to 65536"),
        ("stages.tts.max_wait_ms", "inf", "must be a finite number"),
        ("stages.tts.max_wait_ms", "1e20", "must be from 0 to 604800000"),
        ("stages.tts.params.x", "nan", "must be a finite number"),
        ("session.threshold", "nan", "must be a finite number"),
        ("session.reply_timeout_ms", "604800001", "must be from 0 to 604800000"),
        ("server.handshake_timeout_ms", "604800001", "must be from 1 to 604800000"),
        ("server.backlog", "99999999999", "must be from 1 to 2147483647"),
        ("server.write_limit_bytes", "9999999999", "must be from 1024 to 1073741824"),
        ("server.processes", "1025", "must be from 1 to 1024"),
        ("server.host", "nope..x", "must be an address or the name of a host"),
        ("server.host", "a b", "must be an address or the name of a host"),
        ("server.tls_key", "key.pem", "is given without server.tls_cert"),
        ("backpressure.tenant_share", "0", "must be above 0 and at most 1"),
        ("stages.vad.lighter.engine", "silero", "there cannot be a lighter one"),
        ("stages.vad.lighter.params.model", "small", "there cannot be a lighter one"),
        ("stages.vad", "silero", "table"),
        ("stages.vad.params", "x", "table"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_source(key: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {}, [(key, text, "--set")])
    assert caught.value.key == key
    assert words in str(caught.value)
    assert "(from --set)" in str(caught.value)


def test_a_wrong_type_in_the_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[server]\nport = "9000"\n')
    with pytest.raises(
        ConfigError, match=r"server\.port: must be a whole number, not '9000' \(from .*a\.toml\)"
    ):
        load(path, {})


@pytest.mark.parametrize("text", ["[server\n", "\xff"])
def test_a_file_that_is_not_toml_or_not_there_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    with pytest.raises(ConfigError, match="no such file"):
        load(path, {})
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="is not TOML"):
        load(path, {})


def test_an_assignment_needs_a_key_and_an_equals_sign() -> None:
    for text in ("server.port", "=1"):
        with pytest.raises(ConfigError, match="key=value"):
            parse_assignment(text)


@pytest.mark.parametrize(
    "key",
    [
        "auth.token_secret",
        "twilio.auth_token",
        "stages.reply.params.api_key",
        "stages.reply.params.header.Authorization",
        "stages.reply.params.header.X-Team",
        "stages.stt.params.access_token",
        "stages.stt.params.x-api-key",
        "stages.tts.params.password",
    ],
)
def test_a_secret_is_never_shown(key: str) -> None:
    text = load(None, {}, [parse_assignment(f"{key}=hush-hush")]).to_toml()
    assert "hush-hush" not in text
    assert "********" in text
    if "params" not in key:
        with pytest.raises(ConfigError) as caught:
            load(None, {}, [(f"{key}.more", "hush-hush", "--set")])
        assert "hush-hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("server.tls_key", "key.pem", "key.pem"),
        ("auth.keys_file", "keys.toml", "keys.toml"),
        ("stages.reply.params.api_key_env", "OPENAI_API_KEY", "OPENAI_API_KEY"),
        ("stages.reply.params.base_url", "http://me:pw@llm/v1", "http://********@llm/v1"),
    ],
)
def test_what_is_no_secret_is_shown(key: str, value: str, shown: str) -> None:
    flags = [parse_assignment(f"{key}={value}"), parse_assignment("server.tls_cert=cert.pem")]
    assert f'= "{shown}"' in load(None, {}, flags).to_toml()


def test_what_is_printed_loads_again_and_hides_secrets(file: Path) -> None:
    loaded = load(file, {}, [parse_assignment("stages.reply.params.api_key=sk-secret")])
    text = loaded.to_toml()
    assert "sk-secret" not in text
    assert "port = 9000" in text
    assert f"# {file}" in text
    again = file.with_name("again.toml")
    again.write_text(text)
    assert tomllib.loads(text)["server"]["port"] == 9000
    reloaded = load(again, {}).config
    assert msgspec.structs.replace(reloaded, stages=loaded.config.stages) == loaded.config


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "fe80::1%eth0", "localhost", "b\u00fccher.example"])
def test_whatever_a_host_may_be_called_is_taken(host: str) -> None:
    assert load(None, {}, [("server.host", host, "--host")]).config.server.host == host


@pytest.mark.parametrize(
    ("key", "value"),
    [("stages.vad.request_slots", "2"), ("stages.vad.slot_bytes", "128"), ("stages.vad.slot_bytes", "192")],
)
def test_the_smallest_sizes_are_those_of_the_rings(key: str, value: str) -> None:
    stage = load(None, {}, [(key, value, "--set")]).config.stages.vad
    ChannelConfig(stage.request_slots, stage.result_slots, stage.slot_bytes)


def test_no_workers_are_one_per_core_in_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "usable_cores", lambda: 6.5)
    names = [
        f"stages.{stage}{which}.workers" for stage in ("stt", "reply", "tts") for which in ("", ".lighter")
    ]
    flags = [(name, "0", "--set") for name in ["stages.vad.workers", *names]]
    loaded = load(None, {}, flags)
    stages = loaded.config.stages
    assert {one.workers for one in (stages.vad, stages.stt, stages.reply, stages.tts)} == {6}
    assert {one.lighter.workers for one in (stages.stt, stages.reply, stages.tts)} == {6}
    assert loaded.source_of("stages.tts.workers") == "--set, 0: one per core"
    shared = load(None, {}, [*flags, ("server.processes", "4", "--processes")])
    assert shared.config.stages.tts.workers == 1


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("VOICESERVER_SERVER_PORT", "VOICESERVER_SERVER__PORT"),
        ("VOICESERVER_CONFG", "VOICESERVER_CONFIG"),
        ("VOICESERVER_FOO", "VOICESERVER_KEY"),
        ("VOICESERVER_PORT", "VOICESERVER_SERVER__PORT"),
    ],
)
def test_a_variable_that_nobody_reads_is_refused(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {name: "9000"})
    assert caught.value.key == name
    assert "there is no such variable" in str(caught.value)
    if name != "VOICESERVER_FOO":
        assert f"did you mean {nearest}?" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VOICESERVER_CONFIG", "a.toml"),
        ("VOICESERVER_KEY", "vs_1"),
        ("VOICESERVER_CHAT_API_KEY", "sk"),
        ("VOICESERVER_PORT", "tcp://10.0.0.1:8765"),
        ("VOICESERVER_PORT_8765_TCP", "tcp://10.0.0.1:8765"),
        ("VOICESERVER_PORT_8765_TCP_ADDR", "10.0.0.1"),
        ("VOICESERVER_WEB_SERVICE_HOST", "10.0.0.1"),
        ("VOICESERVER_SERVICE_PORT_HTTP", "8765"),
        ("VOICESERVERS", "2"),
    ],
)
def test_variables_that_something_else_reads_or_sets_are_passed_over(name: str, value: str) -> None:
    assert load(None, {name: value}).config == Config()


def test_a_variable_that_a_setting_names_is_read() -> None:
    flags = [("stages.reply.params.api_key_env", "VOICESERVER_MY_LLM", "--set")]
    load(None, {"VOICESERVER_MY_LLM": "sk"}, flags)
    with pytest.raises(ConfigError, match="VOICESERVER_MY_LLM"):
        load(None, {"VOICESERVER_MY_LLM": "sk"})


def test_a_file_that_is_not_there_is_said_with_what_named_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(from environment variable VOICESERVER_CONFIG\)"):
        load(tmp_path / "nope", {}, named_by="environment variable VOICESERVER_CONFIG")


def test_a_lighter_vad_is_not_printed_and_its_defaults_are_no_fault() -> None:
    text = load(None, {}).to_toml()
    assert "[stages.vad.lighter]" not in text
    assert "[stages.stt.lighter]" in text
    load(
        None,
        {},
        [("stages.vad.lighter.engine", "none", "--set"), ("stages.vad.lighter.workers", "1", "--set")],
    )


@pytest.mark.parametrize(
    "kind",
    [
        Config,
        ServerConfig,
        SessionConfig,
        BackpressureConfig,
        AuthConfig,
        TwilioConfig,
        StagesConfig,
        StageConfig,
        LighterConfig,
        ChatConfig,
    ],
)
def test_each_setting_has_a_meaning_that_a_program_can_read(kind: type) -> None:
    meanings = meanings_of(kind)
    assert list(meanings) == list(inspect.signature(kind).parameters)
    assert not [
        text for text in meanings.values() if (not text[0].isalnum() and text[0] != '"') or text[-1] != "."
    ]


@pytest.mark.parametrize(
    ("interval_ms", "timeout_ms", "key"),
    [
        ("5000", "", "server.ping_interval_ms"),
        ("", "30000", "server.ping_timeout_ms"),
        ("10", "20", "server.ping_interval_ms"),
    ],
)
def test_a_ping_that_cannot_wait_for_its_pong_is_refused(interval_ms: str, timeout_ms: str, key: str) -> None:
    given = {"server.ping_interval_ms": interval_ms, "server.ping_timeout_ms": timeout_ms}
    flags = [parse_assignment(f"{name}={value}") for name, value in given.items() if value]
    with pytest.raises(
        ConfigError, match=r"server.ping_interval_ms must be 0 .* or at least server.ping_timeout_ms"
    ) as caught:
        load(None, {}, flags)
    assert caught.value.key == key


@pytest.mark.parametrize("interval_ms", [0, 20_000, 60_000])
def test_a_ping_that_can_wait_for_its_pong_is_taken(interval_ms: int) -> None:
    loaded = load(None, {}, [parse_assignment(f"server.ping_interval_ms={interval_ms}")])
    assert loaded.config.server.ping_interval_ms == interval_ms
