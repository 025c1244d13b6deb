"""Loop CPU of messages received under TLS, behind an ``asyncio.Protocol`` and behind a ``BufferedProtocol``.

See ``benchmarks.sides.connection_tls`` for the two.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import statistics
import time

from benchmarks.callers.connection_clients import MESSAGE_BYTES, frame, request_head
from benchmarks.callers.side_process import SideProcess
from benchmarks.sides.connection_ours import HOST

TURNS = 5
CALLERS = 16
ROUNDS = 30
BURST = 16


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
