"""The ``chat`` engine: any OpenAI-compatible chat-completions endpoint, streamed and cut into sentences for speech.

    request --POST--> body --``Answer``--> TEXT per sentence, TOOL per delta, DONE once

An endpoint that is down, slow or unwilling becomes a RemoteFailure, never silence:

==================  ====================================================================================
reply_unreachable   no connection, or it broke off before the end of the answer
reply_timeout       no first token, no next token or no end in time; see ``clocks``
reply_rejected      4xx: key, model or request are wrong, so trying again does not help
reply_http_error    429, 5xx, or an answer that is no chat completion; ``retry_after_ms`` as the endpoint says
==================  ====================================================================================

A request is tried again only while nothing of its answer was seen. Keys and the endpoint's own words stay in here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from voiceserver.config.schema import StageConfig
from voiceserver.errors import ConfigError
from voiceserver.pool import OnEvent, ignore_event, never_raising
from voiceserver.pool.chat.attempts import Attempts
from voiceserver.pool.chat.config import ChatConfig
from voiceserver.pool.chat.messages import is_unheard, request_body
from voiceserver.pool.remote_pool import RemoteFailure, RemotePool, Say
from voiceserver_workers import registry
from voiceserver_workers.ipc.messages import (
    Finish,
    ResultKind,
    decode_reply_request,
    encode,
)

if TYPE_CHECKING:
    import httpx

RETRY_MS = 150.0
DOWN_PROBE_MS = 2_000.0
KEEPALIVE_S = 300.0
_RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})
_PROBE_TIMEOUT_MS = 5_000.0


def chat_pool(stage: str, config: StageConfig, *, on_event: OnEvent = ignore_event) -> RemotePool:
    """The pool of a stage whose engine is ``chat``. Raises ConfigError: a parameter is wrong, or the extra is not installed."""
    try:
        registry.check("chat")
    except registry.EngineLookupError as error:
        raise ConfigError(f"stages.{stage}.engine", str(error)) from error
    chat = ChatConfig.from_params(config.params, key=f"stages.{stage}.params")
    remote = Chat(chat, lambda name, fields: on_event(name, {"stage": stage, **fields}))
    return RemotePool(stage=stage, remote=remote, max_concurrency=chat.max_concurrency, on_event=on_event)


class Chat:
    """A RemoteEngine. ``on_event(name, fields)``: endpoint_down, endpoint_up, endpoint_odd."""

    name = "chat"

    def __init__(self, config: ChatConfig, on_event: OnEvent = ignore_event) -> None:
        self._config = config
        self._on_event = never_raising(on_event)
        self._is_told_down = False
        self._client: httpx.AsyncClient | None = None
        self._is_up = config.keep_warm_ms == 0  # nobody looks, so hope
        self._used_at_s = 0.0
        self._odd_names: set[str] = set()
        self.skipped = 0

    async def open(self) -> None:
        import httpx

        config = self._config
        headers = {"User-Agent": "voiceserver", **config.headers}
        if config.api_key:
            headers["Authorization"] = f"Bearer {config.api_key}"
        connect_s = config.connect_timeout_ms / 1000.0
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=connect_s),  # answer() keeps the other times
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=config.max_concurrency,
                keepalive_expiry=KEEPALIVE_S,
            ),
            trust_env=config.uses_proxy,
        )

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def is_up(self) -> bool:
        return self._is_up

    async def watch(self) -> None:
        """Use an idle connection now and then; look often for an endpoint that is down."""
        every_ms = self._config.keep_warm_ms
        loop = asyncio.get_running_loop()
        while every_ms and self._client is not None:
            idle_ms = (loop.time() - self._used_at_s) * 1000.0
            if not self._is_up or not self._used_at_s or idle_ms >= every_ms:
                await self._probe(self._client)
                idle_ms = 0.0
            await asyncio.sleep((every_ms - idle_ms if self._is_up else DOWN_PROBE_MS) / 1000.0)

    async def _probe(self, client: httpx.AsyncClient) -> None:
        """Any HTTP answer will do: it means a warm connection."""
        import httpx

        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_MS / 1000.0):
                await client.get(f"{self._config.base_url}/models")
        except (TimeoutError, httpx.HTTPError) as error:
            self._note_down(error)
        else:
            self._note_up()

    def _note_down(self, error: Exception) -> None:
        """For the log, once per outage: the caller is told without addresses."""
        self._is_up = False
        if not self._is_told_down:
            self._is_told_down = True
            reason = str(error) or type(error).__name__
            self._on_event(
                "endpoint_down", {"url": _without_password(self._config.base_url), "reason": reason}
            )

    def _note_up(self) -> None:
        if self._is_told_down:
            self._is_told_down = False
            self._on_event("endpoint_up", {"url": _without_password(self._config.base_url)})
        self._is_up = True
        self._used_at_s = asyncio.get_running_loop().time()

    def _note_odd(self, name: str) -> None:
        """A part of an answer could not be read. For the log, once for each name."""
        self.skipped += 1
        if name not in self._odd_names:
            self._odd_names.add(name)
            self._on_event("endpoint_odd", {"url": _without_password(self._config.base_url), "field": name})

    # ------------------------------------------------------------------------------------------------- one answer

    async def answer(self, request: bytes, say: Say) -> None:
        """See ``voiceserver.pool.remote_pool.RemoteEngine``."""
        config = self._config
        asked = decode_reply_request(request)
        if is_unheard(asked):
            say(ResultKind.TEXT, config.reprompt.encode())
            say(ResultKind.DONE, encode(Finish()))
            return
        attempts = Attempts(config, asyncio.get_running_loop(), say, self._note_odd)
        try:
            async with asyncio.timeout(None) as clock:
                await self._ask_until_answered(request_body(asked, config), attempts, clock)
        except RemoteFailure:
            attempts.answer.say_rest()
            raise
        except TimeoutError:
            if not attempts.answer.end_in_silence():  # if it is done, only the tidying took too long
                raise RemoteFailure("reply_timeout", attempts.complaint(), retry_after_ms=RETRY_MS) from None
        finally:
            attempts.close()

    async def _ask_until_answered(self, body: bytes, attempts: Attempts, clock: asyncio.Timeout) -> None:
        attempts.set(clock)
        left = self._config.retries
        while True:
            try:
                await self._ask(body, attempts, clock)
                return
            except RemoteFailure as failure:
                wait_ms = failure.retry_after_ms or RETRY_MS
                now_s = asyncio.get_running_loop().time()
                is_soon = clock.when() is None or now_s + wait_ms / 1000.0 < (clock.when() or 0.0)
                if not left or not failure.is_retryable or attempts.answer.has_begun or not is_soon:
                    raise
                left -= 1
                await asyncio.sleep(wait_ms / 1000.0)
                attempts.begin()

    async def _ask(self, body: bytes, attempts: Attempts, clock: asyncio.Timeout) -> None:
        import httpx

        answer = attempts.answer
        client = self._client
        if client is None:
            raise RemoteFailure("reply_unreachable", "The reply endpoint is not connected.")
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",  # compressed events wait for each other
        }
        url = f"{self._config.base_url}/chat/completions"
        try:
            async with client.stream("POST", url, content=body, headers=headers) as response:
                self._note_up()
                if response.status_code != 200:
                    raise _refused(response.status_code, response.headers.get("retry-after", ""))
                attempts.begin_body(response.headers.get("content-encoding", ""))
                async for data in response.aiter_raw():
                    if not await attempts.receive(data, clock):
                        return
                await attempts.end_body()
        except httpx.TimeoutException as error:
            self._note_down(error)
            raise RemoteFailure(
                "reply_unreachable", "The reply endpoint did not take a connection in time."
            ) from None
        except httpx.HTTPError as error:
            if answer.is_done:
                return
            if not answer.has_begun:
                self._note_down(error)
            what = "broke off its answer" if answer.has_begun else "cannot be reached"
            raise RemoteFailure("reply_unreachable", f"The reply endpoint {what}.") from None


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _refused(status: int, retry_after: str) -> RemoteFailure:
    if status in _RETRIED_STATUS or status >= 500:
        wait_ms = min(float(retry_after), 3_600.0) * 1000.0 if _is_seconds(retry_after) else 0.0
        when = f" Try again in {wait_ms / 1000.0:.0f} s." if wait_ms >= 1_000.0 else ""
        return RemoteFailure(
            "reply_http_error", f"The reply endpoint answered HTTP {status}.{when}", retry_after_ms=wait_ms
        )
    return RemoteFailure(
        "reply_rejected", f"The reply endpoint refused with HTTP {status}.", is_retryable=False
    )


def _is_seconds(text: str) -> bool:
    return text.isascii() and text.replace(".", "", 1).isdigit()
