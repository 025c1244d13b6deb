"""What a server does from time to time, each duty with its own timer: watch the loop, learn its capacity, take up new files, and
keep the garbage collector short."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import ssl
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from voiceserver.capacity.calibration import Calibration
from voiceserver.capacity.limit import CAUTION, PROCESSOR, calibrate, processor_of
from voiceserver.config.cores import Cores
from voiceserver.errors import ConfigError
from voiceserver.pool.duty import Duty
from voiceserver.server.multiprocess.merge import Unready
from voiceserver.server.routes import capacity_of, reasons_unready
from voiceserver.server.tls import tls_context, use_instead
from voiceserver.transport.services import Services
from voiceserver_workers import registry

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PROBE_MS: Final = 50.0
REFRESH_MS: Final = 1_000.0
# Of a loop that keeps up.
QUIET_LAG_MS: Final = 5.0
# Workers may die while they are measured; the server is ready all the same after so many attempts.
MOST_DISTURBED: Final = 3
# New connections after which the collector is told to leave the old ones alone.
_FREEZE_STEP: Final = 1_000


class Publisher(Protocol):
    """Where a process publishes its figures for the others; ``voiceserver.server.multiprocess.peer.Peer`` is one."""

    def publish(self, families: Iterable[Metric], capacity: bytes, unready: Sequence[Unready]) -> bool: ...


def may_rest(services: Services) -> bool:
    """Nobody speaks or waits, nothing is late or missing: what looks often may rest until ``ServerState.activity`` wakes it."""
    state, places = services.state, services.places
    is_quiet = (
        not state.is_measuring
        and not places.admission.waiting
        and state.loop_lag_ms < QUIET_LAG_MS
        and services.outage.is_whole
        and all(pool.is_idle() for pool in places.pools.values())
    )
    if is_quiet:
        state.activity.rest()
    return is_quiet


class LoopProbe:
    """Measures how late the loop runs what is due, and looks for stages without workers at the same pace."""

    def __init__(self, services: Services, loop: asyncio.AbstractEventLoop) -> None:
        self._services = services
        self.duty = Duty(loop, PROBE_MS, self._probe, lambda: may_rest(services))

    def _probe(self) -> None:
        lag_s = self.duty.late_s
        self._services.state.note_loop_lag(lag_s * 1000.0)
        self._services.outage.look()
        self._services.metrics.observe_loop_lag(lag_s)


class CapacityWatch:
    """Has the announcements spoken, measures what a talker costs once all stages are there, and lets the controller look."""

    def __init__(self, services: Services, cores: Cores) -> None:
        self._services = services
        self._pools = services.places.pools
        self._cores = cores
        self._calibration: Calibration | None = None
        self._disturbed = 0
        self._is_calibrated = False
        # The lines that are spoken when the server is busy were asked for.
        self._has_lines = False

    def may_rest(self) -> bool:
        """The announcements are asked for and the engines measured, or nobody wants that."""
        is_learned = self._services.config.backpressure.max_talkers == 0
        return self._has_lines and (self._is_calibrated or not is_learned) and may_rest(self._services)

    def look(self) -> None:
        services = self._services
        is_ready = all(pool.is_ready() for pool in self._pools.values())
        if is_ready:  # and again, for the languages of callers
            services.announcements.make(self._pools.get("tts"))
        if not self._has_lines and is_ready:
            self._has_lines = True
        elif services.config.backpressure.max_talkers == 0:
            self._calibrate(is_ready)
        fillers = services.announcements.fillers
        if self._has_lines and fillers is not None:
            fillers.make(self._pools.get("tts"))
        now_ms, controller = services.ticks.clock(), services.places.controller
        cores_busy = self._cores.busy(controller.workers, now_ms)
        controller.look(services.state.loop_lag_ms, now_ms, cores_busy, self._cores.share)
        services.places.changed()

    def _calibrate(self, is_ready: bool) -> None:
        """Once, as soon as every stage is there and nobody calls. A caller who comes meanwhile goes first."""
        services, found = self._services, self._calibration
        is_called = services.places.admission.talkers > 0
        if found is not None and is_called and not self._is_calibrated:
            found.stop()
        if found is not None and found.was_disturbed:  # once more
            found = self._calibration = None
            self._disturbed += 1
        if is_called or self._disturbed >= MOST_DISTURBED:
            services.state.end_measuring()
        if found is None and is_ready and not is_called and self._has_lines:
            stages = services.config.stages.by_name()
            elsewhere = {name for name, stage in stages.items() if not registry.computes(stage.engine)}
            measured = {name: pool for name, pool in self._pools.items() if name not in elsewhere}
            self._calibration = Calibration(measured, services.ticks.clock, self._cores.share)
            self._calibration.begin()
        elif found is not None and not self._is_calibrated:
            found.give_up_if_late()
            if found.is_done:
                self._is_calibrated = True
                self._apply(found)
                services.state.end_measuring()

    def _apply(self, found: Calibration) -> None:
        services, costs, cores = self._services, found.costs, self._cores.share
        # Without the cost of stt, the limit follows from the number of places.
        if "stt" in costs or "stt" not in self._pools:
            limit = math.ceil(calibrate(costs.values(), cores) * CAUTION)
            all_costs = {**costs, PROCESSOR: processor_of(costs.values(), cores)}
            services.places.controller.start_with(limit, services.ticks.clock(), all_costs)
        work = {stage: round(cost.work, 4) for stage, cost in costs.items()}
        services.log.info("calibrated", talkers=services.places.admission.limit, work=work)


class FileWatch:
    """Takes up new keys and a new certificate. A wrong file is logged, and the old one stays in use."""

    def __init__(self, services: Services, tls: ssl.SSLContext | None) -> None:
        self._services = services
        self._tls = tls
        self._stamps = self._read_stamps()

    def _read_stamps(self) -> dict[str, float]:
        """When each file was last written."""
        config = self._services.config
        stamps = {}
        for path in (config.auth.keys_file, config.server.tls_cert, config.server.tls_key):
            if path:
                with contextlib.suppress(OSError):
                    stamps[path] = os.stat(path).st_mtime
        return stamps

    def look(self) -> None:
        stamps = self._read_stamps()
        if stamps != self._stamps:
            self._stamps = stamps
            self.reload()

    def reload(self) -> None:
        services, server = self._services, self._services.config.server
        try:
            services.auth.reload()
            if self._tls is not None:
                use_instead(self._tls, tls_context(server.tls_cert, server.tls_key))
        except ConfigError as error:
            services.log.error("reload failed", reason=str(error))
        else:
            services.log.info("reloaded")


class Figures:
    """Refreshes what replies may tell about the server, and what the other processes know of this one."""

    def __init__(self, services: Services, publisher: Publisher | None) -> None:
        self._services = services
        self._publisher = publisher
        self._is_told = True

    def refresh(self) -> None:
        services = self._services
        pools, snapshot = services.places.pools, services.sessions.snapshot
        snapshot.sessions = services.state.sessions
        stats = [pool.stats() for pool in pools.values()]
        snapshot.talkers = max((pool.streams for pool in stats if pool.stage == "vad"), default=0)
        snapshot.lag_ms = round(max((pool.lag_ms for pool in stats), default=0.0), 1)
        snapshot.local_time = time.strftime("%Y-%m-%d %H:%M")
        if self._publisher is not None:
            capacity = capacity_of(pools, services.places.admission, services.state)
            unready = reasons_unready(pools, services.state)
            is_told = self._publisher.publish(services.metrics.own_families(), capacity, unready)
            if self._is_told and not is_told:
                services.log.warning("figures too long", reason="the other processes see old ones")
            self._is_told = is_told
            services.auth.publish_usage()


class CollectorFreeze:
    """Has the garbage collector pass over what is here to stay: thousands of sessions would make each full collection long."""

    def __init__(self) -> None:
        self._frozen = 0

    def freeze(self, connections: int) -> None:
        gc.collect(1)
        gc.freeze()
        self._frozen = connections

    def follow(self, connections: int) -> None:
        """Freeze again after a step of new connections, and after most have left."""
        if connections >= self._frozen + _FREEZE_STEP:
            self.freeze(connections)
        elif connections * 2 < self._frozen and self._frozen >= _FREEZE_STEP // 2:
            gc.unfreeze()
            # What became garbage while it was frozen is in the oldest generation.
            gc.collect()
            self.freeze(connections)
