"""The composition root: every part of a server is made here, once, and given what it needs as it is made.

``build(config, pools, loop, clock)`` opens no socket and starts no worker. The server, the tests and the
embedding API all use it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from voiceserver.announcements.spoken import Announcements
from voiceserver.capacity.admission import Admission
from voiceserver.capacity.controller import CapacityController
from voiceserver.capacity.outage import Outage
from voiceserver.config.schema import BackpressureConfig, Config
from voiceserver.events.events import Accounting
from voiceserver.observability.history import History, OwnFigures, merged_figures
from voiceserver.observability.logs import Log, get_logger, level_of, unfailing
from voiceserver.observability.metrics import Metrics
from voiceserver.pool import Pool, PoolStats, speech_voices
from voiceserver.server import pages
from voiceserver.server.auth import Auth
from voiceserver.server.multiprocess.peer import Peer
from voiceserver.server.open_files import budget_now
from voiceserver.server.overview import OverviewSource
from voiceserver.server.routes import RouteParts, build_routes
from voiceserver.server.stage_problems import StageProblems
from voiceserver.session.settings import SessionSettings
from voiceserver.transport.caller_log import CallerLog
from voiceserver.transport.http import Router, Routes
from voiceserver.transport.outage_notices import OutageNotices
from voiceserver.transport.places import Places
from voiceserver.transport.proxies import TrustedProxies
from voiceserver.transport.resume import ResumeRequests
from voiceserver.transport.server_state import ServerState
from voiceserver.transport.services import Services
from voiceserver.transport.session_factory import SessionFactory
from voiceserver.transport.session_store import SessionStore
from voiceserver.transport.ticks import Loop, Ticks, monotonic_ms
from voiceserver.transport.timers import Timers
from voiceserver.transport.unopened import UnopenedConnections
from voiceserver.wire import openai
from voiceserver.wire.registry import WIRES
from voiceserver.wire.request import Wire
from voiceserver_workers import registry


def _do_nothing(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What a server is given by the process that it runs in. ``peer`` None: the process serves alone. ``ask_to_drain``: begin
    what SIGTERM begins, and return at once. ``on_listening(port)``: once callers can connect. ``wall_s``: seconds since the
    epoch."""

    log: Log = field(default_factory=get_logger)
    peer: Peer | None = None
    ask_to_drain: Callable[[], None] = _do_nothing
    on_listening: Callable[[int], None] = _do_nothing
    problems: StageProblems = field(default_factory=StageProblems)
    wall_s: Callable[[], float] = time.time
    jitter: random.Random = field(default_factory=random.Random)
    wires: Sequence[Wire] = WIRES


def build(
    config: Config,
    pools: Mapping[str, Pool],
    loop: Loop,
    clock: Callable[[], float] = monotonic_ms,
    host: Host | None = None,
) -> Services:
    """Raises ConfigError for a key file that cannot be used."""
    host = host or Host()
    peer, log = host.peer, unfailing(host.log)
    metrics = Metrics(peer.merged if peer is not None else None)
    ticks, state = Ticks(loop, clock), _server_state(pools, metrics)
    formats = [one.line_format for one in host.wires if one.line_format is not None]
    announcements = Announcements(config.session, formats)
    settings = _settings(config, announcements)
    store = _session_store(config, peer)
    sessions = SessionFactory(settings, pools, store)
    places = _places(config, pools, sessions, ticks, log)
    history = _observe(metrics, pools, places, lambda: live_accounting(state, store), peer)
    _observe_state(metrics, state, store, host.wires)
    auth = _auth(config, pools, host)
    parts = RouteParts(config, pools, places.admission, metrics, state, auth, announcements, host.wires, peer)
    routes = build_routes(parts)
    overview = OverviewSource(config, history, host.problems, places.controller, ticks)
    pages.add(routes, auth, metrics, state, host.ask_to_drain, overview, config.server)
    outage, credit_ms = (
        Outage(pools, config.backpressure.busy_after_ms),
        float(config.backpressure.max_backlog_ms),
    )
    return Services(
        config=config,
        log=log,
        metrics=metrics,
        ticks=ticks,
        timers=Timers(ticks),
        state=state,
        places=places,
        sessions=sessions,
        outage=OutageNotices(outage, settings.options, credit_ms, state=state, ticks=ticks, log=log),
        router=_router(routes, config, places, auth, state, store, host),
        auth=auth,
        announcements=announcements,
        history=history,
        caller_log=CallerLog(log, TrustedProxies(config.server.trusted_proxies)),
        handoff=peer.handoff if peer is not None else None,
    )


