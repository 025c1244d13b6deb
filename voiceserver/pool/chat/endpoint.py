"""The endpoint: how it is reached, whether it is there, and what the log says of it.

==============  ============================================================================================================
endpoint_down   ``url`` that was asked, ``reason``, ``status`` if it answered, ``proxy`` if one was used; once for each cause
endpoint_up     after that
endpoint_odd    a field of its answers could not be read; once for each name
==============  ============================================================================================================

A probe asks for what will be used: the list of models, and where there is none, an empty question, which a right address
answers with 400 or 422 and no tokens.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from voiceserver.config.environment import environment
from voiceserver.config.secret_values import without_secrets
from voiceserver.errors import ConfigError
from voiceserver.pool import OnEvent, never_raising
from voiceserver.pool.chat.config import ChatConfig
from voiceserver.pool.remote_pool import RemoteFailure
from voiceserver_workers.http.proxy import ProxyError, proxy_for
from voiceserver_workers.http.retry_after import retry_after_ms

if TYPE_CHECKING:
    import httpx

KEEPALIVE_S: Final = 300.0
_RETRIED_STATUS: Final = frozenset({429, 500, 502, 503, 504})
_WRONG_STATUS: Final = frozenset({401, 403, 404, 405, 407, 502, 503, 504})
_MAX_PROBE_BYTES: Final = 4_194_304
_PROBE_TIMEOUT_MS: Final = 5_000.0
_PATH: Final = "/chat/completions"


class Endpoint:
    """Raises ConfigError for a proxy of the environment that cannot be used; ``key``: of the setting that would pass it over."""

    def __init__(self, config: ChatConfig, on_event: OnEvent, key: str = "stages.reply.params") -> None:
        self._config = config
        self._on_event = never_raising(on_event)
        self._told_cause: tuple[object, ...] = ()
        self._odd_names: set[str] = set()
        self.skipped = 0
        self.client: httpx.AsyncClient | None = None
        self.is_up = config.keep_warm_ms == 0  # nobody looks, so hope
        self.used_at_s = 0.0
        self.url = f"{config.base_url}{_PATH}"
        try:
            self._proxy = proxy_for(config.base_url, environment()) if config.uses_proxy else ""
        except ProxyError as error:
            problem = f"{error}; NO_PROXY with the host of base_url, or false here, leaves it out"
            raise ConfigError(f"{key}.uses_proxy", problem) from None

    def open(self) -> None:
        """Make the client; nothing is connected yet."""
        import httpx

        from voiceserver.pool.chat.heads import bound_heads

        config = self._config
        headers = {"User-Agent": "voiceserver", **config.headers}
        if config.api_key:
            headers["Authorization"] = f"Bearer {config.api_key}"
        limits = httpx.Limits(
            max_connections=None,
            max_keepalive_connections=config.max_concurrency,
            keepalive_expiry=KEEPALIVE_S,
        )
        # trust_env: the environment was read above, and httpx raises for what it does not know.
        transport = httpx.AsyncHTTPTransport(
            verify=httpx.create_ssl_context(), limits=limits, proxy=self._proxy or None, trust_env=False
        )
        self.client = httpx.AsyncClient(
            headers=headers,
            # Attempts keeps the other times.
            timeout=httpx.Timeout(None, connect=config.connect_timeout_ms / 1000.0),
            transport=bound_heads(transport),
            trust_env=False,
        )

    async def close(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            await client.aclose()

    async def probe(self) -> None:
        """Is what will be used there? It also leaves a warm connection."""
        import httpx

        client, url = self.client, f"{self._config.base_url}/models"
        if client is None:
            return
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_MS / 1000.0):
                status = await _status_of(client, "GET", url)
                if 400 <= status < 500 and status != 429:  # it has no such list, or not for us
                    url = self.url
                    status = await _status_of(client, "POST", url, b"{}")
        except (TimeoutError, httpx.HTTPError) as error:
            self.note_down(url, error)
            return
        if status in _WRONG_STATUS:
            self._note_cause(url, f"it answered HTTP {status}", status)
        else:
            self.note_up()

    def note_up(self) -> None:
        if self._told_cause:
            self._told_cause = ()
            self._on_event("endpoint_up", {"url": without_password(self._config.base_url)})
        self.is_up = True
        self.used_at_s = asyncio.get_running_loop().time()

    def note_down(self, url: str, error: Exception) -> None:
        """No answer. For the log: the caller is told without addresses."""
        self._note_cause(url, str(error) or type(error).__name__, None)

    def _note_cause(self, url: str, reason: str, status: int | None) -> None:
        self.is_up = False
        cause = (reason,) if status is None else (url, status)
        if cause != self._told_cause:
            self._told_cause = cause
            fields: dict[str, object] = {
                "url": without_password(url),
                "reason": without_secrets(reason),
                **self._by_proxy,
            }
            if status is not None:
                fields["status"] = status
                if self._config.base_url.endswith(_PATH):
                    fields["hint"] = f"base_url ends before {_PATH}"
            self._on_event("endpoint_down", fields)

    def note_odd(self, name: str) -> None:
        """A part of an answer could not be read."""
        self.skipped += 1
        if name not in self._odd_names:
            self._odd_names.add(name)
            self._on_event("endpoint_odd", {"url": without_password(self._config.base_url), "field": name})

    # --------------------------------------------------------------------------------------------------- failures

    @property
    def _by_proxy(self) -> dict[str, object]:
        return {"proxy": without_password(self._proxy)} if self._proxy else {}

    def details(self, **more: object) -> dict[str, object]:
        """Of a failure, for the log."""
        return {"url": without_password(self.url), **self._by_proxy, **more}

    def unreachable(self, what: str, error: Exception) -> RemoteFailure:
        through = " through the proxy" if self._proxy else ""
        reason = str(error) or type(error).__name__
        return RemoteFailure(
            "reply_unreachable",
            f"The reply endpoint {what}{through}.",
            details=self.details(reason=reason),
        )

    def refused(self, response: httpx.Response) -> RemoteFailure:
        """It answered with another status than 200."""
        status = response.status_code
        details = self.details(status=status)
        if status in _RETRIED_STATUS or status >= 500:
            wait_ms = retry_after_ms(response.headers, time.time())
            when = f" Try again in {wait_ms / 1000.0:.0f} s." if wait_ms >= 1_000.0 else ""
            return RemoteFailure(
                "reply_http_error",
                f"The reply endpoint answered HTTP {status}.{when}",
                retry_after_ms=wait_ms,
                details=details,
            )
        return RemoteFailure(
            "reply_rejected",
            f"The reply endpoint refused with HTTP {status}.",
            is_retryable=False,
            details=details,
        )


_JSON: Final = {"Content-Type": "application/json"}


async def _status_of(client: httpx.AsyncClient, method: str, url: str, content: bytes | None = None) -> int:
    """The body is read so that its connection can be used again, but not understood, and a long one is not read to its end."""
    async with client.stream(method, url, content=content, headers=_JSON if content else None) as response:
        left_bytes = _MAX_PROBE_BYTES
        async for data in response.aiter_raw():
            left_bytes -= len(data)
            if left_bytes < 0:
                break
            await asyncio.sleep(0)
        return response.status_code


def without_password(url: str) -> str:
    parts = urlsplit(url)
    return without_secrets(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
