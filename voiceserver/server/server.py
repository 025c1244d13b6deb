"""The server: one uvloop loop that listens, the pools behind it, and how it starts, drains and ends.

::

    check engines -> bind -> start pools -> serve          a bad setting or a taken port is one line and an exit code
    SIGTERM: refuse new calls, finish turns, say so, 1012, exit 0          a second signal ends at once
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import math
import os
import random
import resource
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, cast

from websockets.datastructures import Headers

from voiceserver.announcements.earcons import Earcons
from voiceserver.announcements.lines import LINES
from voiceserver.capacity.admission import Admission
from voiceserver.capacity.calibration import Calibration
from voiceserver.capacity.controller import CapacityController
from voiceserver.capacity.limit import CAUTION, LOOK_MS, PROCESSOR, calibrate, processor_of
from voiceserver.config.cores import Cores
from voiceserver.config.loader import Loaded
from voiceserver.config.schema import Config, StageConfig
from voiceserver.errors import ConfigError, StartError
from voiceserver.observability.logs import get_logger, level_of
from voiceserver.observability.metrics import Metrics
from voiceserver.pool import OnEvent, Pool, speech_voices
from voiceserver.pool.fallback import FallbackPool
from voiceserver.server import pages
from voiceserver.server.auth import CLIENT_SECRETS, Auth
from voiceserver.server.multiprocess.constants import READY
from voiceserver.server.routes import build_router
from voiceserver.server.tls import tls_context, use_instead
from voiceserver.transport.connection import CLOSE_TIMEOUT_MS, Connection
from voiceserver.transport.http import Caller, Response
from voiceserver.transport.services import Services
from voiceserver.wire import openai
from voiceserver_workers import registry

if TYPE_CHECKING:
    import ssl

    from structlog.typing import FilteringBoundLogger

    from voiceserver.server.multiprocess.child import Peer

STAGES: Final = ("vad", "stt", "reply", "tts")
PROBE_MS: Final = 50.0
SNAPSHOT_MS: Final = 1_000.0
_SPARE_FILES: Final = 256  # descriptors that are not callers: workers, rings, logs
NOBODY: Final = Caller("", {}, Headers())
_FREEZE_STEP: Final = 1_000  # new connections after which the collector is told to leave the old ones alone
_FAREWELL_MS: Final = 500.0

MakePool = Callable[[str, StageConfig, OnEvent], Pool]


def check_engines(loaded: Loaded) -> None:
    """Raises ConfigError for an engine that nobody knows, that lacks a package, or that serves another stage."""
    for name in STAGES:
        stage: StageConfig = getattr(loaded.config.stages, name)
        if stage.engine in ("", "none"):
            continue
        lighter = stage.lighter_stage
        engines = {f"stages.{name}.engine": stage.engine}
        if lighter is not None:
            engines[f"stages.{name}.lighter.engine"] = lighter.engine
        for key, engine in engines.items():
            try:
                registry.check(engine, name)
            except registry.EngineLookupError as error:
                raise ConfigError(key, str(error), loaded.source_of(key)) from None
        if lighter is not None:
            _check_lighter(name, stage.engine, lighter.engine, loaded)


def _check_lighter(name: str, engine: str, lighter: str, loaded: Loaded) -> None:
    key = f"stages.{name}.lighter.engine"
    problem = ""
    if name == "vad":
        problem = "vad hears the whole call with one engine, so there cannot be a lighter one for some turns"
    elif registry.takes_audio(engine) != registry.takes_audio(lighter):
        problem = f"{engine} and {lighter} do not take the same input: one hears audio, the other reads text"
    if problem:
        raise ConfigError(key, problem, loaded.source_of(key))


def make_pool(stage: str, config: StageConfig, on_event: OnEvent) -> Pool:
    """The pool for a stage: of processes if its engine computes, of tasks on the loop if it waits for a network."""
    if registry.resolve(config.engine).is_remote:
        from voiceserver.pool.chat.client import chat_pool

        return chat_pool(stage, config, on_event=on_event)
    from voiceserver.pool.process_pool import ProcessPool

    return ProcessPool(stage, config, on_event=on_event)


class Server:
    """``start``, then ``drain`` or ``stop``. Must be used on one running loop."""

    def __init__(
        self,
        config: Config,
        *,
        make_pool: MakePool = make_pool,
        log: FilteringBoundLogger | None = None,
        peer: Peer | None = None,
    ) -> None:
        """peer: what this process has of others on the same port."""
        self.config = config
        self._peer = peer
        self.metrics = Metrics()
        self.log = log if log is not None else get_logger()
        self._make_pool = make_pool
        self._pools: dict[str, Pool] = {}
        self._listener: asyncio.Server | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._loop_lag_ms = 0.0
        self._frozen = 0
        self._files: dict[str, float] = {}
        self._tls: ssl.SSLContext | None = None
        self._cores = Cores(self.config.server.processes)
        self._calibration: Calibration | None = None
        self._is_calibrated = False
        self._has_lines = False  # that are said aloud when it is busy
        self.on_drain_asked: Callable[[], None] = lambda: (
            None
        )  # somebody pressed the button; begin and return
        self.services: Services

    @property
    def port(self) -> int:
        """The port that is listened on; of interest when the configured one is 0."""
        assert self._listener is not None
        return cast("int", self._listener.sockets[0].getsockname()[1])

    @property
    def is_ready(self) -> bool:
        return all(pool.is_ready() for pool in self._pools.values())

    # ----------------------------------------------------------------------------------------------------- begin

    async def start(self) -> None:
        """Listen, start the pools, and return when each had its chance to load. Raises ConfigError or StartError."""
        config = self.config
        self._loop = asyncio.get_running_loop()
        for name in STAGES:
            stage: StageConfig = getattr(config.stages, name)
            if stage.engine not in ("", "none"):
                self._pools[name] = self._make_tiers(name, stage)
        limits = config.backpressure
        most = limits.max_connections or connections_that_fit()
        admission = Admission(
            most,
            limits.max_talkers,
            limits.hold,
            limits.retry_after_ms,
            room=limits.waiting_room,
            waiting_timeout_ms=limits.waiting_timeout_ms,
            share=limits.tenant_share,
        )
        jitter = random.Random()
        self.router = build_router(
            config, self._pools, admission, self.metrics, lambda: self._loop_lag_ms, jitter
        )
        self._auth = Auth(config.auth, time.time)
        self._files = self._stamps()
        self.router.auth = self._auth if self._auth.has_keys or config.auth.origins else None
        self.router.actions[CLIENT_SECRETS] = self._auth.client_secret
        self.router.session_of = self._auth.session_of
        self._auth.check_session = self._read_session
        self._own_capacity = self.router.pages["/v1/capacity"]
        if self._peer is not None:
            self.metrics.merge = self._peer.merged
            self.router.pages["/v1/capacity"] = self._merged_capacity
        pages.add(self.router, self.metrics, lambda: self.on_drain_asked())
        self.services = Services(
            self._loop,
            config,
            pools=self._pools,
            admission=admission,
            router=self.router,
            metrics=self.metrics,
            log=self.log,
        )
        self.services.auth = self._auth if self._auth.has_keys else None
        self._join_handoff()
        self._earcons = self.services.earcons = Earcons(LINES, config.session.output_rate_hz)
        self._controller = self.services.controller = CapacityController(
            self._pools,
            admission,
            self.services.server_snapshot,
            is_learned=limits.max_talkers == 0,
            windows_ms={name: getattr(config.stages, name).max_wait_ms for name in self._pools},
            on_change=self._on_pool_event,
            now_ms=self.services.now_ms,
        )
        self.metrics.observe_admission(admission, self._controller, self.services.live_books)
        self.metrics.observe_pools(lambda: [pool.stats() for pool in self._pools.values()])
        await self._listen()
        self._probe(self._loop.time())
        self._refresh()
        self._learn()
        self._server_log("listening", port=self.port, url=pages.address(config.server, self.port))
        try:
            await self._start_pools()
        except BaseException:
            await self.stop()
            raise
        self._freeze()
        self._server_log("started", is_ready=self.is_ready)
        if self._peer is not None:
            self._peer.say(READY)

    def _read_session(self, body: bytes) -> object:
        """What a client token is to be made for, held against what this server can do."""
        return openai.read_session(body, speech_voices(self._pools))

    def _make_tiers(self, name: str, stage: StageConfig) -> Pool:
        pool = self._make_pool(name, stage, self._on_pool_event)
        lighter = stage.lighter_stage
        if lighter is None:
            return pool
        return FallbackPool(pool, self._make_pool(name, lighter, self._on_lighter_event))

    def _join_handoff(self) -> None:
        """With several processes: callers who come back here belong to the process that their token names."""
        handoff = self._peer.handoff if self._peer is not None else None
        if handoff is not None:
            self.services.handoff = handoff
            self.services.session_store.process, self.services.session_store.processes = (
                handoff.index,
                handoff.processes,
            )
            handoff.listen(self._loop, lambda data: Connection(self.services, data))

    async def _listen(self) -> None:
        server = self.config.server
        self._tls = tls_context(server.tls_cert, server.tls_key) if server.tls_cert else None
        try:
            self._listener = await self._loop.create_server(
                lambda: Connection(self.services),
                server.host,
                server.port,
                backlog=server.backlog,
                reuse_address=True,
                reuse_port=self._peer is not None,
                ssl=self._tls,
            )
        except OSError as error:
            # The loop's own text repeats the address.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise StartError(f"cannot listen on {server.host}:{server.port}: {reason}") from None

    async def _start_pools(self) -> None:
        starts = [asyncio.ensure_future(pool.start()) for pool in self._pools.values()]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()

    # ----------------------------------------------------------------------------------------------------- timers

    def _probe(self, due: float) -> None:
        """How late is the loop? Asked all the time, told in ``/metrics`` and ``/v1/capacity``."""
        lag = max(self._loop.time() - due, 0.0)
        self.metrics.loop_lag.observe(lag)
        self._loop_lag_ms += (lag * 1000.0 - self._loop_lag_ms) * 0.2
        self.services.look_for_outage()
        due = self._loop.time() + PROBE_MS / 1000.0
        self._timers["probe"] = self._loop.call_at(due, self._probe, due)

    def _learn(self) -> None:
        services = self.services
        if not self._has_lines and self.is_ready:
            self._has_lines = True
            self._earcons.make(self._pools.get("tts"))
            self.router.prepare()
        elif self.config.backpressure.max_talkers == 0:
            self._calibrate()
        if self._has_lines and services.fillers is not None:
            services.fillers.make(self._pools.get("tts"))
        now_ms = services.clock()
        self._controller.look(self._loop_lag_ms, now_ms, self._cores.busy(self._controller.workers, now_ms))
        services.place_freed()
        self._timers["learn"] = self._loop.call_later(LOOK_MS / 1000.0, self._learn)

    def _calibrate(self) -> None:
        """Once, as soon as every stage is there and before the first caller: what does a talker cost?"""
        found = self._calibration
        if found is not None and found.was_disturbed:  # by a worker that died: once more
            found = self._calibration = None
        if found is None and self.is_ready and not self.services.admission.talkers and self._has_lines:
            self._calibration = Calibration(self._pools, self.services.clock, self._cores.share)
            self._calibration.begin()
        elif found is not None and not self._is_calibrated:
            found.give_up_if_late()
            if found.is_done:
                self._is_calibrated = True
                if "stt" in found.costs or "stt" not in self._pools:  # else the number of places will do
                    costs, cores = found.costs, self._cores.share
                    limit = calibrate(costs.values(), cores) * CAUTION
                    costs = {**costs, PROCESSOR: processor_of(costs.values(), cores)}
                    self._controller.start_with(math.ceil(limit), self.services.clock(), costs)
                work = {stage: round(cost.work, 4) for stage, cost in found.costs.items()}
                self._server_log("calibrated", talkers=self.services.admission.limit, work=work)

    def _stamps(self) -> dict[str, float]:
        """When the files that may be changed under a running server were last written."""
        server = self.config.server
        stamps = {}
        for path in (self.config.auth.keys_file, server.tls_cert, server.tls_key):
            if path:
                with contextlib.suppress(OSError):
                    stamps[path] = os.stat(path).st_mtime
        return stamps

    def _reload(self) -> None:
        """Take up new keys and a new certificate; a wrong file is logged, and the old one stays in use."""
        stamps = self._stamps()
        if stamps == self._files:
            return
        self._files = stamps
        server = self.config.server
        try:
            self._auth.reload()
            if self._tls is not None:
                use_instead(self._tls, tls_context(server.tls_cert, server.tls_key))
        except ConfigError as error:
            self.log.error("reload failed", reason=str(error))
        else:
            self._server_log("reloaded")

    def _refresh(self) -> None:
        self._reload()
        server_snapshot = self.services.server_snapshot
        server_snapshot.sessions = self.services.sessions
        stats = [pool.stats() for pool in self._pools.values()]
        server_snapshot.talkers = max((pool.streams for pool in stats if pool.stage == "vad"), default=0)
        server_snapshot.lag_ms = round(max((pool.lag_ms for pool in stats), default=0.0), 1)
        server_snapshot.local_time = time.strftime("%Y-%m-%d %H:%M")
        if self._peer is not None:
            self._peer.publish(self.metrics.own_families(), self._own_capacity(NOBODY).body)
        connections = len(self.services.connections)
        if connections >= self._frozen + _FREEZE_STEP:
            self._freeze()
        elif connections * 2 < self._frozen and self._frozen >= _FREEZE_STEP // 2:
            gc.unfreeze()
            gc.collect()  # what became garbage while it was frozen is in the oldest generation
            self._freeze()
        self._timers["refresh"] = self._loop.call_later(SNAPSHOT_MS / 1000.0, self._refresh)

    def _merged_capacity(self, caller: Caller) -> Response:
        assert self._peer is not None
        own = self._own_capacity(caller)
        return dataclasses.replace(own, body=self._peer.merged_capacity(own.body))

    def _freeze(self) -> None:
        """Have the collector pass over what is here to stay: thousands of sessions would make each full collection long."""
        gc.collect(1)
        gc.freeze()
        self._frozen = len(self.services.connections)

    def _on_pool_event(self, name: str, fields: Mapping[str, object]) -> None:
        self.log.log(level_of(name), name, **fields)

    def _on_lighter_event(self, name: str, fields: Mapping[str, object]) -> None:
        self.log.log(level_of(name), name, **fields, is_lighter=True)

    def _server_log(self, event: str, **fields: object) -> None:
        self.log.info(event, **fields)

    # -------------------------------------------------------------------------------------------------------- end

    async def drain(self) -> None:
        """Refuse new calls, let turns in progress end within ``drain_timeout_ms``, close with 1012, stop."""
        within_ms = float(self.config.server.drain_timeout_ms)
        self.router.is_draining = True
        self._server_log("draining", sessions=self.services.sessions, deadline_ms=within_ms)
        self.services.session_store.end_all("draining", self.services.clock())
        for connection in list(self.services.connections):
            connection.drain(within_ms)
        empty = asyncio.Event()
        self.services.on_empty = empty.set
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout((within_ms + CLOSE_TIMEOUT_MS + _FAREWELL_MS) / 1000.0):
                if self.services.sessions:
                    await empty.wait()
                if self.services.handoff is not None:
                    await self.services.handoff.wait_idle()
        await self.stop()

    async def stop(self) -> None:
        """End at once: drop every connection, end the workers. Idempotent."""
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.services.connections):
            connection.abort()
        for timer in self._timers.values():
            timer.cancel()
        self.services.session_store.end_all("stopped", self.services.clock())
        if self.services.handoff is not None:
            self.services.handoff.close()
        self.services.stop()
        await asyncio.gather(*(pool.stop() for pool in self._pools.values()))
        gc.unfreeze()


def connections_that_fit() -> int:
    """How many sockets the open-file limit carries, after raising the soft limit to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return max(soft - _SPARE_FILES, 16)
