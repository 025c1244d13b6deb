"""What a person looks at: the page at ``/``, the dashboard at ``/dashboard``, the figures behind it, and the drain button.

=================  ==========================================================================================
GET  /             talk to the server in a browser
GET  /dashboard    live charts; holds no figures itself
GET  /docs/        the reference: pages, AsyncAPI and OpenAPI, generated from the code (``docs.generate``)
GET  /v1/stats     JSON: the samples of ``/metrics`` and the answer of ``/v1/capacity``; nothing is counted twice
GET  /v1/history   JSON: an hour of the figures that are drawn over time
POST /v1/drain     what SIGTERM does
=================  ==========================================================================================

Rule: a page never loads anything from elsewhere, and the figures and the button ask for an admin's key. Without keys the button
asks for the admin token (``voiceserver.server.admin``), on this machine only, and never for another site's page in its browser.
"""

from __future__ import annotations

import gzip
import importlib.resources
from collections.abc import Callable
from importlib.resources.abc import Traversable
from typing import Final

import msgspec

from voiceserver.config.schema import ServerConfig
from voiceserver.observability.metrics import Metrics, Sample
from voiceserver.server.overview import Overview, OverviewSource
from voiceserver.transport.http import (
    Caller,
    Gatekeeper,
    Page,
    Response,
    Routes,
    error_response,
    json_response,
)
from voiceserver.transport.proxies import has_traces, is_loopback
from voiceserver.transport.server_state import ServerState

STATS: Final = "/v1/stats"
HISTORY: Final = "/v1/history"
DRAIN: Final = "/v1/drain"
DOCS: Final = "/docs/"
ANY_ADDRESS: Final = ("", "localhost", "0.0.0.0", "::")
# A page of another site cannot send a header of its own choice unless we agree to it, which we never do.
DRAIN_HEADER: Final = ("X-Voiceserver-Action", "drain")
_ADDRESSES: Final = {"index.html": "/", "dashboard.html": "/dashboard"}
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
}
_HEADERS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("Permissions-Policy", "microphone=(self), camera=(), geolocation=()"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


class Stats(msgspec.Struct, frozen=True):
    """``/v1/stats``. A sample is ``[labels, value]``; histograms come as their ``_bucket``, ``_sum`` and ``_count``."""

    capacity: msgspec.Raw
    metrics: dict[str, list[Sample]]
    about: Overview


def address(server: ServerConfig, port: int) -> str:
    """Where a browser on this machine finds the page."""
    host = "localhost" if server.host in ANY_ADDRESS else server.host
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if server.tls_cert else 'http'}://{host}:{port}/"


def add(
    routes: Routes,
    gatekeeper: Gatekeeper,
    metrics: Metrics,
    state: ServerState,
    drain: Callable[[], None],
    source: OverviewSource,
    server: ServerConfig,
) -> None:
    """Add the pages to ``routes``. ``drain`` begins what SIGTERM begins; it returns at once."""
    capacity = routes.pages["/v1/capacity"]

    def stats(caller: Caller) -> Response:
        refused = gatekeeper.refuse_admin(caller)
        if refused is not None:
            return refused
        # Without keys anybody may see the figures; what engines were given is for this machine then.
        about = source.overview(with_params=gatekeeper.has_keys or is_here(caller, server.host, state.port))
        return json_response(200, Stats(msgspec.Raw(capacity(caller).body), metrics.to_samples(), about))

    def history(caller: Caller) -> Response:
        refused = gatekeeper.refuse_admin(caller)
        return json_response(200, source.report()) if refused is None else refused

    def press(caller: Caller) -> Response:
        refused = _refuse_drain(gatekeeper, caller, server.host, state.port)
        if refused is not None:
            return refused
        if not state.is_draining:
            drain()
        return json_response(202, {"status": "draining"})

    web = importlib.resources.files("voiceserver").joinpath("web")
    for file in web.iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            routes.pages[_ADDRESSES.get(file.name, f"/web/{file.name}")] = _static(file.read_bytes(), kind)
    for file in web.joinpath("docs").iterdir():
        routes.pages[f"{DOCS}{file.name}"] = _read_when_asked(file)
    routes.pages[DOCS] = routes.pages[DOCS.rstrip("/")] = routes.pages.pop(f"{DOCS}index.html")
    routes.pages[STATS] = stats
    routes.pages[HISTORY] = history
    routes.actions[DRAIN] = press


def _static(body: bytes, content_type: str) -> Page:
    """Kept and sent compressed; made whole again for a client that does not take that."""
    zipped = gzip.compress(body, mtime=0)
    headers = (*_HEADERS, ("Vary", "Accept-Encoding"))
    response = Response(200, zipped, content_type, (*headers, ("Content-Encoding", "gzip")))

    def page(caller: Caller) -> Response:
        if _takes_gzip(caller.headers.get_all("Accept-Encoding")):
            return response
        return Response(200, gzip.decompress(zipped), content_type, headers)

    return page


def _takes_gzip(accepted: list[str]) -> bool:
    """By Accept-Encoding (RFC 9110, 12.5.3): named, or all are taken, and not with a quality of 0."""
    qualities: dict[str, str] = {}
    for one in ",".join(accepted).lower().split(","):
        name, _, parameters = one.partition(";")
        qualities[name.strip()] = parameters.partition("q=")[2].strip() or "1"
    quality = qualities.get("gzip", qualities.get("*", "0"))
    return quality.rstrip("0.") != ""


def _read_when_asked(file: Traversable) -> Page:
    """The reference is seldom asked for, so it is not kept in memory."""
    kind = _TYPES[file.name.rpartition(".")[2]]
    return lambda caller: Response(200, file.read_bytes(), kind, _HEADERS)


def _refuse_drain(gatekeeper: Gatekeeper, caller: Caller, bound: str, port: int) -> Response | None:
    name, value = DRAIN_HEADER
    if caller.headers.get_all(name) != [value]:
        message = f"Draining is asked for with the header '{name}: {value}'."
        return error_response(403, "not_allowed", message, param=name)
    if not gatekeeper.is_for_all and not is_here(caller, bound, port):
        message = (
            "Without keys the server can be drained from its own machine only, by the address that it listens on and through no "
            "proxy. auth.keys_file or auth.admin_token open it to others who have the secret."
        )
        return error_response(403, "not_allowed", message)
    return gatekeeper.refuse_change(caller)


def is_here(caller: Caller, bound: str, port: int) -> bool:
    """Whether the request comes from this machine: by its socket, by the address it used, which must be the one that is
    listened on (``bound``, ``port``), and without a trace of a proxy."""
    names = caller.headers.get_all("Host")
    if (
        not (is_loopback(caller.peer) or caller.peer == bound)
        or len(names) != 1
        or has_traces(caller.headers)
    ):
        return False
    # A name that somebody else's DNS leads here would let his page speak as ours.
    hosts = ["localhost", "127.0.0.1", "[::1]"] if is_loopback(bound) or bound in ANY_ADDRESS else []
    hosts.append(f"[{bound}]" if ":" in bound else bound)
    return names[0].lower() in {f"{host.lower()}:{port}" for host in hosts}
