"""Where an endpoint is, and which key may go there."""

from __future__ import annotations

import pytest

from voiceserver.pool.chat.config import ChatConfig
from voiceserver_workers.http.address import AddressError, address_of, shown

KEY = {"OPENAI_API_KEY": "sk-openai"}


def key_for(url: str, environ: dict[str, str], **params: str) -> str:
    return address_of("speech", {"base_url": url, **params}, environ).api_key


@pytest.mark.parametrize(
    ("base_url", "openai_base_url", "key"),
    [
        ("https://api.openai.com/v1", "", "sk-openai"),
        ("https://API.openai.com:443/v1/", "", "sk-openai"),
        ("http://api.openai.com/v1", "", ""),  # everybody on the way could read it
        ("https://api.openai.com.example/v1", "", ""),
        ("https://api.openai.com@example/v1", "", ""),
        ("http://localhost:8000/v1", "", ""),
        ("http://localhost:8000/v1", "http://localhost:8000/v1", "sk-openai"),
        ("http://localhost:8000/audio", "http://localhost:8000/v1", "sk-openai"),
        ("http://localhost:8001/v1", "http://localhost:8000/v1", ""),
        ("https://api.openai.com/v1", "http://localhost:8000/v1", ""),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1", "sk-openai"),
        ("http://llm/v1", "no address", ""),
    ],
)
def test_the_key_of_openai_goes_to_its_host_only(base_url: str, openai_base_url: str, key: str) -> None:
    assert key_for(base_url, {**KEY, "OPENAI_BASE_URL": openai_base_url}) == key


def test_the_nearest_key_wins() -> None:
    environ = {**KEY, "MINE": "sk-mine", "OWN": "sk-own"}
    here = {"base_url": "https://api.openai.com/v1"}
    given = {**here, "api_key": "sk-given", "api_key_env": "MINE"}
    assert address_of("chat", given, environ, own_variable="OWN").api_key == "sk-given"
    assert (
        address_of("chat", {**here, "api_key_env": "MINE"}, environ, own_variable="OWN").api_key == "sk-mine"
    )
    assert address_of("chat", here, environ, own_variable="OWN").api_key == "sk-own"
    assert address_of("chat", here, environ).api_key == "sk-openai"


def test_the_address_is_the_parameter_or_that_of_openai() -> None:
    environ = {"OPENAI_BASE_URL": "http://llm:8000/v1/"}
    assert address_of("chat", {}, environ).base_url == "http://llm:8000/v1"
    assert address_of("chat", {"base_url": "http://x/v1"}, environ).base_url == "http://x/v1"
    config = ChatConfig.from_params({}, {**environ, **KEY})
    assert (config.base_url, config.api_key) == ("http://llm:8000/v1", "sk-openai")


@pytest.mark.parametrize(
    ("params", "environ", "parameter"),
    [
        ({}, {}, "base_url"),
        ({"base_url": "ftp://x/v1"}, {}, "base_url"),
        ({"base_url": "http://"}, {}, "base_url"),
        ({"base_url": "http://x:port/v1"}, {}, "base_url"),
        ({}, {"OPENAI_BASE_URL": "localhost:8000"}, "base_url"),
        ({"base_url": "http://x", "api_key_env": "MINE"}, {}, "api_key_env"),
        ({"base_url": "http://x", "api_key": "a\nb"}, {}, "api_key"),
        ({"base_url": "http://x", "api_key": "schlüssel"}, {}, "api_key"),
    ],
)
def test_what_is_wrong_is_named(params: dict[str, str], environ: dict[str, str], parameter: str) -> None:
    with pytest.raises(AddressError) as caught:
        address_of("speech", params, environ)
    assert caught.value.parameter == parameter
    assert str(caught.value) == f"{parameter}: {caught.value.problem}"


def test_nothing_secret_is_shown() -> None:
    assert shown("https://me:s3cr3t@host:1/v1?key=s3cr3t#s3cr3t") == "https://host:1/v1"
    assert "s3cr3t" not in repr(address_of("chat", {"base_url": "http://x", "api_key": "s3cr3t"}, {}))
