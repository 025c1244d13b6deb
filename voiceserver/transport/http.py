"""HTTP beside WebSocket on one port: what each path answers, decided before any upgrade.

A router has ``pages`` (path -> response), ``actions`` (the same, asked for with POST) and ``wires``
(path -> codec). A path may be both a page and a wire: the Upgrade header decides. Every refusal is JSON,
``{"error": {"code", "message", "param"}}``, and closes the connection.

=====  ============================================================================
400    a bad query or a bad handshake; the message names the parameter
401/3  what the auth hook says
404    no such path, or no such call to resume (410: there was one)
405    another method than the path has; HEAD is answered as GET is, without the body, OPTIONS with the methods (204)
411/3  a body in chunks, or too long
426    plain HTTP on a WebSocket path, or another version of WebSocket than 13
503    at capacity or draining, with Retry-After
=====  ============================================================================
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol
from urllib.parse import parse_qsl

import msgspec
from websockets.datastructures import Headers, MultipleValuesError

from voiceserver.capacity.admission import MAX_LINGERING, Admission, Ticket
from voiceserver.errors import ProtocolError, Refusal
from voiceserver.events.events import BusyCue, ErrorEvent, ServerBusy, ServerEvent
from voiceserver.transport.handshake import BadRequest, Handshake, read_handshake
from voiceserver.transport.proxies import TrustedProxies, is_loopback
from voiceserver.transport.session_store import ResumeTarget
from voiceserver.wire import Codec

JSON = "application/json"
DRAIN_RETRY_MS = 5_000.0
NO_PROXIES: Final = TrustedProxies()
_ORIGIN: Final = re.compile(r"(?i)https?://[^/]*")


class Caller(NamedTuple):
    """Who asks for what, before anything was promised. ``query`` has the last value of each name; ``peer`` is the address of
    the other end of the socket, ``address`` that of the client, where a trusted proxy stands between."""

    path: str
    query: Mapping[str, str]
    headers: Headers
    peer: str = ""
    body: bytes = b""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """``refused``: why a caller was turned away with it, for the metrics; empty for any other answer. ``is_head``: it tells of
    its body, and does not bring it. For the log: ``code`` of the error, and the name of the caller's ``key``."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    refused: str = ""
    is_head: bool = False
    code: str = ""
    key: str = ""

    def to_bytes(self) -> bytes:
        reason = HTTPStatus(self.status).phrase
        lines = [
            f"HTTP/1.1 {self.status} {reason}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Cache-Control: no-store",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join((*lines, "", "")).encode("latin-1") + (b"" if self.is_head else self.body)


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A WebSocket was agreed on. ``data``: the 101. ``refusal``: the connection is opened to tell it, then closed. ``key``: the
    name of the caller's API key. ``resume``: the call to go on with; ``ticket`` is None if it still has its place."""

    data: bytes
    codec: Codec
    caller: Caller
    ticket: Ticket | None
    refusal: Refusal | None = None
    key: str = ""
    resume: ResumeTarget | None = None


@dataclass(frozen=True, slots=True)
class OtherProcess:
    """The request goes on with a call that another process of this server keeps."""

    process: int


Page = Callable[[Caller], Response]
CodecFactory = Callable[[Caller], Codec]  # raises ProtocolError for a bad query (400), or BadRequest
# Which call a request goes on with; None for a new one.
ResumeHook = Callable[[Caller, Codec, str], ResumeTarget | OtherProcess | Response | None]


class Draining(Protocol):
    @property
    def is_draining(self) -> bool: ...
    @property
    def is_ending(self) -> bool: ...


class Gatekeeper(Protocol):
    """Who may come in; ``voiceserver.server.auth.Auth`` is one."""

    @property
    def has_keys(self) -> bool: ...
    @property
    def is_for_all(self) -> bool: ...
    def refuse_change(self, caller: Caller) -> Response | None: ...
    def refuse_admin(self, caller: Caller) -> Response | None: ...
    def admit(self, caller: Caller) -> str | Response: ...
    def refuse_over_limit(self, name: str, *, is_resumed: bool) -> Response | None: ...
    def tenant(self, name: str) -> str: ...


def json_response(status: int, value: object, *headers: tuple[str, str]) -> Response:
    return Response(status, msgspec.json.encode(value), headers=headers)


def error_response(
    status: int,
    code: str,
    message: str,
    *headers: tuple[str, str],
    param: str | None = None,
    **extra: float | str,
) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"  # a field that OpenAI's clients know
    body = {"error": {"type": kind, "code": code, "message": message, "param": param, **extra}}
    return replace(json_response(status, body, *headers), code=code)


def _response_to(error: BadRequest) -> Response:
    return error_response(error.status, error.code, error.message, *error.headers)


@dataclass(frozen=True, slots=True)
class Routes:
    """What each path answers. ``self_signed``: wires whose callers show no key, but prove themselves in another way."""

    pages: dict[str, Page] = field(default_factory=dict)
    actions: dict[str, Page] = field(default_factory=dict)
    wires: dict[str, CodecFactory] = field(default_factory=dict)
    self_signed: frozenset[str] = frozenset()


class Router:
    """Answers request heads. ``admission`` decides about upgrades; ``resume`` finds the call that a request goes on with;
    ``jitter`` spreads callers that come back."""

    def __init__(
        self,
        routes: Routes,
        admission: Admission,
        gatekeeper: Gatekeeper,
        state: Draining,
        resume: ResumeHook,
        jitter: random.Random,
        proxies: TrustedProxies = NO_PROXIES,
    ) -> None:
        self.routes = routes
        self._admission = admission
        self._gatekeeper = gatekeeper
        self._state = state
        self._resume = resume
        self._jitter = jitter
        self._proxies = proxies

    def answer(
        self, head: bytes, now_ms: float, peer: str = "", body: bytes = b""
    ) -> Response | Upgrade | OtherProcess:
        """The answer to one request. Raises nothing for what a client sent."""
        try:
            answer = self._answer(read_handshake(head), now_ms, peer, body)
        except BadRequest as error:
            answer = _response_to(error)
        except MultipleValuesError as error:
            answer = error_response(400, "bad_request", f"There is more than one header {error.args[0]!r}.")
        except RecursionError:  # of JSON: how deep it may be depends on how deep the one is who reads it
            answer = TOO_DEEP
        if isinstance(answer, Response) and head.startswith(b"HEAD "):
            return replace(answer, is_head=True)
        return answer

    def _answer(
        self, handshake: Handshake, now_ms: float, peer: str, body: bytes
    ) -> Response | Upgrade | OtherProcess:
        target, _, query = handshake.path.partition("?")
        path = self._path_of(target)
        caller = Caller(
            path,
            dict(parse_qsl(query, keep_blank_values=True)) if query else {},
            handshake.headers,
            peer,
            body,
            self._proxies.client_address(peer, handshake.headers),
        )
        routes = self.routes
        if path not in routes.wires and path not in routes.pages and path not in routes.actions:
            known = sorted({*routes.wires, *routes.pages, *routes.actions})
            listed = ", ".join(one for one in known if not one.startswith(("/web/", "/docs/")))
            return error_response(404, "not_found", f"There is nothing at {path[:200]!r}. Paths: {listed}.")
        methods = ("POST",) if path in routes.actions else ("GET", "HEAD")
        if handshake.method == "OPTIONS":
            return Response(204, b"", headers=(("Allow", ", ".join((*methods, "OPTIONS"))),))
        if handshake.method not in methods:
            message = f"Only {methods[0]} is answered here."
            return error_response(405, "method_not_allowed", message, ("Allow", ", ".join(methods)))
        if handshake.method == "POST":
            return routes.actions[path](caller)
        if handshake.is_upgrade and handshake.method == "GET":
            return self._upgrade(handshake, caller, now_ms)
        page = routes.pages.get(path)
        if page is not None:
            return page(caller)
        message = f"{path} is a WebSocket; connect with a WebSocket client."
        return error_response(426, "upgrade_required", message, ("Upgrade", "websocket"))

    def _path_of(self, target: str) -> str:
        """The path of ours that is meant: proxies send the absolute form, health checkers ``*``, people a slash at the end."""
        path = target if target.startswith("/") else _ORIGIN.sub("", target, count=1)
        if path in ("*", ""):
            return "/"
        routes, bare = self.routes, path.rstrip("/")
        # Azure's forms, and a base address with its version left out or given twice.
        versioned = "/v1/" + bare.removeprefix("/openai").removeprefix("/v1").removeprefix("/v1").lstrip("/")
        for form in (path, bare, versioned):
            if form in routes.wires or form in routes.pages or form in routes.actions:
                return form
        return path

    def _upgrade(
        self, handshake: Handshake, caller: Caller, now_ms: float
    ) -> Response | Upgrade | OtherProcess:
        make_codec = self.routes.wires.get(caller.path)
        if make_codec is None:
            paths = ", ".join(sorted(self.routes.wires))
            return error_response(
                404, "not_found", f"{caller.path[:200]!r} is no WebSocket. WebSockets: {paths}."
            )
        key = ""
        if caller.path not in self.routes.self_signed:
            admitted = self._gatekeeper.admit(caller)
            if isinstance(admitted, Response):
                return admitted
            key = admitted
        try:
            codec = make_codec(caller)
            resume = self._resume(caller, codec, key)
            if isinstance(resume, Response | OtherProcess):
                return resume
            exhausted = self._gatekeeper.refuse_over_limit(key, is_resumed=resume is not None)
            if exhausted is not None:
                return replace(exhausted, key=key)
            data = handshake.accept(codec.traits.subprotocol)
        except ProtocolError as error:
            return error_response(error.http_status, error.code, str(error), param=error.param)
        except BadRequest as error:
            return _response_to(error)
        if resume is not None and resume.call.places.has_place and not self._state.is_ending:
            return Upgrade(data, codec, caller, None, key=key, resume=resume)
        got = self._try_enter(caller, codec, key, now_ms, is_resumed=resume is not None)
        if isinstance(got, Ticket):
            return Upgrade(data, codec, caller, got, key=key, resume=resume)
        is_told = "Origin" in caller.headers or codec.traits.tells_refusal
        if is_told and self._admission.lingering < MAX_LINGERING:
            if "Origin" in caller.headers:
                got = replace(got, retry_after_ms=self._jittered_ms(got))
            return Upgrade(data, codec, caller, None, got)
        return replace(self._refuse(got), key=key)

    def _try_enter(
        self, caller: Caller, codec: Codec, key: str, now_ms: float, *, is_resumed: bool
    ) -> Ticket | Refusal:
        if self._state.is_ending or (self._state.is_draining and not is_resumed):
            return Refusal("draining", DRAIN_RETRY_MS)
        # Some wires have no word for a place in a line that all their clients take for that; a browser sees no 503.
        can_wait = is_resumed or "Origin" in caller.headers or codec.traits.can_wait
        tenant = self._tenant(caller, key)
        return self._admission.try_enter(now_ms, tenant=tenant, is_resumed=is_resumed, can_wait=can_wait)

    def _jittered_ms(self, refusal: Refusal) -> float:
        """So that those who were refused at once do not come back at once."""
        spread_ms = max(refusal.retry_after_ms / 2, SPREAD_MIN_MS)
        return refusal.retry_after_ms + self._jitter.uniform(0.0, spread_ms)

    def _tenant(self, caller: Caller, key: str) -> str:
        return self._gatekeeper.tenant(key) if key else tenant_of(caller)

    def _refuse(self, refusal: Refusal) -> Response:
        refusal = replace(refusal, retry_after_ms=self._jittered_ms(refusal))
        response = error_response(
            503,
            refusal.reason,
            refusal_message(refusal),
            ("Retry-After", str(_whole_seconds(refusal.retry_after_ms))),
            retry_after_ms=round(refusal.retry_after_ms),
        )
        return replace(response, refused=refusal.reason)


def tenant_of(caller: Caller) -> str:
    """Who shares a tenant's places: callers of one address. This machine's own tools and proxies are nobody in particular."""
    return "" if is_loopback(caller.address) else caller.address


# The header counts whole seconds: a spread that fits into one of them would bring everybody back in the same one.
SPREAD_MIN_MS: Final = 3_000.0

TOO_DEEP: Final = error_response(400, "invalid_request_error", "The JSON is nested too deep.")

CALL_IS_ELSEWHERE: Final = replace(
    error_response(
        503,
        "process_busy",
        "The process that keeps this call cannot take it now; try again at once.",
        ("Retry-After", "1"),
        retry_after_ms=1_000,
    ),
    refused="process_busy",
)


def refusal_events(refusal: Refusal, *, is_spoken: bool) -> tuple[ServerEvent, ...]:
    """For a caller who could not see a 503: a browser, or a phone, to which it ``is_spoken``."""
    retry_after_ms = round(refusal.retry_after_ms, 1)
    if is_spoken:
        return (
            ServerBusy("admission", refusal.reason, 0.0, 0.0, retry_after_ms, step="waiting"),
            BusyCue("draining" if refusal.reason == "draining" else "full"),
        )
    message = refusal_message(refusal)
    return (ErrorEvent(refusal.reason, message, retryable=True, retry_after_ms=retry_after_ms),)


def refusal_message(refusal: Refusal) -> str:
    if refusal.reason == "draining":
        return "This server is shutting down; try again, another one may answer."
    return f"All places are taken; try again in about {_whole_seconds(refusal.retry_after_ms)} s."


def _whole_seconds(ms: float) -> int:
    """Not less than ``ms``, as the header counts."""
    return max(math.ceil(ms / 1000.0), 1)
