"""The routing table: every path that the server answers, as pages and as WebSockets."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
from websockets.datastructures import Headers

from voiceserver.announcements.spoken import Announcements
from voiceserver.capacity.admission import Admission
from voiceserver.config.schema import Config
from voiceserver.events.events import TurnDetection
from voiceserver.observability.metrics import CONTENT_TYPE, Metrics, StageCapacity
from voiceserver.pool import Pool, speech_voices
from voiceserver.server.auth import CLIENT_SECRETS, Auth
from voiceserver.server.multiprocess.merge import Unready
from voiceserver.session.settings import SessionSettings
from voiceserver.transport.http import Caller, CodecFactory, Page, Response, Routes, json_response
from voiceserver.transport.server_state import ServerState
from voiceserver.wire import Codec
from voiceserver.wire.request import Wire, WireRequest

SESSION: Final = "/v1/session"
# With a smoothed loop lag above this, the server is not ready for more callers.
LOOP_TOO_LATE_MS: Final = 500.0


class Merging(Protocol):
    """Puts the figures of several processes together."""

    def merged_capacity(self, capacity: bytes) -> bytes: ...

    def unready_elsewhere(self) -> Sequence[Unready]: ...


class Capacity(msgspec.Struct, frozen=True):
    """``/v1/capacity``. ``free`` null, ``talkers_limit`` 0: no limit."""

    connections: int
    talkers: int
    talkers_limit: int
    waiting: int
    free: int | None
    is_draining: bool
    loop_lag_ms: float
    stages: dict[str, StageCapacity]


class SessionOffer(msgspec.Struct, frozen=True):
    """``/v1/session``: what a session here would have, for clients that let a person choose. ``engines``: by stage. ``voices``:
    empty where the speech engine does not list them. ``turn_detection`` null: turns are ended by hand."""

    engines: dict[str, str]
    voices: list[str]
    voice: str
    language: str
    turn_detection: TurnDetection | None


@dataclass(frozen=True, slots=True)
class RouteParts:
    """What the answers are made of. ``merging`` None: this process serves alone."""

    config: Config
    pools: Mapping[str, Pool]
    admission: Admission
    metrics: Metrics
    state: ServerState
    auth: Auth
    announcements: Announcements
    wires: Sequence[Wire]
    merging: Merging | None = None


def build_routes(parts: RouteParts) -> Routes:
    """Every path but those for people (``pages``)."""
    signed = (one for one in parts.wires if one.is_self_signed(parts.config))
    routes = Routes(self_signed=frozenset(path for one in signed for path in one.paths))
    _add_wires(routes, parts)
    _add_pages(routes, parts)
    routes.actions[CLIENT_SECRETS] = parts.auth.client_secret
    return routes


def _add_wires(routes: Routes, parts: RouteParts) -> None:
    """Answer upgrades at the paths of ``parts.wires``."""
    config, pools, announcements = parts.config, parts.pools, parts.announcements
    turn_detection = SessionSettings.from_config(config).options.turn_detection

    def codec_factory(wire: Wire) -> CodecFactory:
        def make_codec(caller: Caller) -> Codec:
            request = WireRequest(
                caller.path,
                caller.query,
                caller.headers,
                seed=secrets.token_hex(8),
                session=parts.auth.session_of(caller),
                config=config,
                turn_detection=turn_detection,
                voices=speech_voices(pools),
                lines=announcements.lines_made(wire.line_format),
            )
            codec = wire.make_codec(request)
            announcements.make_lines(wire.line_format, pools.get("tts"))
            return codec

        return make_codec

    for wire in parts.wires:
        routes.wires.update(dict.fromkeys(wire.paths, codec_factory(wire)))


def _add_pages(routes: Routes, parts: RouteParts) -> None:
    metrics, merging = parts.metrics, parts.merging

    def health(caller: Caller) -> Response:
        return json_response(200, {"status": "ok"})

    def ready(caller: Caller) -> Response:
        why = reasons_unready(parts.pools, parts.state)
        if merging is not None:
            why += merging.unready_elsewhere()
        return json_response(503 if why else 200, {"status": "unavailable" if why else "ready", "why": why})

    def metrics_page(caller: Caller) -> Response:
        return Response(200, metrics.to_text(), CONTENT_TYPE)

    def capacity(caller: Caller) -> Response:
        own = capacity_of(parts.pools, parts.admission, parts.state)
        return Response(200, own if merging is None else merging.merged_capacity(own))

    routes.pages["/healthz"] = health
    routes.pages[SESSION] = _session_page(parts)
    routes.pages["/readyz"] = ready
    routes.pages["/metrics"] = metrics_page
    routes.pages["/v1/capacity"] = capacity


def _session_page(parts: RouteParts) -> Page:
    options = SessionSettings.from_config(parts.config).options

    def session(caller: Caller) -> Response:
        # Refuses as an upgrade would: a page cannot read why its handshake was refused. With this request a browser sends no
        # Origin, so a page names its own.
        if "origin" in caller.query:
            headers = Headers(caller.headers.raw_items())
            headers["Origin"] = caller.query["origin"]
            caller = caller._replace(headers=headers)
        name = parts.auth.admit(caller)
        if isinstance(name, Response):
            return name
        exhausted = parts.auth.why_over_limit(name)
        if exhausted is not None:
            return exhausted
        engines = {stage: pool.stats().engine for stage, pool in parts.pools.items()}
        voices = sorted(speech_voices(parts.pools))
        offer = SessionOffer(engines, voices, options.voice, options.language, options.turn_detection)
        return json_response(200, offer)

    return session


def capacity_of(pools: Mapping[str, Pool], admission: Admission, state: ServerState) -> bytes:
    """The JSON of ``/v1/capacity``, of this process alone."""
    value = Capacity(
        connections=admission.taken,
        talkers=admission.talkers,
        talkers_limit=admission.limit,
        waiting=admission.waiting,
        free=admission.free,
        is_draining=state.is_draining,
        loop_lag_ms=round(state.loop_lag_ms, 3),
        stages={name: StageCapacity.of(pool.stats()) for name, pool in pools.items()},
    )
    return msgspec.json.encode(value)


def reasons_unready(pools: Mapping[str, Pool], state: ServerState) -> list[Unready]:
    """Why no caller should be sent here now; empty when one may."""
    remote = "its endpoint does not answer"
    why = [
        Unready(remote if pool.is_remote else "no worker is ready", name)
        for name, pool in pools.items()
        if not pool.is_ready()
    ]
    if state.is_measuring and not why:
        why.append(Unready("the engines are being measured"))
    if state.loop_lag_ms > LOOP_TOO_LATE_MS:
        why.insert(0, Unready(f"the event loop runs {state.loop_lag_ms:.0f} ms late"))
    if state.is_draining:
        why.insert(0, Unready("draining"))
    return why
