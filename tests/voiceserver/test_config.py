from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from voiceserver.config import Config, load, parse_assignment
from voiceserver.errors import ConfigError


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
        "pocketsphinx",
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
        ("stages.vad.workers", "-1", "at least 0"),
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
    assert f'= "{shown}"' in load(None, {}, [parse_assignment(f"{key}={value}")]).to_toml()


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
