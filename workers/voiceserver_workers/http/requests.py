"""HTTP requests of an engine: they wait on an event loop in a thread of their own, and the engine takes what has come.

    engine thread    ask --> Asked ...... take (never blocks) ...... cancel
    network thread           request, retries, clocks --> head, chunks, failure or is_done

============  ======================================================================================
unreachable   no connection, or it broke off before the end of the answer
timeout       no first byte, no next byte or no end in time; the message names the setting
rejected      4xx: key, model or request are wrong, so trying again does not help
http_error    429, 5xx, or an answer of another kind; ``retry_after_ms`` as the endpoint says
============  ======================================================================================

Each code has the stage before it, as in ``tts_timeout``. A request is tried again only while nothing of its answer was seen.
Rules: a key goes to the endpoint's own address and to no redirect; the endpoint's own words stay in here; the log says once
for each cause why an endpoint does not answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Coroutine, Mapping
from functools import cache
from typing import TYPE_CHECKING, Final

from voiceserver_workers.http.address import Address, address_of, shown
from voiceserver_workers.http.proxy import ProxyError, proxy_for
from voiceserver_workers.http.retry_after import retry_after_ms
from voiceserver_workers.http.slices import AnswerTooLong, CodingError, Slices
from voiceserver_workers.ipc.messages import Failure
from voiceserver_workers.parameters import EndpointParameters

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

RETRY_MS: Final = 150.0
KEEPALIVE_S: Final = 300.0
_PROBE_TIMEOUT_S: Final = 5.0
_RETRIED_STATUS: Final = frozenset({429, 500, 502, 503, 504})
_WRONG_STATUS: Final = frozenset({401, 403, 404, 405, 407, 502, 503, 504})
_USER_OF_URL: Final = re.compile(r"(?<=://)[^/\s]+(?=@)")


class RequestFailed(Exception):
    """``failure`` is what the caller is told."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Asked:
    """One request and what came of it. The network thread appends, the engine takes."""

    __slots__ = (
        "body",
        "chunks",
        "content_type",
        "failure",
        "has_begun",
        "is_cancelled",
        "is_done",
        "kind",
        "task",
    )

    def __init__(self, body: bytes, kind: str) -> None:
        self.body = body
        self.kind = kind  # of the body
        self.content_type = ""  # of the answer
        self.chunks: deque[bytes] = deque()
        self.failure: Failure | None = None
        self.has_begun = False  # bytes of the answer were seen
        self.is_done = False  # nothing more comes: it ended, or it failed
        self.is_cancelled = False
        self.task: asyncio.Task[None] | None = None


class _Clock:
    """When an answer is given up, and the setting that says so. Seconds of the loop."""

    def __init__(self, settings: EndpointParameters, now_s: float) -> None:
        self._settings = settings
        self._asked_s = self._heard_s = now_s
        self._has_begun = False

    def hear(self, now_s: float) -> None:
        self._heard_s = now_s
        self._has_begun = True

    @property
    def _next(self) -> tuple[float, str]:
        settings = self._settings
        name = "stall_timeout_ms" if self._has_begun else "first_byte_timeout_ms"
        silence_ms = settings.stall_timeout_ms if self._has_begun else settings.first_byte_timeout_ms
        whole_s = self._asked_s + settings.timeout_ms / 1000.0
        return min((self._heard_s + silence_ms / 1000.0, name), (whole_s, "timeout_ms"))

    @property
    def due_s(self) -> float:
        return self._next[0]

    def complaint(self, now_s: float) -> tuple[str, str]:
        """What the endpoint did not do, and how long that was waited for by which setting."""
        name = self._next[1]
        since_s = self._asked_s if name == "timeout_ms" else self._heard_s
        what = {
            "timeout_ms": "was not through with its answer",
            "stall_timeout_ms": "stopped in its answer",
            "first_byte_timeout_ms": "did not begin to answer",
        }[name]
        return what, f"given up after {round((now_s - since_s) * 1000.0)} ms ({{params}}.{name})"


