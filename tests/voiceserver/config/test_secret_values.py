"""Secrets are never shown: by the name of the setting, or within an address."""

from __future__ import annotations

import pytest

from voiceserver.config.loader import load
from voiceserver.config.secret_values import HIDDEN, shown_value, without_secrets


@pytest.mark.parametrize(
    "key",
    [
        "twilio.auth_token",
        "stages.reply.params.api_key",
        "stages.reply.params.apiKey",
        "stages.reply.params.accessToken",
        "stages.reply.params.x-api-key",
        "stages.stt.params.subscription-key",
        "stages.stt.params.AWS_SECRET",
        "stages.tts.params.password",
        "stages.tts.params.bearer",
        "stages.tts.params.session_cookie",
        "stages.reply.params.headers.X-Whatever",
        "stages.reply.params.extra_headers.Ocp-Apim",
    ],
)
def test_a_secret_is_hidden_by_its_name(key: str) -> None:
    assert shown_value(key, "s3cr3t") == HIDDEN
    assert shown_value(key, "") == ""


@pytest.mark.parametrize(
    "key",
    [
        "server.tls_key",
        "auth.keys_file",
        "stages.reply.params.max_tokens",
        "stages.stt.params.hotkeys",
        "session.voice",
        "server.host",
    ],
)
def test_what_is_no_secret_is_shown(key: str) -> None:
    assert shown_value(key, "value") == "value"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:s3cr3t@example.com/v1", "https://********@example.com/v1"),
        ("https://me:s3cr3t@s3cr3t?@example.com/v1", "https://********@example.com/v1"),
        ("https://s3cr3t@example.com/v1", "https://********@example.com/v1"),
        (
            "https://example.com/v1?api-key=s3cr3t&api-version=2",
            "https://example.com/v1?api-key=********&api-version=2",
        ),
        ("https://example.com/v1?a=b&sig=s3cr3t#c", "https://example.com/v1?a=b&sig=********#c"),
        (
            "cannot reach wss://example.com/?access_token=s3cr3t: timeout",
            "cannot reach wss://example.com/?access_token=********",
        ),
        ("https://example.com/v1?voice=anna", "https://example.com/v1?voice=anna"),
        ("mail me@example.com", "mail me@example.com"),
    ],
)
def test_an_address_is_shown_without_its_secrets(text: str, shown: str) -> None:
    assert without_secrets(text).startswith(shown)
    assert "s3cr3t" not in without_secrets(text)


def test_config_shows_no_secret_of_an_address() -> None:
    loaded = load(
        None, {}, [("stages.reply.params.base_url", "https://me:s3cr3t@h.example/v1?key=s3cr3t2", "--set")]
    )
    assert "s3cr3t" not in loaded.to_toml()
    assert "h.example" in loaded.to_toml()
