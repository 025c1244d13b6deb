"""The routing table: every path that the server answers, as pages and as WebSockets."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from voiceserver.announcements.prerendered import Prerendered
from voiceserver.capacity.admission import Admission
from voiceserver.config.schema import Config
from voiceserver.observability.metrics import CONTENT_TYPE, Metrics, StageCapacity
from voiceserver.pool import Pool, speech_voices
from voiceserver.session.settings import SessionSettings
from voiceserver.transport.handshake import BadRequest
from voiceserver.transport.http import Caller, Response, Router, json_response
from voiceserver.wire import Codec, mulaw, native, openai, twilio, whisperlive

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
) -> Router:
    router = Router(admission, jitter)
    turn_detection = SessionSettings.from_config(config).options.turn_detection

    def stream(caller: Caller) -> Codec:
        return native.codec_from_query(caller.query, config.session.output_rate_hz)

    def realtime(caller: Caller) -> Codec:
        headers = caller.headers
        offered = ",".join(headers.get_all("Sec-WebSocket-Protocol")).split(",")
        beta = ",".join(headers.get_all("OpenAI-Beta"))
        request = openai.read_request(caller.query, beta, offered)
        return openai.codec_for(
            request,
            secrets.token_hex(8),
            turn_detection,
            speech_voices(pools),
            session=router.session_of(caller),
        )

    prerendered = Prerendered(twilio.LINES, mulaw.RATE_HZ, mulaw.from_pcm)

    router.prepare = lambda: prerendered.make(pools.get("tts"))

    def telephone(caller: Caller) -> Codec:
        token = config.twilio.auth_token
        signature = caller.headers.get(twilio.SIGNATURE_HEADER, "")
        host = caller.headers.get("Host", "")
        if token and not twilio.is_signed(
            signature, token, host=host, path=caller.path, public_url=config.twilio.public_url
        ):
            raise BadRequest(
                403, "bad_signature", f"{twilio.SIGNATURE_HEADER} is missing, or not of this account and URL."
            )
        prerendered.make(pools.get("tts"))
        return twilio.TwilioCodec(prerendered.made, speech_voices(pools))

    def transcription(caller: Caller) -> Codec:
        return whisperlive.WhisperLiveCodec()

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

    router.wires[native.PATH] = stream
    router.wires[openai.PATH] = realtime
    router.wires[twilio.PATH] = telephone
    router.wires[whisperlive.PATH] = transcription
    router.wires["/"] = transcription  # its clients can be told a host and a port, but no path
    router.pages["/healthz"] = health
    router.pages["/readyz"] = ready
    router.pages["/metrics"] = metrics_page
    router.pages["/v1/capacity"] = capacity
    return router


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
