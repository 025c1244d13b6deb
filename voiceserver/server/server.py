"""A server: one loop that listens, the pools behind it, and how it starts, drains and ends.

::

    check engines -> bind -> start pools -> serve          a bad setting or a taken port is one line and an exit code
    SIGTERM: refuse new calls, finish turns, say so, 1012, exit 0          a second signal ends at once
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

import msgspec

from voiceserver.capacity.limit import LOOK_MS
from voiceserver.config.cores import Cores
from voiceserver.config.schema import Config
from voiceserver.errors import StartError
from voiceserver.observability.history import PERIOD_MS
from voiceserver.observability.logs import unfailing
from voiceserver.pool.duty import Duty
from voiceserver.server import listening, pages
from voiceserver.server.build import Host, build
from voiceserver.server.open_files import budget_now, raise_limit
from voiceserver.server.pools import MakePool, make_pool, make_pools
from voiceserver.server.tls import tls_context
from voiceserver.server.tls_listener import TlsListener
from voiceserver.server.upkeep import (
    REFRESH_MS,
    CapacityWatch,
    CollectorFreeze,
    Figures,
    FileWatch,
    LoopProbe,
)
from voiceserver.transport.connection import CLOSE_TIMEOUT_MS, Connection

if TYPE_CHECKING:
    import ssl

    from voiceserver.pool import Pool
    from voiceserver.transport.services import Services

_FAREWELL_MS: Final = 500.0
_IDLE_LOOK_S: Final = 0.2


class Server:
    """``start``, then ``drain`` or ``stop``. Must be used on one running loop."""

    def __init__(
        self,
        config: Config,
        *,
        make_pool: MakePool = make_pool,
        host: Host | None = None,
        freeze: CollectorFreeze | None = None,
    ) -> None:
        self.config = config
        self.services: Services
        host = host or Host()
        self._host = dataclasses.replace(host, log=unfailing(host.log))
        self._freeze = freeze or CollectorFreeze()
        self._make_pool = make_pool
        self._listener: asyncio.Server | None = None
        self._tls_listener: TlsListener | None = None
        self._duties: list[Duty] = []
        self._files: FileWatch | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; of interest when the configured one is 0."""
        assert self._listener is not None
        return cast("int", self._listener.sockets[0].getsockname()[1])

    @property
    def is_ready(self) -> bool:
        return all(pool.is_ready() for pool in self.services.places.pools.values())

    # ----------------------------------------------------------------------------------------------------- begin

    async def start(self) -> None:
        """Listen, start the pools, and return when each had its chance to load. Raises ConfigError or StartError."""
        loop, host, server = asyncio.get_running_loop(), self._host, self.config.server
        pools = make_pools(self.config, self._make_pool, host.log, self._note_event)
        self.config = _with_connections_that_fit(self.config, pools)
        self.services = services = build(self.config, pools, loop, host=host)
        if host.peer is not None:
            host.peer.handoff.listen(loop, lambda data: Connection(services, data))
        tls = tls_context(server.tls_cert, server.tls_key) if server.tls_cert else None
        # The kernel gives callers to every process that listens: one that comes back does so when it can serve them.
        is_late = server.reuse_port or (host.peer is not None and host.peer.is_served_elsewhere())
        if not is_late:
            await self._listen(loop, tls)
        self._start_duties(loop, tls)
        try:
            await self._start_pools()
            if is_late:
                await self._listen(loop, tls)
        except BaseException:
            await self.stop()
            raise
        self._freeze.freeze(len(services.state.connections))
        host.log.info("started", is_ready=self.is_ready)
        if host.peer is not None:
            host.peer.announce_ready()

    async def _listen(self, loop: asyncio.AbstractEventLoop, tls: ssl.SSLContext | None) -> None:
        server, services = self.config.server, self.services
        shares_port = self._host.peer is not None or server.reuse_port
        make = functools.partial(
            loop.create_server,
            lambda: Connection(services),
            backlog=server.backlog,
            start_serving=tls is None,
        )
        try:
            if listening.is_both_families(server.host):
                self._listener = await make(sock=listening.dual_stack(server.port, reuse_port=shares_port))
            else:
                self._listener = await make(
                    server.host, server.port, reuse_address=True, reuse_port=shares_port
                )
            if tls is not None:
                bound = self._listener.sockets
                self._tls_listener = TlsListener(loop, bound, server.backlog, tls, services)
        except OSError as error:
            # The loop's own text repeats the address.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise StartError(f"cannot listen on {server.host}:{server.port}: {reason}") from None
        services.state.listen_on(self.port)
        self._host.on_listening(self.port)
        addresses = listening.addresses(self._listener.sockets)
        self._host.log.info(
            "listening", port=self.port, url=pages.address(server, self.port), addresses=addresses
        )

    def _start_duties(self, loop: asyncio.AbstractEventLoop, tls: ssl.SSLContext | None) -> None:
        services = self.services
        if services.config.backpressure.max_talkers == 0:
            services.state.begin_measuring()
        self._files = files = FileWatch(services, tls)
        figures = Figures(services, self._host.peer)
        capacity = CapacityWatch(services, Cores(self.config.server.processes))

        def limit_sockets() -> None:
            services.state.unopened.limit_to(budget_now(services.places.pools).sockets)

        def follow_collector() -> None:
            self._freeze.follow(len(services.state.connections))

        self._duties = [
            LoopProbe(services, loop).duty,
            Duty(loop, REFRESH_MS, files.look),
            Duty(loop, REFRESH_MS, figures.refresh),
            Duty(loop, REFRESH_MS, limit_sockets),
            Duty(loop, REFRESH_MS, follow_collector),
            Duty(loop, LOOK_MS, capacity.look, capacity.may_rest),
            Duty(loop, PERIOD_MS, lambda: services.history.sample(services.ticks.clock())),
        ]
        services.state.activity.watch(self._duties)
        for duty in self._duties:
            duty.start()

    def _note_event(self, name: str, fields: Mapping[str, object]) -> None:
        """Of a pool: a worker has changed its state."""
        if self._duties:
            self.services.state.activity.note()
        self._host.problems.note(name, fields)

    async def _start_pools(self) -> None:
        starts = [asyncio.ensure_future(pool.start()) for pool in self.services.places.pools.values()]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()

    # -------------------------------------------------------------------------------------------------------- end

    async def drain(self) -> None:
        """Refuse new calls, leave those in progress ``drain_until_idle_ms`` to end by themselves, then let turns end within
        ``drain_timeout_ms``, close with 1012, stop."""
        services, peer, server = self.services, self._host.peer, self.config.server
        within_ms, idle_ms = float(server.drain_timeout_ms), float(server.drain_until_idle_ms)
        services.state.begin_drain(leaves_calls=idle_ms > 0)
        sessions = services.state.sessions
        if server.reuse_port and self._listener is not None:
            self._listener.close()  # new callers go to the server that takes over
        if idle_ms:
            self._host.log.info(
                "draining", sessions=sessions, deadline_ms=idle_ms + within_ms, until_idle_ms=idle_ms
            )
            await self._wait_idle(idle_ms)
            services.state.begin_drain()
            sessions = services.state.sessions
        services.sessions.store.end_all("draining", services.ticks.clock())
        for connection in list(services.state.connections):
            connection.drain(within_ms)
        self._host.log.info("draining", sessions=sessions, deadline_ms=within_ms)
        await self._wait_empty(within_ms + CLOSE_TIMEOUT_MS + _FAREWELL_MS)
        if peer is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_MS / 1000.0):
                    await peer.handoff.wait_idle()
        await self.stop()

    async def _wait_idle(self, timeout_ms: float) -> None:
        """Until no session is open, and nobody may come back to one."""
        state, store = self.services.state, self.services.sessions.store
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000.0):
                while state.sessions or store.detached:
                    await asyncio.sleep(_IDLE_LOOK_S)

    async def _wait_empty(self, timeout_ms: float) -> None:
        """Until no session is open."""
        empty = asyncio.Event()
        self.services.state.when_empty(empty.set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000.0):
                await empty.wait()

    async def stop(self) -> None:
        """End at once: drop every connection, end the workers. Idempotent."""
        services = self.services
        if self._listener is not None:
            self._listener.close()
        if self._tls_listener is not None:
            self._tls_listener.close()
        for connection in list(services.state.connections):
            connection.abort()
        for duty in self._duties:
            duty.stop()
        services.sessions.store.end_all("stopped", services.ticks.clock())
        if self._host.peer is not None:
            self._host.peer.handoff.close()
        services.timers.stop()
        await asyncio.gather(*(pool.stop() for pool in services.places.pools.values()))
        gc.unfreeze()

    def reload_files(self) -> None:
        """Read keys and certificate again, as when their files have changed."""
        if self._files is not None:
            self._files.reload()


def _with_connections_that_fit(config: Config, pools: Mapping[str, Pool]) -> Config:
    """Callers that the limit of open files does not carry are refused in words."""
    raise_limit()
    limits, fit = config.backpressure, budget_now(pools).calls
    limits = msgspec.structs.replace(limits, max_connections=min(limits.max_connections or fit, fit))
    return msgspec.structs.replace(config, backpressure=limits)
