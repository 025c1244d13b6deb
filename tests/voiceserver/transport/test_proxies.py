"""Whose address a header may say, and what counts as a trace of a proxy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers

from tests.voiceserver.shell import Shell, upgrade
from voiceserver.config.loader import load
from voiceserver.config.schema import BackpressureConfig
from voiceserver.errors import ConfigError
from voiceserver.transport.proxies import TrustedProxies, has_traces

TRUSTED = "127.0.0.1, 10.0.0.0/8, fd00::/8"


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("127.0.0.1", {}, "127.0.0.1"),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.7"}, "192.0.2.7"),
        ("::ffff:127.0.0.1", {"X-Forwarded-For": "192.0.2.7"}, "192.0.2.7"),
        ("192.0.2.1", {"X-Forwarded-For": "192.0.2.7"}, "192.0.2.1"),  # anybody may say so
        ("10.1.2.3", {"X-Forwarded-For": "6.6.6.6, 192.0.2.7"}, "192.0.2.7"),  # the client invented the first
        ("10.1.2.3", {"X-Forwarded-For": "192.0.2.7, 10.9.9.9"}, "192.0.2.7"),  # through two of ours
        ("10.1.2.3", {"X-Forwarded-For": "192.0.2.7:5123"}, "192.0.2.7"),
        ("10.1.2.3", {"X-Forwarded-For": "[2001:db8::1]:443"}, "2001:db8::1"),
        ("fd00::1", {"X-Forwarded-For": "2001:db8::1"}, "2001:db8::1"),
        ("10.1.2.3", {"X-Forwarded-For": "unknown"}, "10.1.2.3"),
        ("10.1.2.3", {"X-Forwarded-For": ""}, "10.1.2.3"),
        ("10.1.2.3", {"Forwarded": 'for=192.0.2.7;proto=https, for="[2001:db8::1]:80"'}, "2001:db8::1"),
        ("10.1.2.3", {"Forwarded": "by=_x; For=192.0.2.7"}, "192.0.2.7"),
        ("10.1.2.3", {"Forwarded": "for=_hidden"}, "10.1.2.3"),
        ("10.1.2.3", {"X-Forwarded-For": "10.4.4.4"}, "10.4.4.4"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy_of_ours(
    peer: str, headers: dict[str, str], client: str
) -> None:
    assert TrustedProxies(TRUSTED).client_address(peer, Headers(headers)) == client
    assert TrustedProxies("").client_address(peer, Headers(headers)) == peer


@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80),
    st.sampled_from(["X-Forwarded-For", "Forwarded"]),
)
def test_no_header_makes_it_raise_or_speak_for_strangers(value: str, name: str) -> None:
    headers = Headers({name: value})
    TrustedProxies(TRUSTED).client_address("10.0.0.1", headers)
    assert TrustedProxies(TRUSTED).client_address("192.0.2.1", headers) == "192.0.2.1"


@given(st.from_regex(r"[A-Za-z][A-Za-z0-9-]{3,20}", fullmatch=True))
def test_what_no_program_sends_by_itself_is_a_trace(name: str) -> None:
    plain = Headers({"Host": "x", "User-Agent": "curl", "Accept": "*/*", "Sec-Fetch-Site": "same-origin"})
    assert not has_traces(plain)
    plain[f"X-{name}"] = "1"
    assert has_traces(plain)


def test_callers_behind_a_trusted_proxy_are_tenants_of_their_own() -> None:
    limits = BackpressureConfig(max_talkers=4, tenant_share=0.5, waiting_room=0)
    more = "X-Forwarded-For: 198.51.100.{}\r\n"
    trusted = Shell("vad", limits=limits, trusted_proxies="192.0.2.1")
    lines = [trusted.call(upgrade(more=more.format(number))) for number in range(4)]
    assert [line.status for line in lines] == [101] * 4
    one = Shell("vad", limits=limits)  # all of them are the proxy
    lines = [one.call(upgrade(more=more.format(number))) for number in range(4)]
    assert [line.status for line in lines] == [101, 101, 503, 503]


@pytest.mark.parametrize("value", ["10.0.0.0/33", "proxy.example", "10.0.0.1, x"])
def test_a_wrong_network_is_named_at_the_start(value: str) -> None:
    with pytest.raises(ConfigError, match="trusted_proxies"):
        load(None, {}, [("server.trusted_proxies", value, "--set")])
