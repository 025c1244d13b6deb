"""``http.md`` and the OpenAPI 3.1 document: every path that the server answers.

The paths are those of the router of a server that was started for it, so none can be missing; what each of them means and
answers is told here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from docs.generate.page import Page, Row, Section
from docs.generate.schemas import Schema, components_of, reference, version
from voiceserver.config.schema import Config, StageConfig, StagesConfig
from voiceserver.observability.history import HistoryReport
from voiceserver.server import pages
from voiceserver.server.auth import CLIENT_SECRETS, MAX_SESSION_BYTES, MAX_TOKEN_TTL_S, MIN_TOKEN_TTL_S
from voiceserver.server.build import build
from voiceserver.server.multiprocess.merge import Unready
from voiceserver.server.overview import Overview
from voiceserver.server.routes import SESSION, Capacity, SessionOffer
from voiceserver.testing import ManualClock
from voiceserver.wire import native, openai, twilio, whisperlive

HTML: Final = "text/html"
TEXT: Final = "text/plain"
STATIC: Final = ("/web/", pages.DOCS)  # files; the documents describe the folder, not each of them


class Health(msgspec.Struct):
    """The process lives."""

    status: Annotated[str, Meta(description="Always `ok`.")]


class Readiness(msgspec.Struct):
    """Whether callers should be sent here now."""

    status: Annotated[str, Meta(description="`ready` or `unavailable`.")]
    why: Annotated[list[Unready], Meta(description="The reasons why not; empty where it is ready.")]


class Draining(msgspec.Struct):
    """The drain has begun."""

    status: Annotated[str, Meta(description="Always `draining`.")]


class ExpiresAfter(msgspec.Struct):
    """When a client token ends."""

    seconds: Annotated[
        float | None,
        Meta(
            description=f"From {MIN_TOKEN_TTL_S:g} to {MAX_TOKEN_TTL_S:g}; the default is `auth.token_ttl_ms`."
        ),
    ] = None
    anchor: Annotated[str | None, Meta(description="`created_at`, or left out.")] = None


class ClientSecretRequest(msgspec.Struct):
    """What a token is asked for with."""

    expires_after: ExpiresAfter | None = None
    session: Annotated[
        dict[str, object] | None,
        Meta(
            description="What the token's session begins with: the `session` of the Realtime wire's `session.update`, at most "
            f"{MAX_SESSION_BYTES} bytes. Whoever holds the token can read it."
        ),
    ] = None


class ClientSecret(msgspec.Struct):
    """A token for a page, so that the page never holds a key."""

    value: Annotated[str, Meta(description="The token. It begins with `ek_`.")]
    expires_at: Annotated[int, Meta(description="Seconds since the epoch.")]
    session: Annotated[dict[str, object], Meta(description="The session that was asked for.")]


class Statistics(msgspec.Struct):
    """The samples of `/metrics`, the answer of `/v1/capacity`, and what the server is. Without keys the parameters of engines are
    told on the same machine only."""

    capacity: Capacity
    metrics: Annotated[
        dict[str, list[tuple[dict[str, str], float]]],
        Meta(description="By the name of the sample: its labels and its value."),
    ]
    about: Overview


class Problem(msgspec.Struct):
    """What went wrong."""

    type: Annotated[str, Meta(description="`invalid_request_error` below status 500, else `server_error`.")]
    code: Annotated[str, Meta(description="See the page of errors.")]
    message: Annotated[str, Meta(description="For a person.")]
    param: Annotated[str | None, Meta(description="The parameter, the field or the header that is wrong.")]
    retry_after_ms: Annotated[float, Meta(description="Of a 503: when to come back.")] = 0.0


class Failure(msgspec.Struct):
    """The body of every refusal."""

    error: Problem


@dataclass(frozen=True, slots=True)
class Answer:
    """One status. ``body``: a struct for JSON, or a media type."""

    meaning: str
    body: type | str = Failure


_FOR_KEYS: Final = {
    401: Answer("The server wants a key, and this is none of its keys."),
    403: Answer("The key is not an admin's."),
}


@dataclass(frozen=True, slots=True)
class Operation:
    """What a path means and answers. ``asks``: the struct of the request's body. ``takes_key``: keys are asked for where the
    server has some."""

    meaning: str
    answers: Mapping[int, Answer]
    asks: type | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    takes_key: bool = False


def _page(meaning: str, kind: str = HTML) -> Operation:
    return Operation(meaning, {200: Answer("The page.", kind)})


OPERATIONS: Final[Mapping[str, Operation]] = {
    "/healthz": Operation("Whether the process lives.", {200: Answer("While the process lives.", Health)}),
    "/readyz": Operation(
        "Whether callers should be sent here. A load balancer asks it.",
        {
            200: Answer("A caller would be served at once.", Readiness),
            503: Answer("Not yet, or draining; the body has the reasons.", Readiness),
        },
    ),
    "/metrics": Operation("The metrics, for Prometheus.", {200: Answer("The metrics.", TEXT)}),
    "/v1/capacity": Operation(
        "Connections, free places, loop lag, and of each stage its workers, streams, places, lag and batch size.",
        {200: Answer("The figures.", Capacity)},
    ),
    SESSION: Operation(
        "What a session here would have: engines, voices, and what is set where the client sets nothing. It refuses as an "
        "upgrade would, for clients that cannot read why their handshake was refused; `?origin=` stands for their Origin.",
        {
            200: Answer("The offer.", SessionOffer),
            401: _FOR_KEYS[401],
            403: Answer("The page's Origin may not connect."),
            429: Answer("The key has no session or no talk time left."),
        },
        takes_key=True,
    ),
    pages.STATS: Operation(
        "The samples of `/metrics` and the answer of `/v1/capacity`, for the dashboard.",
        {200: Answer("The figures.", Statistics), **_FOR_KEYS},
        takes_key=True,
    ),
    pages.HISTORY: Operation(
        "The last hour of the figures that the dashboard draws, a row every ten seconds.",
        {200: Answer("The figures.", HistoryReport), **_FOR_KEYS},
        takes_key=True,
    ),
    pages.DRAIN: Operation(
        "Does what SIGTERM does: new callers are refused, turns finish within `server.drain_timeout_ms`, connections close with "
        "1012, the exit code is 0. Without keys it asks for the admin token, on the same machine only.",
        {
            202: Answer("The drain has begun.", Draining),
            401: _FOR_KEYS[401],
            403: Answer(
                "The header is missing, the key is not an admin's, or without keys the caller is elsewhere."
            ),
        },
        headers=dict([pages.DRAIN_HEADER]),
        takes_key=True,
    ),
    CLIENT_SECRETS: Operation(
        "A client token for a page, in exchange for a key.",
        {200: Answer("The token.", ClientSecret), 400: Answer("The body is wrong."), 401: _FOR_KEYS[401]},
        asks=ClientSecretRequest,
        takes_key=True,
    ),
    "/": _page("The page to talk to: microphone, transcript, reply, where the time went."),
    "/dashboard": _page("The figures, live, and a button that drains."),
    "/docs": _page("The reference, the same as at `/docs/`."),
    pages.DOCS: _page("The reference: this page and the others, as this server has them."),
    "/docs/asyncapi.json": _page("The native wire, as AsyncAPI 3.0.", "application/json"),
    "/docs/openapi.json": _page("The HTTP paths, as OpenAPI 3.1.", "application/json"),
}
_UPGRADES: Final = {
    101: Answer("The WebSocket is open.", ""),
    400: Answer("A parameter or the handshake is wrong; the message names it."),
    401: _FOR_KEYS[401],
    403: Answer("The page's Origin may not connect, or the signature is wrong."),
    426: Answer("A plain request to a path that is a WebSocket only, or another version than 13."),
    429: Answer("The key has no session or no talk time left."),
    503: Answer("All places are taken, or the server is draining."),
}
_RESUMES: Final = {
    404: Answer("No session here can be resumed with this token."),
    410: Answer("There was one; the message says why it is gone."),
}
WIRES: Final[Mapping[str, tuple[str, Mapping[int, Answer]]]] = {
    native.PATH: ("The native wire.", {**_UPGRADES, **_RESUMES}),
    openai.PATH: ("OpenAI Realtime, GA and beta.", {**_UPGRADES, **_RESUMES}),
    twilio.PATH: ("Twilio Media Streams, both directions.", _UPGRADES),
    whisperlive.PATH: ("WhisperLive, transcription only.", _UPGRADES),
    "/": ("WhisperLive, for its clients that can be given no path.", _UPGRADES),
}


@dataclass(frozen=True, slots=True)
class Paths:
    """What a router answers: with GET, with POST, and as a WebSocket."""

    pages: tuple[str, ...]
    actions: tuple[str, ...]
    wires: tuple[str, ...]


def paths_of_a_server() -> Paths:
    """The paths of a server without engines."""

    none = StageConfig(engine="none")
    config = Config(stages=StagesConfig(none, none, none, none))
    routes = build(config, {}, ManualClock()).router.routes
    return Paths(tuple(routes.pages), tuple(routes.actions), tuple(routes.wires))


def operations() -> Iterator[tuple[str, str, Operation]]:
    """Every path with its method, in order; a WebSocket is a GET."""
    found = paths_of_a_server()
    for path in sorted({*found.pages, *found.actions, *found.wires}):
        method = "post" if path in found.actions else "get"
        operation = OPERATIONS.get(path)
        if path in found.wires:
            text, upgrades = WIRES[path]
            answers = {**upgrades, **(operation.answers if operation is not None else {})}
            shown = f"{operation.meaning} " if operation is not None else ""
            operation = Operation(
                f"{shown}A WebSocket: {text}", dict(sorted(answers.items())), takes_key=True
            )
        if operation is not None:
            yield path, method, operation
        elif not path.startswith(STATIC):
            raise KeyError(f"{path}: say in {__name__} what it is")


def document() -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    kinds: dict[type, None] = {Failure: None}
    for path, method, operation in operations():
        found.setdefault(path, {})[method] = _operation(path, method, operation)
        bodies = [answer.body for answer in operation.answers.values()]
        kinds |= dict.fromkeys(body for body in [*bodies, operation.asks] if isinstance(body, type))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "voiceserver, the HTTP paths",
            "version": version(),
            "description": "Pages, figures and WebSocket upgrades of one server. Every refusal is JSON.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": found,
        "components": {
            "schemas": components_of(*kinds),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, method: str, operation: Operation) -> Schema:
    words = [word for word in path.replace(".", "/").replace("-", "/").split("/") if word] or ["index"]
    described: Schema = {
        "operationId": "_".join([method, *words, *(["folder"] if path == "/docs/" else [])]),
        "summary": operation.meaning,
        "responses": {str(status): _response(status, answer) for status, answer in operation.answers.items()},
    }
    if operation.asks is not None:
        described["requestBody"] = {"content": {"application/json": {"schema": reference(operation.asks)}}}
    if operation.headers:
        described["parameters"] = [
            {"name": name, "in": "header", "required": True, "schema": {"type": "string", "const": value}}
            for name, value in operation.headers.items()
        ]
    if operation.takes_key:
        described["security"] = [{}, {"key": []}]
    return described


def _response(status: int, answer: Answer) -> Schema:
    described: Schema = {"description": answer.meaning}
    if isinstance(answer.body, type):
        described["content"] = {"application/json": {"schema": reference(answer.body)}}
    elif answer.body:
        described["content"] = {answer.body: {"schema": {"type": "string"}}}
        if answer.body == "application/json":
            described["content"] = {answer.body: {"schema": {"type": "object"}}}
    if status in (429, 503) and answer.body is Failure:
        described["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return described


def page() -> Page:
    rows: list[Row] = []
    answers: dict[tuple[int, str], list[str]] = {}
    for path, method, operation in operations():
        statuses = ", ".join(map(str, operation.answers))
        rows.append((f"`{method.upper()} {path}`", operation.meaning, statuses))
        for status, answer in operation.answers.items():
            answers.setdefault((status, answer.meaning), []).append(f"`{path}`")
    return Page(
        "http",
        "HTTP paths",
        "the router of a server",
        "Every path is answered on the one port. HEAD is answered as GET is, without the body. Every refusal is JSON, "
        '`{"error": {"type", "code", "message", "param"}}`, and closes the connection. Beside those below: 400 for what is '
        "no HTTP, 404 for a path that does not exist, 405 for another method, 408, 411, 413, 414 and 431 for requests that "
        "are too slow, without a length, or too long. The server has the same for a machine, as OpenAPI, at "
        "`/docs/openapi.json`.",
        [
            Section("Paths", "", ("path", "meaning", "statuses"), rows),
            Section(
                "Answers",
                "",
                ("status", "meaning", "paths"),
                [
                    (str(status), meaning, ", ".join(found))
                    for (status, meaning), found in sorted(answers.items())
                ],
            ),
        ],
    )
