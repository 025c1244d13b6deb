"""What does one connection cost? Memory while it idles, loop CPU per message each way, handshakes, and pauses of the collector.

``python -m benchmarks.connection [--connections 15000]``. Ours beside what a user would otherwise pick: ``websockets``' own
asyncio server with its defaults, and picows (``pip install picows``; left out where it is missing). Each server is a process of
its own and reports its own CPU time; clients are raw sockets with prepared bytes. Messages are 3,200 bytes: 100 ms of speech.
Sides take turns, and a figure is the median of its turns.
"""

from __future__ import annotations

import importlib.util
import socket
import statistics
import sys
import time
from typing import Annotated

import typer

from benchmarks.callers import connection_tls
from benchmarks.callers.connection_clients import (
    MESSAGE_BYTES,
    ClientFailed,
    close,
    connect,
    drain_greetings,
    frame,
    receive_all,
    send_bursts,
)
from benchmarks.callers.side_process import Figures, SideProcess, running
from benchmarks.connection_storm import is_calm, storm
from benchmarks.report.results import print_table, store
from benchmarks.running import run_until_done
from benchmarks.sides.connection_ours import TALK_MESSAGES
from voiceserver_clients.command import raise_file_limit

TALKERS = 32
BURST = 16
TURNS = 2
RING_ROUNDS = 20
DEFLATING = "websockets_deflate"
MOST_DEFLATING = 3_000  # of 50 KB each
_SPARE_FILES = 200


def available_sides() -> list[str]:
    return ["ours", "websockets", *(["picows"] if importlib.util.find_spec("picows") else [])]


# ----------------------------------------------------------------------------------------------------------- measuring


def idle(name: str, connections: int, *, deflate: bool = False) -> Figures:
    """Bytes per connection, handshakes, and collections, of a fresh server. deflate: the clients offer compression."""
    with running(name) as side:
        port = side.ports.get("ring", side.ports["callback"])
        close(connect(port, 500))  # what is only paid once
        side.settle()
        before = side.ask("memory")
        began_s = time.monotonic()
        sockets = connect(port, connections, deflate=deflate)
        took_s = time.monotonic() - began_s
        opened = side.ask()
        time.sleep(1.5)  # the collector is told once a second what is here to stay
        side.settle()
        after = side.ask("memory")
        collections = side.ask("collect")
        close(sockets)
        handshake_us = (opened["cpu_s"] - before["cpu_s"]) / connections * 1e6
        return {
            "bytes_per_connection": round((after["memory_bytes"] - before["memory_bytes"]) / connections),
            "handshake_us": round(handshake_us, 1),
            "handshakes_per_core_second": round(1e6 / handshake_us),
            "handshakes_per_second": round(connections / took_s),
            "worst_collection_ms": round(after["worst_collection_ms"], 2),
            **{f"collection_{key}": round(value, 2) for key, value in collections.items()},
        }


def receive(side: SideProcess, service: str, burst: int, *, reads: bool = False) -> float:
    """Loop CPU per message in us, without what the process spends on doing nothing. reads: it is echoed, and read again."""
    sockets = connect(side.ports[service], TALKERS)
    drain_greetings(sockets)
    rounds = 640 // burst
    send_bursts(sockets, burst, 4, 0.04, reads=reads)  # what is only paid once
    idle_rate = side.idle_rate()
    base, began_s = side.ask(), time.monotonic()
    sent = send_bursts(sockets, burst, rounds, 0.01 * burst / 2, reads=reads)
    after = side.settle(base["received"] + sent)
    spent_s = after["cpu_s"] - base["cpu_s"] - idle_rate * (time.monotonic() - began_s)
    close(sockets)
    side.settle()
    return float(spent_s / sent * 1e6)


def to_ring(side: SideProcess) -> tuple[float, float]:
    """Loop CPU in us per message of a burst: from the socket into the ring, and of the worker's answer to it. The worker stands
    still until the burst is in, so that the one is not measured with the other. Ours only; the others have no workers."""
    sockets = connect(side.ports["ring"], TALKERS)
    drain_greetings(sockets)
    send_bursts(sockets, BURST, 4, 0.04, reads=False)  # what is only paid once
    idle_rate = side.idle_rate()
    asking = _ring_rounds(side, sockets, 0, idle_rate)
    spent = _ring_rounds(side, sockets, BURST, idle_rate)
    close(sockets)
    side.settle()
    messages = RING_ROUNDS * TALKERS * BURST
    return (spent[0] - asking[0]) / messages * 1e6, (spent[1] - asking[1]) / messages * 1e6


def _ring_rounds(
    side: SideProcess, sockets: list[socket.socket], burst: int, idle_rate: float
) -> tuple[float, float]:
    """CPU seconds of all rounds, in and back. burst 0: what it costs to ask."""
    in_s = answer_s = 0.0
    for _ in range(RING_ROUNDS):
        base = side.ask("ring")
        side.ask("hold")
        expected = base["received"] + send_bursts(sockets, burst, 1, 0.02, reads=False)
        in_s += side.ring_seconds(base, "received", expected, idle_rate)
        held = side.ask("ring")
        side.ask("release")
        answer_s += side.ring_seconds(held, "consumed", expected, idle_rate)
    return in_s, answer_s


def speak(side: SideProcess) -> float:
    """Loop CPU in us of one result's way: ring, session, codec, socket. Ours only; the others have no workers."""
    sockets = connect(side.ports["ring"], TALKERS)
    drain_greetings(sockets)
    ask = frame(b'{"type":"reply.create"}', opcode=1)
    idle_rate = side.idle_rate()
    base, began_s = side.ask(), time.monotonic()
    for sock in sockets:
        sock.setblocking(True)
        sock.sendall(ask)
    receive_all(sockets, TALK_MESSAGES * (MESSAGE_BYTES + 4))
    after = side.settle()
    spent_s = after["cpu_s"] - base["cpu_s"] - idle_rate * (time.monotonic() - began_s)
    close(sockets)
    return float(spent_s / (TALKERS * TALK_MESSAGES) * 1e6)


