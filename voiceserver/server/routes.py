"""The routing table: every path that the server answers, as pages and as WebSockets."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from voiceserver.announcements.lines import LINES
from voiceserver.announcements.prerendered import Prerendered
from voiceserver.capacity.admission import Admission
from voiceserver.config.schema import Config
from voiceserver.observability.metrics import CONTENT_TYPE, Metrics, StageCapacity
from voiceserver.pool import Pool, speech_voices
from voiceserver.session.settings import SessionSettings
from voiceserver.transport.http import Caller, CodecFactory, Response, Router, json_response
from voiceserver.wire import Codec
from voiceserver.wire.registry import WIRES
from voiceserver.wire.request import Wire, WireRequest

NO_LINES: Final = Prerendered({}, 0, bytes)  # of a wire whose clients hear none
LOOP_TOO_LATE_MS: Final = 500.0  # a smoothed lag above this: the server is not ready for more callers


class Unready(msgspec.Struct, frozen=True, omit_defaults=True):
    """One reason why ``/readyz`` says 503."""

    reason: str
    stage: str | None = None


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


def build_router(
    config: Config,
    pools: Mapping[str, Pool],
    admission: Admission,
    metrics: Metrics,
    loop_lag_ms: Callable[[], float],
    jitter: random.Random,
    wires: Sequence[Wire] = WIRES,
) -> Router:
    router = Router(admission, jitter)
    add_wires(router, wires, config, pools)
    add_pages(router, pools, admission, metrics, loop_lag_ms)
    return router


def add_wires(router: Router, wires: Sequence[Wire], config: Config, pools: Mapping[str, Pool]) -> None:
    """Answer upgrades at the paths of ``wires``."""
    turn_detection = SessionSettings.from_config(config).options.turn_detection
    spoken: list[Prerendered] = []

    def codec_factory(wire: Wire) -> CodecFactory:
        line_format, lines = wire.line_format, NO_LINES
        if line_format is not None:
            lines = Prerendered(LINES, line_format.rate_hz, line_format.encode)
            spoken.append(lines)

        def make_codec(caller: Caller) -> Codec:
            request = WireRequest(
                caller.path,
                caller.query,
                caller.headers,
                seed=secrets.token_hex(8),
                session=router.session_of(caller),
                config=config,
                turn_detection=turn_detection,
                voices=speech_voices(pools),
                lines=lines.made,
            )
            codec = wire.make_codec(request)
            lines.make(pools.get("tts"))
            return codec

        return make_codec

    def prepare() -> None:
        for lines in spoken:
            lines.make(pools.get("tts"))

    router.prepare = prepare
    for wire in wires:
        router.wires.update(dict.fromkeys(wire.paths, codec_factory(wire)))
    router.self_signed = frozenset(path for one in wires if one.is_self_signed(config) for path in one.paths)


def add_pages(
    router: Router,
    pools: Mapping[str, Pool],
    admission: Admission,
    metrics: Metrics,
    loop_lag_ms: Callable[[], float],
) -> None:
    """Answer what load balancers and monitoring ask."""

    def health(caller: Caller) -> Response:
        return json_response(200, {"status": "ok"})

    def ready(caller: Caller) -> Response:
        why = reasons_unready(pools, router.is_draining, loop_lag_ms())
        return json_response(503 if why else 200, {"status": "unavailable" if why else "ready", "why": why})

    def metrics_page(caller: Caller) -> Response:
        return Response(200, metrics.to_text(), CONTENT_TYPE)

    def capacity(caller: Caller) -> Response:
        stages = {name: StageCapacity.of(pool.stats()) for name, pool in pools.items()}
        value = Capacity(
            connections=admission.taken,
            talkers=admission.talkers,
            talkers_limit=admission.limit,
            waiting=admission.waiting,
            free=admission.free,
            is_draining=router.is_draining,
            loop_lag_ms=round(loop_lag_ms(), 3),
            stages=stages,
        )
        return json_response(200, value)

    router.pages["/healthz"] = health
    router.pages["/readyz"] = ready
    router.pages["/metrics"] = metrics_page
    router.pages["/v1/capacity"] = capacity


def reasons_unready(pools: Mapping[str, Pool], is_draining: bool, loop_lag_ms: float) -> Sequence[Unready]:
    """Why no caller should be sent here now; empty when one may."""
    remote = "its endpoint does not answer"
    why = [
        Unready(remote if pool.is_remote else "no worker is ready", name)
        for name, pool in pools.items()
        if not pool.is_ready()
    ]
    if loop_lag_ms > LOOP_TOO_LATE_MS:
        why.insert(0, Unready(f"the event loop runs {loop_lag_ms:.0f} ms late"))
    if is_draining:
        why.insert(0, Unready("draining"))
    return why
