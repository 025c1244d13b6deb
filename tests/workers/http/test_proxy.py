"""The proxy of the environment is found as curl and Go find it, and no variable can raise more than one line."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver_workers.http.proxy import ProxyError, proxy_for

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("environ", "url", "proxy"),
    [
        ({}, "http://llm/v1", ""),
        ({"HTTP_PROXY": PROXY}, "http://llm/v1", PROXY),
        ({"HTTP_PROXY": PROXY}, "https://llm/v1", ""),
        ({"https_proxy": PROXY, "HTTPS_PROXY": "http://other:1"}, "https://llm/v1", PROXY),
        ({"HTTP_PROXY": "proxy:3128"}, "http://llm/v1", PROXY),
        ({"HTTP_PROXY": "", "ALL_PROXY": "socks5://127.0.0.1:9"}, "http://llm/v1", "socks5://127.0.0.1:9"),
        ({"HTTP_PROXY": PROXY, "ALL_PROXY": "socks5://127.0.0.1:9"}, "http://llm/v1", PROXY),
        # An endpoint on this machine.
        ({"ALL_PROXY": PROXY}, "http://localhost:11434/v1", ""),
        ({"ALL_PROXY": PROXY}, "http://127.8.9.1:1/v1", ""),
        ({"ALL_PROXY": PROXY}, "http://[::1]:1/v1", ""),
    ],
)
def test_the_variable_of_the_scheme_goes_before_that_of_all(
    environ: dict[str, str], url: str, proxy: str
) -> None:
    assert proxy_for(url, environ) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_excepted"),
    [
        ("*", "llm", True),
        ("llm", "llm", True),
        ("llm", "a.llm", True),
        ("llm", "allm", False),
        (".corp.example", "a.corp.example", True),
        ("*.corp.example", "a.corp.example", True),
        ("LLM.example:8080", "llm.example", True),
        ("http://llm", "llm", True),
        ("localhost,127.0.0.1,::1,[::1]", "llm", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8 , fd00::/8", "11.1.2.3", False),
        ("10.1.2.3:80", "10.1.2.3", True),
        ("fd00:1:2::/64", "[fd00:1:2::7]", True),
        ("[fd00:1:2::]/64", "[fd00:1:2::7]", True),
        ("[fd00:1:2::7]:80", "[fd00:1:2::7]", True),
        ("fd00:1:2::/64", "[fd00:1:3::7]", False),
        ("10.0.0.0/99,fd00::/999,[,],:,/", "10.1.2.3", False),
        ("", "llm", False),
    ],
)
def test_exceptions_are_names_addresses_and_networks(no_proxy: str, host: str, is_excepted: bool) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        assert (proxy_for(f"http://{host}:80/v1", {"ALL_PROXY": PROXY, name: no_proxy}) == "") == is_excepted


@pytest.mark.parametrize(
    "value", ["ftp://proxy:21", "socks4://proxy:1", "http://", "http://proxy:port", "://", "http://[::1"]
)
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(value: str) -> None:
    with pytest.raises(ProxyError, match=r"^HTTP_PROXY "):
        proxy_for("http://llm/v1", {"HTTP_PROXY": value})
    assert proxy_for("http://llm/v1", {"HTTP_PROXY": value, "NO_PROXY": "llm"}) == ""


@given(st.dictionaries(st.sampled_from(["http_proxy", "ALL_PROXY", "NO_PROXY"]), st.text()))
def test_no_variable_raises_anything_else(environ: dict[str, str]) -> None:
    with contextlib.suppress(ProxyError):
        assert "://" in (proxy_for("http://llm.example/v1", environ) or "://")