def _auth(config: Config, pools: Mapping[str, Pool], host: Host) -> Auth:
    return Auth(
        config.auth,
        host.wall_s,
        check_session=lambda body: openai.read_session(body, speech_voices(pools)),
        shared_usage=host.peer,
    )


def _observe_state(metrics: Metrics, state: ServerState, store: SessionStore, wires: Sequence[Wire]) -> None:
    metrics.observe_detached(lambda: store.detached)
    metrics.observe_state(lambda: state.is_draining, [wire.name for wire in wires])


def _settings(config: Config, announcements: Announcements) -> SessionSettings:
    takes_audio = registry.takes_audio(config.stages.reply.engine)
    return SessionSettings.from_config(config, fillers=announcements.fillers, reply_takes_audio=takes_audio)


def _router(
    routes: Routes,
    config: Config,
    places: Places,
    auth: Auth,
    state: ServerState,
    store: SessionStore,
    host: Host,
) -> Router:
    resume, proxies = ResumeRequests(store).target_of, TrustedProxies(config.server.trusted_proxies)
    return Router(routes, places.admission, auth, state, resume, host.jitter, proxies)


def _observe(
    metrics: Metrics,
    pools: Mapping[str, Pool],
    places: Places,
    live: Callable[[], Iterable[Accounting]],
    peer: Peer | None,
) -> History:
    """What is read at every scrape, and what is kept of the last hour."""

    def stats() -> list[PoolStats]:
        return [pool.stats() for pool in pools.values()]

    metrics.observe_admission(places.admission, places.controller, live)
    metrics.observe_pools(stats)
    if peer is not None:
        return History(merged_figures(metrics))
    return History(OwnFigures(metrics, places.admission, places.controller, stats))


def _server_state(pools: Mapping[str, Pool], metrics: Metrics) -> ServerState:
    limits = budget_now(pools).sockets
    return ServerState(UnopenedConnections(limits, lambda: metrics.count_refused("no_request")))


def _session_store(config: Config, peer: Peer | None) -> SessionStore:
    """With several processes, a session's id names the process that keeps it."""
    window_ms = config.session.resume_window_ms
    if peer is None:
        return SessionStore(window_ms)
    return SessionStore(window_ms, peer.index, peer.processes)


def _places(
    config: Config,
    pools: Mapping[str, Pool],
    sessions: SessionFactory,
    ticks: Ticks,
    log: Log,
) -> Places:
    limits = config.backpressure
    admission = _admission(limits)

    def on_change(name: str, fields: Mapping[str, object]) -> None:
        log.log(level_of(name), name, **fields)

    controller = CapacityController(
        pools,
        admission,
        sessions.snapshot,
        is_learned=limits.max_talkers == 0,
        windows_ms={name: getattr(config.stages, name).max_wait_ms for name in pools},
        on_change=on_change,
        now_ms=ticks.now_ms,
    )
    return Places(admission, controller, pools, ticks, log)


def _admission(limits: BackpressureConfig) -> Admission:
    return Admission(
        limits.max_connections,
        limits.max_talkers,
        limits.hold,
        limits.retry_after_ms,
        room=limits.waiting_room,
        waiting_timeout_ms=limits.waiting_timeout_ms,
        share=limits.tenant_share,
    )


def live_accounting(state: ServerState, store: SessionStore) -> Iterator[Accounting]:
    """Of the open and the kept sessions that have received audio."""
    open_sessions = [one.call.session for one in state.connections if one.call is not None]
    for session in (*open_sessions, *(call.session for call in store.kept())):
        if session.audio_input is not None:
            yield session.accounting()
