"""One server process: its signals, its exit code, and whether it serves alone.

SIGTERM and SIGINT drain; a second signal ends at once. SIGHUP reads keys, certificate and configuration again. Where several
processes share the port, this is one child of ``voiceserver.server.multiprocess``, which hears signals from its supervisor only.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Iterable

import uvloop

from voiceserver.config.loader import Loaded
from voiceserver.config.schema import Config
from voiceserver.errors import ConfigError
from voiceserver.observability.log_writer import STDERR
from voiceserver.observability.logs import get_logger, running
from voiceserver.pool.duty import Duty
from voiceserver.server import admin
from voiceserver.server.admin import with_admin_token
from voiceserver.server.build import Host
from voiceserver.server.multiprocess.peer import BEAT_MS, Peer
from voiceserver.server.pages import ANY_ADDRESS
from voiceserver.server.pools import check_engines
from voiceserver.server.preparation import prepare_engines, warn_of_numbers
from voiceserver.server.reloading import Reloader
from voiceserver.server.server import Server
from voiceserver.server.systemd import tell_systemd
from voiceserver.transport.proxies import is_loopback


async def _serve(
    config: Config,
    peer: Peer | None = None,
    on_listening: Callable[[int], None] | None = None,
    reload: Callable[[Server], None] = Server.reload_files,
) -> int:
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT) if peer is None else (signal.SIGTERM,):
        loop.add_signal_handler(number, signals.put_nowait, number)
    log = get_logger()
    if peer is None:
        host = Host(log=log, ask_to_drain=functools.partial(signals.put_nowait, signal.SIGTERM))
        if on_listening is not None:
            host = dataclasses.replace(host, on_listening=on_listening)
    else:
        host = Host(log=log.bind(process=peer.index), peer=peer, ask_to_drain=peer.ask_to_drain)
        # For as long as the loop runs, also while the server starts and stops.
        Duty(loop, BEAT_MS, peer.beat).start()
        loop.add_reader(peer.lifeline, peer.on_readable, functools.partial(_end_at_once, signals, peer))
    server = Server(config, host=host)
    loop.add_signal_handler(signal.SIGHUP, _on_hangup(signals, functools.partial(reload, server)))
    starting = asyncio.ensure_future(server.start())
    asked = asyncio.ensure_future(signals.get())
    await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():  # asked to end while the engines load
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        log.info("stopped", code=0)
        return 0
    try:
        starting.result()
        if peer is None:
            tell_systemd("READY=1")
        await asked
    finally:
        asked.cancel()
    if peer is None:
        tell_systemd("STOPPING=1")
    code = await _drain(server, signals)
    log.info("stopped", code=code)
    return code


def _on_hangup(signals: asyncio.Queue[int], reload: Callable[[], None]) -> Callable[[], None]:
    """SIGHUP reloads, unless it says that the terminal was closed."""
    has_terminal = os.isatty(STDERR)

    def on_hangup() -> None:
        if has_terminal and not os.isatty(STDERR):
            signals.put_nowait(signal.SIGTERM)
        else:
            reload()

    return on_hangup


async def _drain(server: Server, signals: asyncio.Queue[int]) -> int:
    """Until the drain is over, or another signal ends it at once; the exit code."""
    draining = asyncio.ensure_future(server.drain())
    again = asyncio.ensure_future(signals.get())
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    if draining.done():
        again.cancel()
        draining.result()
        return 0
    draining.cancel()
    await server.stop()
    return 128 + again.result()


def _end_at_once(signals: asyncio.Queue[int], peer: Peer) -> None:
    """The supervisor is gone. A second signal does not wait for callers."""
    asyncio.get_running_loop().remove_reader(peer.lifeline)
    signals.put_nowait(signal.SIGTERM)
    signals.put_nowait(signal.SIGTERM)


def _serve_alone(
    config: Config, on_listening: Callable[[int], None] | None, reload: Callable[[Server], None]
) -> int:
    ports: list[int] = []

    def begin(port: int) -> None:
        ports.append(port)
        admin.publish(config, port, get_logger())
        if on_listening is not None:
            on_listening(port)

    try:
        return uvloop.run(_serve(config, on_listening=begin, reload=reload))
    finally:
        for port in ports:
            admin.withdraw(config, port)


def _exposed(config: Config) -> list[tuple[str, str]]:
    """A warning for a server that anybody on the network may use."""
    if config.auth.keys_file or is_loopback(config.server.host) or config.server.host == "localhost":
        return []
    where = "all addresses" if config.server.host in ANY_ADDRESS else config.server.host
    return [
        (f"serves without keys on {where}", "voiceserver key NAME >> keys.toml, and auth.keys_file=keys.toml")
    ]


def serve_peer(config: Config, peer: Peer) -> int:
    """``serve`` for one of several processes; its supervisor has checked the configuration."""
    with running(config.server.log_level, config.server.log_format):
        return uvloop.run(_serve(config, peer))


def check(loaded: Loaded) -> None:
    """What ``serve`` would refuse of engines and their parameters, whether or not they are installed. Raises ConfigError."""
    check_engines(loaded.config, loaded.source_of, needs_packages=False)


def serve(
    loaded: Loaded,
    warnings: Iterable[tuple[str, str]] = (),
    on_listening: Callable[[int], None] | None = None,
    read_again: Callable[[], Loaded] | None = None,
) -> int:
    """Run until a signal; the exit code. ``warnings``: of the machine, each with the command that helps; logged at the start.
    ``on_listening(port)``: once callers can connect. ``read_again()``: the configuration, at SIGHUP. Raises ConfigError or
    StartError before anything was served."""
    config = loaded.config
    reload = Reloader(config, read_again).reload
    check_engines(config, loaded.source_of)
    with running(config.server.log_level, config.server.log_format):
        for warning, fix in [*warnings, *_exposed(config)]:
            get_logger().warning(warning, fix=fix)
        config = with_admin_token(prepare_engines(config, get_logger()))
        warn_of_numbers(config, get_logger())
        if config.server.processes > 1:
            from voiceserver.server.multiprocess.supervisor import supervise

            if on_listening is not None:  # several processes listen, and each begins again when it was lost
                on_listening(config.server.port)
            return supervise(config)
        try:
            return _serve_alone(config, on_listening, reload)
        except ConfigError as error:  # of an engine, which does not know where its parameters came from
            raise ConfigError(
                error.key, error.message, error.source or loaded.sources.get(error.key, "")
            ) from None
