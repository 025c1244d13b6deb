"""What a refusal and a failed handshake say to the person at the terminal."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import pytest

from voiceserver_clients import connecting
from voiceserver_clients.connecting import ConnectFailed, Refused, not_native, open_stream

TLS = Path(__file__).resolve().parents[1] / "e2e" / "tls"


@pytest.mark.parametrize(
    ("reason", "retry_after_ms", "told"),
    [
        (
            "All places are taken; try again in about 2 s.",
            5_000,
            "refused: All places are taken; try again in 5.0 s",
        ),
        ("all lines are busy", 1_500, "refused: all lines are busy; try again in 1.5 s"),
        ("Going down. Try again in 3 s", 3_000, "refused: Going down; try again in 3.0 s"),
        (
            "This server is shutting down; try again, another one may answer.",
            4_000,
            "refused: This server is shutting down; try again, another one may answer; try again in 4.0 s",
        ),
        ("All places are taken.", 0, "refused: All places are taken."),
    ],
)
def test_a_refusal_names_one_wait(reason: str, retry_after_ms: float, told: str) -> None:
    refusal = Refused(reason, retry_after_ms)
    assert str(refusal) == told
    assert refusal.reason == reason


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ws://h/v1/realtime?x=1", "/v1/realtime is not the native wire, which is at /v1/stream"),
        ("ws://h/", "/ is not the native wire, which is at /v1/stream"),
        ("ws://h/v1/stream", "is it a voiceserver?"),
        ("ws://h", "is it a voiceserver?"),
    ],
)
def test_where_the_native_wire_is(url: str, words: str) -> None:
    assert str(not_native(url, 5.0)).endswith(words)
    assert "no session.ready in 5 s" in str(not_native(url, 5.0))


class Answer(asyncio.Protocol):
    """Answers the first bytes with ``words``, or hangs up."""

    words = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self.words)
        self._transport.close()


class PlainHttp(Answer):
    words = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("protocol", [Answer, PlainHttp])
async def test_wss_to_a_plain_port_says_that_tls_failed(protocol: type[asyncio.Protocol]) -> None:
    async with await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0) as server:
        url = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/stream"
        with pytest.raises(ConnectFailed, match=r"TLS handshake failed: is it wss\? \(.+\)$"):
            await open_stream(url, {}, None, 5.0)


async def test_ws_to_a_tls_port_asks_whether_it_is_wss() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    async with await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0, ssl=tls) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/stream"
        with pytest.raises(ConnectFailed, match="is it ws, and not wss"):
            await open_stream(url, {}, None, 5.0)


async def test_a_certificate_that_nobody_vouches_for_is_named() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    async with await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0, ssl=tls) as server:
        url = f"wss://localhost:{server.sockets[0].getsockname()[1]}/v1/stream"
        with pytest.raises(ConnectFailed, match=r"TLS handshake failed: .*certificate") as failed:
            await open_stream(url, {}, None, 5.0)
    assert "is it wss" not in str(failed.value)


async def test_reports_of_the_library_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a handler Python prints them, tracebacks and all, on the terminal of whoever talks."""
    asked: list[logging.Logger] = []

    async def connect(url: str, *, logger: logging.Logger, **settings: object) -> None:
        asked.append(logger)
        raise OSError("no")

    monkeypatch.setattr(connecting, "websocket_connect", connect)
    with pytest.raises(ConnectFailed):
        await open_stream("ws://127.0.0.1:1/v1/stream", {}, None, 1.0)
    (logger,) = asked
    assert logger.name.startswith("voiceserver_clients.")
    assert any(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
