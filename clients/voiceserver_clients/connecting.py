"""Reaching a voiceserver: the address of a session, the handshake, and what each answer means.

The rule: 503 and 429 are answers (:class:`Refused`, with the server's own retry time), everything else that is not a session is
:class:`ConnectFailed`, and how long to wait before the next try never undercuts what the server asked for.
"""

from __future__ import annotations

import inspect
import logging
import random
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

from voiceserver.errors import VoiceServerError

OVERLOAD_STATUSES: Final = (429, 503)
# A network that is gone is noticed while a call can still be picked up.
PING_INTERVAL_S: Final = 5.0
PING_TIMEOUT_S: Final = 10.0
NATIVE_PATH: Final = "/v1/stream"
READY_TIMEOUT_S: Final = 5.0  # a voiceserver greets with the handshake's own packet
# What goes wrong on a connection is raised here, in words. The library's own reports, with tracebacks, are for who asks for them.
_log = logging.getLogger("voiceserver_clients.websockets")
_log.addHandler(logging.NullHandler())
# Before version 15 websockets knows no proxies, and would give the argument to the socket.
_NO_PROXY: Final[dict[str, Any]] = (
    {"proxy": None} if "proxy" in inspect.signature(websocket_connect).parameters else {}
)
_SERVERS_WAIT: Final = re.compile(r"\W*\btry again in (about )?[\d.]+ s\.?$", re.IGNORECASE)


class Refused(VoiceServerError):
    """The server has no place now. ``retry_after_ms`` is its own estimate, 0 where it gave none."""

    def __init__(self, reason: str, retry_after_ms: float) -> None:
        if retry_after_ms > 0:  # spread by the server, so it goes before the rounded one in its words
            told = _SERVERS_WAIT.sub("", reason).rstrip(". ")
            super().__init__(f"refused: {told}; try again in {retry_after_ms / 1000:.1f} s")
        else:
            super().__init__(f"refused: {reason}")
        self.reason = reason
        self.retry_after_ms = retry_after_ms


class ConnectFailed(VoiceServerError):
    """There is no voiceserver there, or it will not speak to us. ``status`` is the HTTP status, 0 if there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class BadAddress(ConnectFailed):
    """The address is none: nobody was asked, and trying again does not help."""


class ConnectionLost(VoiceServerError):
    """The connection ended before its time. ``code`` is the WebSocket close code (1006: no close frame came)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"connection lost (close code {code}{': ' + reason if reason else ''})")
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Reconnect:
    """How a lost connection is picked up. ``keep_ms`` of sent audio are kept to be sent again."""

    attempts: int = 8
    first_ms: float = 200.0
    longest_ms: float = 10_000.0
    keep_ms: float = 30_000.0

    def delay_ms(self, attempt: int, retry_after_ms: float = 0.0, *, draw: float | None = None) -> float:
        """Full jitter over an exponential window, never sooner than the server asked. ``draw`` in [0, 1) replaces chance."""
        chance = random.random() if draw is None else draw
        window_ms = min(self.longest_ms, self.first_ms * 2.0**attempt)
        return retry_after_ms + chance * window_ms


async def open_stream(
    url: str, headers: Mapping[str, str], tls: ssl.SSLContext | None, open_timeout_s: float
) -> ClientConnection:
    """``tls``: how a wss:// server is checked; None: as the system does. Raises Refused, ConnectFailed or BadAddress."""
    is_tls = check_address(url) == "wss"
    try:
        return await websocket_connect(
            url,
            additional_headers=headers,
            ssl=(tls or True) if is_tls else None,
            compression=None,  # audio does not compress, and a deflate window costs the server 32 KB
            max_size=None,
            ping_interval=PING_INTERVAL_S,
            ping_timeout=PING_TIMEOUT_S,
            open_timeout=open_timeout_s,
            logger=_log,
            **_NO_PROXY,
        )
    except InvalidStatus as error:
        raise _error_of(error) from None
    except InvalidURI as error:
        raise BadAddress(f"{url} is not a ws:// or wss:// address") from error
    except (OSError, InvalidHandshake, TimeoutError, EOFError) as error:
        raise ConnectFailed(f"no answer from {url}: {_reason_of(error, is_tls)}") from error


def check_address(url: str) -> str:
    """The scheme of a WebSocket address, "ws" or "wss". Raises BadAddress."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # is looked at only when it is asked for
    except ValueError as error:
        raise BadAddress(f"{url!r} is not an address: {error}") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise BadAddress(f"{url!r} is not a ws:// or wss:// address, like ws://127.0.0.1:8765")
    return parts.scheme


def stream_url(url: str, rate_hz: int, resume_token: str = "", received: int = 0) -> str:
    """``url`` with the session's rate; with the token of the session to pick up, and how many of its messages are here."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    query.setdefault("rate", str(rate_hz))
    if resume_token:
        query |= {"resume": resume_token, "after": str(received)}
    return urlunsplit(parts._replace(path=parts.path or NATIVE_PATH, query=urlencode(query)))


def not_native(url: str, timeout_s: float) -> ConnectFailed:
    """The handshake was done and no ``session.ready`` came."""
    path = urlsplit(url).path or NATIVE_PATH
    what = f"{url} took the connection and sent no session.ready in {timeout_s:g} s"
    if path == NATIVE_PATH:
        return ConnectFailed(f"{what}: is it a voiceserver?")
    return ConnectFailed(f"{what}: {path} is not the native wire, which is at {NATIVE_PATH}")


def _reason_of(error: Exception, is_tls: bool) -> str:
    """Why there was no answer. Whoever resets or garbles a TLS handshake hardly speaks TLS."""
    reason = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS handshake failed: {reason}"
    is_cut = isinstance(error, ConnectionResetError | EOFError)
    if is_tls and (is_cut or isinstance(error, ssl.SSLError)):
        return f"TLS handshake failed: is it wss? ({reason})"
    if isinstance(error, TimeoutError) and not str(error):
        return "the time for the handshake ran out"
    # Before websockets 14 an answer that is no HTTP is of the general kind.
    if isinstance(error, InvalidMessage) or type(error) is InvalidHandshake:
        return f"{reason}: is it ws, and not wss?" if not is_tls else reason
    return reason


def _error_of(error: InvalidStatus) -> Refused | ConnectFailed:
    response = error.response
    status = response.status_code
    text = response.body.decode(errors="replace").strip() if response.body else response.reason_phrase
    text = _message_in(text)
    if status in OVERLOAD_STATUSES:
        return Refused(text, _retry_after_ms(response.headers.get("Retry-After", "")))
    return ConnectFailed(f"the server answered {status}: {text}", status)


def _message_in(text: str) -> str:
    """The message of a JSON error body, else the text itself."""
    try:
        body = msgspec.json.decode(text, type=dict[str, object])
    except msgspec.DecodeError:
        return text[:300]
    inner = body.get("error", body)
    message = inner.get("message") if isinstance(inner, dict) else inner
    return str(message) if message else text[:300]


def _retry_after_ms(value: str) -> float:
    try:
        return float(value) * 1000
    except ValueError:
        return 0.0
