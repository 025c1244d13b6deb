"""Does ``asyncio.BufferedProtocol`` pay under TLS? The same connection behind both, on one server.

uvloop gives an ``asyncio.Protocol`` new bytes for each read, and lets a ``BufferedProtocol`` bring a buffer to decrypt into. For
plain TCP there is nothing to be had: the two more bound methods of each connection cost 128 bytes while it idles.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.sides.connection_ours import HOST, Ours

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
