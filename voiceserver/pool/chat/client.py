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

from voiceserver.config.schema import StageConfig
from voiceserver.errors import ConfigError
from voiceserver.pool import OnEvent, ignore_event
from voiceserver.pool.chat.attempts import Attempts
from voiceserver.pool.chat.config import ChatConfig
from voiceserver.pool.chat.endpoint import Endpoint
from voiceserver.pool.chat.messages import is_unheard, request_body
from voiceserver.pool.remote_pool import RemoteFailure, RemotePool, Say
from voiceserver_workers import registry
from voiceserver_workers.ipc.messages import (
    Finish,
    ResultKind,
    decode_reply_request,
    encode,
)

RETRY_MS = 150.0
DOWN_PROBE_MS = 2_000.0


def chat_pool(stage: str, config: StageConfig, *, on_event: OnEvent = ignore_event) -> RemotePool:
    """The pool of a stage whose engine is ``chat``. Raises ConfigError: a parameter is wrong, or the extra is not installed."""
    try:
        registry.check("chat")
    except registry.EngineLookupError as error:
        raise ConfigError(f"stages.{stage}.engine", str(error)) from error
    key = f"stages.{stage}.params"
    chat = ChatConfig.from_params(config.params, key=key)
    remote = Chat(chat, lambda name, fields: on_event(name, {"stage": stage, **fields}), key)
    return RemotePool(stage=stage, remote=remote, max_concurrency=chat.max_concurrency, on_event=on_event)


class Chat:
    """A RemoteEngine. ``on_event(name, fields)``: see ``endpoint``. Raises ConfigError, see ``Endpoint``."""

    name = "chat"

    def __init__(
        self, config: ChatConfig, on_event: OnEvent = ignore_event, key: str = "stages.reply.params"
    ) -> None:
        self._config = config
        self._endpoint = Endpoint(config, on_event, key)

    @property
    def skipped(self) -> int:
        """See ``RemoteEngine``."""
        return self._endpoint.skipped

    async def open(self) -> None:
        self._endpoint.open()

    async def close(self) -> None:
        await self._endpoint.close()

    def is_up(self) -> bool:
        return self._endpoint.is_up

    async def watch(self) -> None:
        """Use an idle connection now and then; look often for an endpoint that is down."""
        every_ms, endpoint = self._config.keep_warm_ms, self._endpoint
        loop = asyncio.get_running_loop()
        while every_ms and endpoint.client is not None:
            idle_ms = (loop.time() - endpoint.used_at_s) * 1000.0
            if not endpoint.is_up or not endpoint.used_at_s or idle_ms >= every_ms:
                await endpoint.probe()
                idle_ms = 0.0
            await asyncio.sleep((every_ms - idle_ms if endpoint.is_up else DOWN_PROBE_MS) / 1000.0)

    # ------------------------------------------------------------------------------------------------- one answer

    async def answer(self, request: bytes, say: Say) -> None:
        """See ``voiceserver.pool.remote_pool.RemoteEngine``."""
        config = self._config
        asked = decode_reply_request(request)
        if is_unheard(asked):
            say(ResultKind.TEXT, config.reprompt.encode())
            say(ResultKind.DONE, encode(Finish()))
            return
        loop = asyncio.get_running_loop()
        attempts = Attempts(config, loop, say, self._endpoint.note_odd, asked.language)
        try:
            async with asyncio.timeout(None) as clock:
                await self._ask_until_answered(request_body(asked, config), attempts, clock)
        except RemoteFailure as failure:
            failure.details = failure.details or self._endpoint.details(status=200)
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

        answer, endpoint = attempts.answer, self._endpoint
        client = endpoint.client
        if client is None:
            raise RemoteFailure("reply_unreachable", "The reply endpoint is not connected.")
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",  # compressed events wait for each other
        }
        try:
            async with client.stream("POST", endpoint.url, content=body, headers=headers) as response:
                if response.status_code != 200:
                    raise endpoint.refused(response)
                endpoint.note_up()
                attempts.begin_body(response.headers.get("content-encoding", ""))
                async for data in response.aiter_raw():
                    if not await attempts.receive(data, clock):
                        return
                await attempts.end_body()
        except httpx.TimeoutException as error:
            endpoint.note_down(endpoint.url, error)
            raise endpoint.unreachable("did not take a connection in time", error) from None
        except httpx.HTTPError as error:
            if answer.is_done:
                return
            if answer.has_begun:
                raise endpoint.unreachable("broke off its answer", error) from None
            endpoint.note_down(endpoint.url, error)
            raise endpoint.unreachable("cannot be reached", error) from None
