"""What ``voiceserver drain`` and ``voiceserver dashboard`` do: ask the server on this machine, with the secret that it needs."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping

from voiceserver.config.environment import environment
from voiceserver.config.schema import Config, ServerConfig
from voiceserver.errors import VoiceServerError
from voiceserver.server import admin
from voiceserver.server.pages import ANY_ADDRESS, DRAIN, DRAIN_HEADER

_TIMEOUT_S = 10.0


def drain(config: Config) -> str:
    """Ask it to drain; what to tell about that. Raises VoiceServerError when it refuses or does not answer."""
    headers = dict([DRAIN_HEADER])
    token = _token(config)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    status, body = _ask(config.server, "POST", DRAIN, headers)
    where = _name(config.server)
    if status != 202:
        raise VoiceServerError(f"{where} refuses: {_reason(body) or status}")
    return f"{where} drains; it ends within {config.server.drain_timeout_ms / 1000:g} s"


def ready(config: Config) -> str:
    """What ``/readyz`` says when callers may be sent to it. Raises VoiceServerError with the reasons when not."""
    status, body = _ask(config.server, "GET", "/readyz", {})
    where = _name(config.server)
    if status != 200:
        raise VoiceServerError(f"{where} is not ready: {body.decode('utf-8', 'replace')}")
    return f"{where} is ready"


def dashboard(config: Config) -> str:
    """The link, with the token where there is one."""
    return admin.dashboard_url(config.server, config.server.port, _token(config))


def _token(config: Config) -> str:
    given = environment().get("VOICESERVER_KEY", "")
    return given or config.auth.admin_token or admin.read(config.server.port)


def _name(server: ServerConfig) -> str:
    return f"the server on port {server.port}"


def _ask(server: ServerConfig, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """Status and body. Raises VoiceServerError when nobody answers."""
    connection = _connect(server)
    try:
        connection.request(method, path, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise VoiceServerError(f"{_name(server)} does not answer: {error}") from None
    finally:
        connection.close()


def _connect(server: ServerConfig) -> http.client.HTTPConnection:
    host = server.host
    if host in ANY_ADDRESS:
        host = "::1" if host == "::" else "127.0.0.1"
    if not server.tls_cert:
        return http.client.HTTPConnection(host, server.port, timeout=_TIMEOUT_S)
    # It is this machine's own, under whatever name.
    context = ssl.create_default_context(cafile=server.tls_cert)
    context.check_hostname = False
    return http.client.HTTPSConnection(host, server.port, timeout=_TIMEOUT_S, context=context)


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
