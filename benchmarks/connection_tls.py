"""Does ``asyncio.BufferedProtocol`` pay under TLS? The same connection behind both, on one server.

uvloop gives an ``asyncio.Protocol`` new bytes for each read, and lets a ``BufferedProtocol`` bring a buffer to decrypt into. For
plain TCP there is nothing to be had: the two more bound methods of each connection cost 128 bytes while it idles.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.connection_clients import MESSAGE_BYTES, frame, request_head
from benchmarks.connection_sides import HOST, Ours

if TYPE_CHECKING:
    from benchmarks.connection import SideProcess

TURNS = 5
CALLERS = 16
ROUNDS = 30
BURST = 16
_BUFFER = memoryview(bytearray(262_144))  # one for all: what is in it is used up before the next read


class Buffered(asyncio.BufferedProtocol):
    """Hands on to a connection what was decrypted into the common buffer."""

    __slots__ = ("_connection",)

    def __init__(self, make: Callable[[], asyncio.Protocol]) -> None:
        self._connection = make()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(bytes(_BUFFER[:nbytes]))


class OursWithTls(Ours):
    """Beside its other ports, ``protocol`` and ``buffered``: the connection without a session, under TLS."""

    async def start(self) -> None:
        await super().start()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _certify(context)
        plain = partial(self.without_session()["callback"], self.services)
        for name, factory in (("protocol", plain), ("buffered", partial(Buffered, plain))):
            loop = asyncio.get_running_loop()
            listener = await loop.create_server(factory, HOST, 0, ssl=context)
            self.ports[name] = listener.sockets[0].getsockname()[1]


def _certify(context: ssl.SSLContext) -> None:
    """Give it a certificate of its own."""
    with tempfile.TemporaryDirectory() as folder:
        cert, key = Path(folder) / "cert.pem", Path(folder) / "key.pem"
        kind = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
        command = ["openssl", "req", "-x509", *kind.split(), "-keyout", str(key), "-out", str(cert)]
        subprocess.run(command, check=True, capture_output=True)
        context.load_cert_chain(cert, key)


def can_measure() -> bool:
    return shutil.which("openssl") is not None


def measure(side: SideProcess) -> dict[str, float]:
    """Loop CPU in us per message received under TLS, in bursts and one at a time; the two take turns."""
    found: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for name in ("protocol", "buffered"):
            for burst, kind in ((BURST, "bursts"), (1, "single")):
                found.setdefault(f"{name}_{kind}_us", []).append(_receive(side, name, burst))
    return {name: round(statistics.median(turns), 2) for name, turns in found.items()}


def _receive(side: SideProcess, service: str, burst: int) -> float:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    port = side.ports[service]
    callers = [context.wrap_socket(socket.create_connection((HOST, port))) for _ in range(CALLERS)]
    for caller in callers:
        caller.sendall(request_head(port))
        caller.recv(4_096)
    data = frame(bytes(MESSAGE_BYTES)) * burst
    base = side.settle()
    for _ in range(ROUNDS):
        for caller in callers:
            caller.sendall(data)
        time.sleep(0.004)
    sent = CALLERS * ROUNDS * burst
    after = side.settle(base["received"] + sent)
    for caller in callers:
        caller.close()
    return float(after["cpu_s"] - base["cpu_s"]) / sent * 1e6
