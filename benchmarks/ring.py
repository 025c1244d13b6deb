"""What does it cost to hand a chunk to another process? ``python -m benchmarks.ring``

The slot ring beside what a user would otherwise pick: ``multiprocessing.Pipe``, a Unix socket,
``multiprocessing.Queue``, and ``run_in_executor`` on a ``ProcessPoolExecutor``. Two real processes each time; the
sender pushes in bursts, as a loop does that reads many sockets per tick; the receiver sleeps when there is nothing.
Both get the payload as ``bytes``. CPU is what the kernel charges both processes, waiting excluded. The ring is the
server's own, with its usual sizes; 10 MiB cross it in pieces of 128 KiB.

The limit is one ``memcpy`` of the payload in one process, into memory that its core does not hold in cache: what
another core has just read, it does not. The same copy within the cache is shown too; no transfer can reach it.

Where the kernel puts the two processes decides about large chunks: the cost of one transport has two or three levels. The median
over the rounds is shown, and all rounds are stored beside it, to compare runs by.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue

from benchmarks.report.results import cpu_seconds, print_table, store
from voiceserver_workers.ipc.channel import ChannelConfig, ServerEnd, WorkerEnd
from voiceserver_workers.ipc.layout import HEADER_BYTES
from voiceserver_workers.ipc.messages import RequestKind

SPAWN = multiprocessing.get_context("spawn")
MIB = 2**20
SIZES = {640: "640 B", 3200: "3,200 B", 65536: "64 KiB", 10 * MIB: "10 MiB"}
HEAD = struct.Struct("@6q")  # the peers carry the same fields as a ring's record

CONFIG = ChannelConfig()
PIECE_BYTES = 32 * CONFIG.slot_bytes - HEADER_BYTES
UNCACHED_BYTES = 64 * MIB  # of destinations in rotation: many times a core's cache


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one chunk, in microseconds: CPU of both processes, and wall time with both of them running."""

    cpu_us: float
    wall_us: float


def burst_of(size: int) -> int:
    return 64 if size < 65536 else 16 if size < MIB else 1


# --- receivers: consume ``warm`` chunks, say so, consume ``count``, tell their CPU seconds


def _report(control: Connection, consume: Callable[[int], None], warm: int, count: int) -> None:
    consume(warm)
    before = cpu_seconds()
    control.send(None)
    consume(count)
    control.send(cpu_seconds() - before)


def receive_from_ring(_: None, control: Connection, warm: int, count: int) -> None:
    fds = [reduction.recv_handle(control) for _ in range(3)]
    worker = WorkerEnd.attach(fds)

    def consume(left: int) -> None:
        while left:
            records = worker.receive(64)
            if not records:
                worker.wait(1000)
            left -= len(records)

    _report(control, consume, warm, count)
    worker.close()


def receive_from_pipe(pipe: Connection, control: Connection, warm: int, count: int) -> None:
    def consume(left: int) -> None:
        for _ in range(left):
            pipe.recv_bytes()

    _report(control, consume, warm, count)


def receive_from_socket(peer: socket.socket, control: Connection, warm: int, count: int) -> None:
    with peer, peer.makefile("rb", buffering=65536) as file:

        def consume(left: int) -> None:
            for _ in range(left):
                file.read(HEAD.unpack(file.read(HEAD.size))[5])

        _report(control, consume, warm, count)


def receive_from_queue(queue: Queue[tuple[int, bytes]], control: Connection, warm: int, count: int) -> None:
    def consume(left: int) -> None:
        for _ in range(left):
            queue.get()

    _report(control, consume, warm, count)


def receive_in_executor(seq: int, payload: bytes) -> int:
    return seq


# --- senders


@contextmanager
def receiver(target: Callable[..., None], *args: object) -> Iterator[Connection]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(args[0], theirs, *args[1:]), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
        process.join(10)
    finally:
        process.kill()
        process.join()
        ours.close()


def _timed(control: Connection, send: Callable[[int], None], warm: int, count: int) -> Cost:
    send(warm)
    control.recv()
    cpu, start = cpu_seconds(), time.perf_counter()
    send(count)
    theirs: float = control.recv()
    cpu, wall = cpu_seconds() - cpu + theirs, time.perf_counter() - start
    return Cost(cpu / count * 1e6, wall / count * 1e6)


