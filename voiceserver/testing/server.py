"""A server in the test's own process: the real loop and real sockets, on a free port.

    async with running_server(config) as server:          # in a test with an event loop
        async with VoiceClient(server.url) as client: ...

    with server_in_thread(config) as server:              # in a test without one
        urlopen(f"{server.http_url}/healthz")

Workers are processes, as in production. ``make_pool=inline_pool`` runs the engines in this thread instead: they start at
once, and a debugger stops in them. ``pools`` gives stages pools of the test's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import anyio
import msgspec
import structlog
from anyio.from_thread import start_blocking_portal

from voiceserver.config.schema import Config, ServerConfig, StageConfig, StagesConfig
from voiceserver.pool import OnEvent, Pool
from voiceserver.pool.inline import InlinePool
from voiceserver.server.build import Host
from voiceserver.server.pools import MakePool, check_engines, make_pool
from voiceserver.server.server import Server

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger

# A worker on a busy machine needs long to import its engine.
START_TIMEOUT_S = 60.0
_LOOK_S = 0.005
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """What a test needs of a server. log: the entries so far, each with its name as ``event``."""

    config: Config
    port: int
    log: list[Mapping[str, object]]

    @property
    def address(self) -> str:
        return f"{_HOST}:{self.port}"

    @property
    def url(self) -> str:
        """Of the native wire."""
        return f"ws://{self.address}/v1/stream"

    @property
    def http_url(self) -> str:
        return f"http://{self.address}"


def small_config(*stages: str) -> Config:
    """No audio engines, so that it starts fast: turns are committed by the client and answered in text. ``stages``: those that
    have a pool of the test's own."""
    none, given = StageConfig(engine="none"), StageConfig(engine="given")
    engines = {name: given if name in stages else none for name in StagesConfig.__struct_fields__}
    if not stages:
        engines["reply"] = StageConfig(engine="concierge")
    return Config(server=ServerConfig(port=0), stages=StagesConfig(**engines))


@contextlib.asynccontextmanager
async def running_server(
    config: Config | None = None,
    *,
    pools: Mapping[str, Pool] | None = None,
    make_pool: MakePool = make_pool,
) -> AsyncIterator[RunningServer]:
    """A server on the running loop until the block ends; ready when the block begins.

    config: ``small_config`` if there is none; the address is always a free port of this machine.
    pools: by stage, in place of what ``make_pool`` would make of the stage's configuration.
    Raises ConfigError or StartError, and TimeoutError if the engines are not ready in time.
    """
    given = pools or {}
    config = config or small_config(*given)
    address = msgspec.structs.replace(config.server, host=_HOST, port=0, processes=1)
    config = msgspec.structs.replace(config, server=address)
    none = dict.fromkeys(given, StageConfig(engine="none"))
    made = msgspec.structs.replace(config, stages=msgspec.structs.replace(config.stages, **none))
    check_engines(made)
    log: list[Mapping[str, object]] = []

    def pool_of(stage: str, its_config: StageConfig, on_event: OnEvent) -> Pool:
        return given[stage] if stage in given else make_pool(stage, its_config, on_event)

    server = Server(config, make_pool=pool_of, host=Host(log=_recorder(log)))
    await server.start()
    try:
        with anyio.fail_after(START_TIMEOUT_S):
            while not server.is_ready:
                await anyio.sleep(_LOOK_S)
        yield RunningServer(config, server.port, log)
    finally:
        await server.stop()
        # Sockets are closed in the next turn of the loop.
        await asyncio.sleep(0)


@contextlib.contextmanager
def server_in_thread(
    config: Config | None = None,
    *,
    pools: Mapping[str, Pool] | None = None,
    make_pool: MakePool = make_pool,
) -> Iterator[RunningServer]:
    """``running_server`` on uvloop in a thread of its own, for code that has no event loop or blocks its own."""
    with start_blocking_portal(backend_options={"use_uvloop": True}) as portal:
        server = running_server(config, pools=pools, make_pool=make_pool)
        with portal.wrap_async_context_manager(server) as running:
            yield running


def inline_pool(stage: str, config: StageConfig, on_event: OnEvent) -> Pool:
    """One worker in the thread of the loop. A remote engine gets the same pool as in production."""
    from voiceserver_workers import registry
    from voiceserver_workers.batcher import BatchLimits
    from voiceserver_workers.ipc.channel import WorkerEnd
    from voiceserver_workers.worker import Worker

    if registry.resolve(config.engine).is_remote:
        return make_pool(stage, config, on_event)

    def make_worker(end: WorkerEnd) -> Worker:
        engine = registry.load(config.engine)(config.params)
        limits = BatchLimits(config.max_batch_size, config.max_wait_ms)
        return Worker(engine, end, limits, step_timeout_ms=config.step_timeout_ms)

    return _DrivenPool(
        stage,
        make_worker,
        msgspec.structs.replace(config, workers=1),
        now_ms=asyncio.get_running_loop().time() * 1000.0,
        on_event=on_event,
    )


class _DrivenPool(InlinePool):
    async def start(self) -> None:
        await super().start()
        self.drive(asyncio.get_running_loop())


def _recorder(log: list[Mapping[str, object]]) -> FilteringBoundLogger:
    """A logger that keeps its entries."""

    def keep(logger: object, method: str, entry: EventDict) -> EventDict:
        log.append(dict(entry, level=method))
        raise structlog.DropEvent

    wrapper = structlog.make_filtering_bound_logger(logging.DEBUG)
    return cast("FilteringBoundLogger", structlog.wrap_logger(None, processors=[keep], wrapper_class=wrapper))