class Requests:
    """The endpoint of one engine. noun: what the endpoint is, for people; path: behind the base_url.

    Raises ValueError "name: what is wrong" for a parameter, or for a proxy of the environment."""

    def __init__(
        self,
        engine: str,
        stage: str,
        noun: str,
        path: str,
        settings: EndpointParameters,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        given = {name: getattr(settings, name) for name in ("base_url", "api_key", "api_key_env")}
        self._address = address_of(engine, given, environ)
        self._proxy = _proxy(self._address, environ) if settings.uses_proxy else ""
        self._stage = stage
        self._noun = noun
        self._settings = settings
        self._url = f"{self._address.base_url}{path}"
        self._told_cause = ""
        self._loop = _loop()
        self._client: httpx.AsyncClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._places = asyncio.Semaphore(settings.max_concurrency)

    def open(self, owner: object) -> None:
        """Look whether the endpoint is there, which also leaves a warm connection. ``owner``: the client is closed with it."""
        self._loop.call_soon_threadsafe(lambda: self._own(self._probe()))
        weakref.finalize(owner, _close, self)

    def ask(self, body: bytes, kind: str) -> Asked:
        """``kind``: the content type of ``body``."""
        asked = Asked(body, kind)
        self._loop.call_soon_threadsafe(self._start, asked)
        return asked

    def cancel(self, asked: Asked) -> None:
        """Nobody wants the answer any more: its connection is closed."""
        asked.is_cancelled = True
        asked.chunks.clear()
        if not asked.is_done:
            self._loop.call_soon_threadsafe(_cancel_task, asked)

    def wrong(self, what: str, *, setting: str = "") -> Failure:
        """The answer is not what was asked for. setting: the parameter that may help."""
        hint = f" ({self._params}.{setting})" if setting else ""
        return self._failure("http_error", f"{what}{hint}.", is_retryable=False)

    # ------------------------------------------------------------------------------------------- in the network thread

    def _start(self, asked: Asked) -> None:
        if not asked.is_cancelled and not self._is_closed:
            asked.task = self._own(self._serve(asked))

    def _own(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, asked: Asked) -> None:
        clock = _Clock(self._settings, self._loop.time())
        try:
            async with asyncio.timeout_at(clock.due_s) as timeout, self._places:
                await self._ask_until_answered(asked, clock, timeout)
        except TimeoutError:
            what, how = clock.complaint(self._loop.time())
            self._note_down(what)
            message = f"{what}; {how.format(params=self._params)}."
            asked.failure = self._failure("timeout", message, retry_ms=RETRY_MS)
        except RequestFailed as failed:
            asked.failure = failed.failure
        except Exception as error:
            log.error("%s: a request failed", self._noun, exc_info=error)
            asked.failure = self._failure("unreachable", "could not be asked.")
        finally:
            asked.is_done = True

    async def _ask_until_answered(self, asked: Asked, clock: _Clock, timeout: asyncio.Timeout) -> None:
        left = self._settings.retries
        while True:
            try:
                await self._ask(asked, clock, timeout)
                return
            except RequestFailed as failed:
                failure = failed.failure
                wait_s = (failure.retry_after_ms or RETRY_MS) / 1000.0
                is_soon = self._loop.time() + wait_s < clock.due_s
                if not left or failure.retryable is not True or asked.has_begun or not is_soon:
                    raise
                left -= 1
                await asyncio.sleep(wait_s)

    async def _ask(self, asked: Asked, clock: _Clock, timeout: asyncio.Timeout) -> None:
        import httpx

        headers = {"Content-Type": asked.kind, "Accept-Encoding": "identity"}
        try:
            async with self._opened().stream(
                "POST", self._url, content=asked.body, headers=headers
            ) as response:
                if response.status_code != 200:
                    raise RequestFailed(self._refused(response))
                self._note_up()
                asked.content_type = response.headers.get("content-type", "")
                slices = Slices(response.headers.get("content-encoding", ""))
                async for data in response.aiter_raw():
                    clock.hear(self._loop.time())
                    timeout.reschedule(clock.due_s)
                    asked.has_begun = True
                    asked.chunks.extend(slices.feed(data))
        except CodingError:
            raise RequestFailed(self.wrong("answered in a compression that was not asked for")) from None
        except AnswerTooLong:
            raise RequestFailed(self.wrong("sends without an end")) from None
        except httpx.HTTPError as error:
            what = "broke off its answer" if asked.has_begun else "cannot be reached"
            if isinstance(error, httpx.ConnectTimeout):
                what = "did not take a connection in time"
            self._note_down(f"{what}: {str(error) or type(error).__name__}")
            through = " through the proxy" if self._proxy else ""
            raise RequestFailed(self._failure("unreachable", f"{what}{through}.")) from None

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            import httpx

            settings, address = self._settings, self._address
            headers = {"User-Agent": "voiceserver"}
            is_secure = address.base_url.startswith("https:") or self._proxy.startswith("https:")
            if address.api_key:
                headers["Authorization"] = f"Bearer {address.api_key}"
            self._client = httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(None, connect=settings.connect_timeout_ms / 1000.0),
                limits=httpx.Limits(
                    max_connections=None,
                    max_keepalive_connections=settings.max_concurrency,
                    keepalive_expiry=KEEPALIVE_S,
                ),
                proxy=self._proxy or None,
                verify=httpx.create_ssl_context()
                if is_secure
                else False,  # reading the certificates takes 20 ms
                trust_env=False,
            )
        return self._client

    async def _probe(self) -> None:
        import httpx

        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                client = self._opened()
                status = (await client.get(f"{self._address.base_url}/models")).status_code
                if 400 <= status < 500 and status != 429:  # it has no such list, or not for us
                    headers = {"Content-Type": "application/json"}
                    status = (await client.post(self._url, content=b"{}", headers=headers)).status_code
        except (TimeoutError, httpx.HTTPError) as error:
            self._note_down(f"cannot be reached: {str(error) or type(error).__name__}")
        else:
            if status in _WRONG_STATUS:
                self._note_down(f"answered HTTP {status}")

    async def close(self) -> None:
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    # -------------------------------------------------------------------------------------------------------- failures

    @property
    def _params(self) -> str:
        return f"stages.{self._stage}.params"

    def _failure(self, code: str, what: str, *, is_retryable: bool = True, retry_ms: float = 0.0) -> Failure:
        return Failure(
            f"{self._stage}_{code}",
            f"The {self._noun} {what}",
            retryable=is_retryable,
            retry_after_ms=round(retry_ms),
        )

    def _refused(self, response: httpx.Response) -> Failure:
        """It answered with another status than 200."""
        status = response.status_code
        self._note_down(f"answered HTTP {status}")
        if status in _RETRIED_STATUS or status >= 500:
            wait_ms = retry_after_ms(response.headers, time.time())
            when = f" Try again in {wait_ms / 1000.0:.0f} s." if wait_ms >= 1_000.0 else ""
            return self._failure("http_error", f"answered HTTP {status}.{when}", retry_ms=wait_ms)
        return self._failure("rejected", f"refused with HTTP {status}.", is_retryable=False)

    def _note_up(self) -> None:
        if self._told_cause:
            self._told_cause = ""
            log.warning("%s %s answers again", self._noun, shown(self._url))

    def _note_down(self, cause: str) -> None:
        if cause != self._told_cause:
            self._told_cause = cause
            by = f" (proxy {shown(self._proxy)})" if self._proxy else ""
            log.warning("%s %s %s%s", self._noun, shown(self._url), _USER_OF_URL.sub("********", cause), by)


def _proxy(address: Address, environ: Mapping[str, str]) -> str:
    try:
        return proxy_for(address.base_url, environ)
    except ProxyError as error:
        problem = f"{error}; NO_PROXY with the host of base_url, or false here, leaves it out"
        raise ValueError(f"uses_proxy: {problem}") from None


def _cancel_task(asked: Asked) -> None:
    if asked.task is not None:
        asked.task.cancel()


def _close(requests: Requests) -> None:
    asyncio.run_coroutine_threadsafe(requests.close(), _loop())


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The one of this process; its thread ends with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="http", daemon=True).start()
    return loop