def collector(frozen: Figures, connections: int) -> Figures:
    """What freezing the collector after the ramp gains: the same server once more, without."""
    plain = idle("ours_unfrozen", connections)
    wanted = ("worst_collection_ms", "handshake_us", "collection_as_it_runs_ms")
    return {f"{kind}_{key}": of[key] for kind, of in (("frozen", frozen), ("plain", plain)) for key in wanted}


def tls() -> Figures:
    """See ``benchmarks.callers.connection_tls``; nothing where there is no openssl to make a certificate."""
    if not connection_tls.can_measure():
        print("openssl is missing: TLS is not measured", file=sys.stderr)
        return {}
    with running("ours_with_tls") as side:
        return connection_tls.measure(side)


def messages(names: list[str]) -> dict[str, Figures]:
    """The sides take turns, so that a busy minute of the machine meets all of them."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    sides = [SideProcess(name) for name in names]
    try:
        for _ in range(TURNS):
            for side in sides:
                figures = found[side.name]
                for key, value in _one_turn(side).items():
                    figures.setdefault(key, []).append(value)
    finally:
        for side in sides:
            side.end()
    return {
        name: {key: round(statistics.median(values), 2) for key, values in figures.items()}
        | {"turns": {key: [round(value, 2) for value in values] for key, values in figures.items()}}
        for name, figures in found.items()
    }


def _one_turn(side: SideProcess) -> dict[str, float]:
    figures = {}
    if side.name == "ours":
        figures["to_ring_us"], figures["answer_us"] = to_ring(side)
        figures["receive_us"] = receive(side, "ring", BURST)
        figures["receive_single_us"] = receive(side, "ring", 1)
        figures["speak_us"] = speak(side)
        figures["callback_us"] = receive(side, "callback", BURST)
    else:
        figures["receive_us"] = figures["to_ring_us"] = receive(side, "callback", BURST)
        figures["receive_single_us"] = receive(side, "callback", 1)
    figures["echo_us"] = receive(side, "echo", BURST, reads=True)
    return figures


# ------------------------------------------------------------------------------------------------------------- telling

_ROWS = (
    ("memory per idle connection (bytes)", "bytes_per_connection"),
    ("message from the socket to where it belongs, bursts (us of CPU)", "to_ring_us"),
    ("  and what the worker answers to it", "answer_us"),
    ("message received, and a worker's answer to it (us of CPU)", "receive_us"),
    ("  the same without session and ring", "callback_us"),
    ("message received, one at a time (us of CPU)", "receive_single_us"),
    ("received and echoed, bursts (us of CPU)", "echo_us"),
    ("result from the ring to the socket (us of CPU)", "speak_us"),
    ("handshake (us of CPU)", "handshake_us"),
    ("handshakes a second and core", "handshakes_per_core_second"),
    ("full collection, as it runs (ms)", "collection_as_it_runs_ms"),
    ("full collection, nothing frozen (ms)", "collection_plain_ms"),
    ("full collection, frozen (ms)", "collection_frozen_ms"),
    ("worst collection while they came (ms)", "worst_collection_ms"),
)


def show(figures: dict[str, Figures], connections: int) -> dict[str, Figures]:
    """Print the table; the ratios of each peer to ours."""
    names = list(figures)
    rows = [
        (title, *(figures[name].get(key, "") for name in names))
        for title, key in _ROWS
        if any(key in figures[name] for name in names)
    ]
    print_table(
        f"{connections:,} connections, messages of {MESSAGE_BYTES:,} bytes",
        ("", *names),
        rows,
        "a message belongs, ours: in the ring's slot; websockets: with a coroutine; picows: with a callback",
    )
    ours = figures["ours"]
    return {
        name: {
            key: round(figures[name][key] / ours[key], 2)
            for _, key in _ROWS
            if key in figures[name] and ours.get(key)
        }
        for name in names
        if name != "ours"
    }


def connection(
    connections: Annotated[int, typer.Option(min=1_000)] = 15_000,
    callers: Annotated[
        int, typer.Option("--storm", min=0, help="That connect at once; 0: leave out.")
    ] = 20_000,
) -> None:
    """Measure connections."""
    files = raise_file_limit()
    fitting = min(connections, files - _SPARE_FILES)
    if fitting < connections:
        print(f"the open-file limit of {files} carries {fitting} connections", file=sys.stderr)
    names = available_sides()
    if "picows" not in names:
        print("picows is not installed: pip install picows", file=sys.stderr)
    try:
        figures = messages(names)
        for name in names:
            figures[name] |= idle(name, fitting)
        if "websockets" in figures:
            figures[DEFLATING] = idle("websockets", min(fitting, MOST_DEFLATING), deflate=True)
        more = {"collector": collector(figures["ours"], fitting), "tls": tls()}
        if callers:
            more["storm"] = run_until_done(storm(callers))
    except ClientFailed as error:
        print(f"connection: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    ratios = show(figures, fitting)
    for title, part in more.items():
        print_table(title, ("", ""), [(key.replace("_", " "), str(value)) for key, value in part.items()])
    document = {"connections": fitting, "burst": BURST, "figures": figures, "ratios": ratios, **more}
    path = store("connection", document)
    print(f"stored in {path}")
    if callers and not is_calm(more["storm"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(connection)