def pieces_of(size: int) -> int:
    return -(-size // PIECE_BYTES)


def measure_ring(size: int, warm: int, count: int) -> Cost:
    server = ServerEnd.create(CONFIG)
    payload, burst, pieces = os.urandom(size), burst_of(size), pieces_of(size)
    parts = [payload[start : start + PIECE_BYTES] for start in range(0, size, PIECE_BYTES)]
    try_send = server.try_send

    def send_parts(seq: int) -> None:
        for part in parts:
            while not try_send(RequestKind.DATA, 1, 1, seq, part, 1):
                server.ring_bell()
                time.sleep(0.00005)

    def send(left: int) -> None:
        for start in range(0, left, burst):
            for seq in range(start, min(start + burst, left)):
                send_parts(seq)
            server.ring_bell()

    try:
        with receiver(receive_from_ring, None, warm * pieces, count * pieces) as control:
            for fd in server.worker_fds():
                reduction.send_handle(control, fd, None)
            return _timed(control, send, warm, count)
    finally:
        server.close()


def measure_pipe(size: int, warm: int, count: int) -> Cost:
    payload = os.urandom(size)
    theirs, ours = SPAWN.Pipe(duplex=False)

    def send(left: int) -> None:
        for seq in range(left):
            ours.send_bytes(HEAD.pack(2, 1, 1, seq, 1, size) + payload)

    with ours, theirs, receiver(receive_from_pipe, theirs, warm, count) as control:
        return _timed(control, send, warm, count)


def measure_socket(size: int, warm: int, count: int) -> Cost:
    payload = os.urandom(size)
    ours, theirs = socket.socketpair()

    def send(left: int) -> None:
        for seq in range(left):
            ours.sendall(HEAD.pack(2, 1, 1, seq, 1, size) + payload)

    with ours, theirs, receiver(receive_from_socket, theirs, warm, count) as control:
        return _timed(control, send, warm, count)


def measure_queue(size: int, warm: int, count: int) -> Cost:
    payload = os.urandom(size)
    queue: Queue[tuple[int, int, int, int, int, bytes]] = SPAWN.Queue(maxsize=1024 if size < MIB else 2)

    def send(left: int) -> None:
        for seq in range(left):
            queue.put((2, 1, 1, seq, 1, payload))

    with receiver(receive_from_queue, queue, warm, count) as control:
        cost = _timed(control, send, warm, count)
    queue.close()
    queue.join_thread()
    return cost


def measure_executor(size: int, warm: int, count: int) -> Cost:
    payload, burst = os.urandom(size), burst_of(size)

    async def send(pool: ProcessPoolExecutor, left: int) -> None:
        loop = asyncio.get_running_loop()
        while left > 0:
            await asyncio.gather(
                *(
                    loop.run_in_executor(pool, receive_in_executor, seq, payload)
                    for seq in range(min(burst, left))
                )
            )
            left -= burst

    async def run() -> Cost:
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            await send(pool, warm)
            pid = next(iter(pool._processes))
            cpu, child, start = cpu_seconds(), cpu_seconds(pid), time.perf_counter()
            await send(pool, count)
            wall = time.perf_counter() - start
            cpu = cpu_seconds() - cpu + cpu_seconds(pid) - child
        return Cost(cpu / count * 1e6, wall / count * 1e6)

    return asyncio.run(run())


def measure_memcpy(size: int, warm: int, count: int, destination_bytes: int = UNCACHED_BYTES) -> Cost:
    source = os.urandom(size)
    memory = memoryview(bytearray(max(size, destination_bytes)))
    targets = [memory[start : start + size] for start in range(0, len(memory) - size + 1, size)]
    for target in targets[: max(warm, destination_bytes // size)]:
        target[:] = source
    cpu, start = cpu_seconds(), time.perf_counter()
    for target in itertools.islice(itertools.cycle(targets), count):
        target[:] = source
    return Cost((cpu_seconds() - cpu) / count * 1e6, (time.perf_counter() - start) / count * 1e6)


def measure_memcpy_in_cache(size: int, warm: int, count: int) -> Cost:
    return measure_memcpy(size, warm, count, destination_bytes=0)


@dataclass(frozen=True, slots=True)
class Transport:
    """``chunk_us``: roughly what a small chunk costs, to give every transport about the same time."""

    name: str
    measure: Callable[[int, int, int], Cost]
    chunk_us: float


MEMCPY = Transport("memcpy (limit)", measure_memcpy, 0.1)
RING = Transport("slot ring", measure_ring, 1.0)
EXECUTOR = Transport("run_in_executor, process pool", measure_executor, 150)
TRANSPORTS = [
    Transport("memcpy in cache", measure_memcpy_in_cache, 0.1),
    MEMCPY,
    RING,
    Transport("mp.Pipe", measure_pipe, 8),
    Transport("Unix socket", measure_socket, 8),
    Transport("mp.Queue", measure_queue, 20),
    EXECUTOR,
]


def count_for(transport: Transport, size: int, seconds: float) -> int:
    """Chunks that take about ``seconds``."""
    copy_us = size / 4000  # the peers copy several times, at some GB/s each
    return max(12, int(seconds * 1e6 / (transport.chunk_us + copy_us)))


def measure(transport: Transport, size: int, seconds: float) -> Cost:
    """One round."""
    count = count_for(transport, size, seconds)
    return transport.measure(size, max(4, count // 5), count)


def median_of(costs: Sequence[Cost]) -> Cost:
    """CPU and wall time each for itself."""
    return Cost(
        statistics.median(cost.cpu_us for cost in costs), statistics.median(cost.wall_us for cost in costs)
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.ring", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.4, help="per transport, size and round")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is shown")
    options = parser.parse_args()
    results = []
    for size, label in SIZES.items():
        rounds: dict[str, list[Cost]] = {transport.name: [] for transport in TRANSPORTS}
        for _ in range(options.rounds):  # in turns, so that what else the machine does befalls all of them
            for transport in TRANSPORTS:
                rounds[transport.name].append(measure(transport, size, options.seconds))
        costs = {name: median_of(of_one) for name, of_one in rounds.items()}
        ring, limit = costs[RING.name], costs[MEMCPY.name]
        rows = []
        for name, cost in costs.items():
            figures = {
                "cpu_us": cost.cpu_us,
                "cpu_of_ring": cost.cpu_us / ring.cpu_us,
                "wall_us": cost.wall_us,
                "gb_per_s": size / cost.wall_us / 1000,
                "of_memcpy": limit.wall_us / cost.wall_us,
            }
            rows.append([name, *figures.values()])
            of_rounds = [one.cpu_us for one in rounds[name]]
            row = {"transport": name, "size_bytes": size, "burst": burst_of(size), **figures}
            results.append({**row, "cpu_us_of_rounds": of_rounds})
        print_table(
            f"{label}, bursts of {burst_of(size)}",
            ["", "CPU us, both sides", "times the ring", "wall us", "GB/s", "of memcpy"],
            rows,
        )
    path = store("ring", {"rounds": options.rounds, "seconds": options.seconds, "results": results})
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
