"""Two real processes on one channel: hammering, sleeping, dying."""

from __future__ import annotations

import glob
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.serving import ENVIRONMENT
from voiceserver_workers.ipc.channel import ChannelConfig, FlightState, ServerEnd
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind
from voiceserver_workers.ipc.platform import PORTABLE, Platform, choose_platform

ROOT = Path(__file__).parents[2]
CONFIG = ChannelConfig(request_slots=16, result_slots=8, slot_bytes=512)
PLATFORMS = pytest.mark.parametrize(
    "platform", [choose_platform(), PORTABLE], ids=lambda platform: platform.name
)
PATIENCE_S = 60.0  # only to end a broken run; nothing waits for it otherwise


@dataclass
class Peer:
    server: ServerEnd
    process: subprocess.Popen[bytes]
    lifeline: socket.socket

    def wait_for_results(self) -> None:
        """As the event loop does: asleep until the bell rings or the worker is gone."""
        if not self.server.rearm():
            assert select.select([self.server.result_fd(), self.lifeline.fileno()], [], [], PATIENCE_S)[0]


@contextmanager
def running_peer(platform: Platform) -> Iterator[Peer]:
    server = ServerEnd.create(CONFIG, platform=platform)
    ours, theirs = socket.socketpair()
    fds = [*server.worker_fds(), theirs.fileno()]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ring_peer.py")), platform.name, *map(str, fds)],
        pass_fds=fds,
        env=ENVIRONMENT,
    )
    server.close_worker_fds()
    theirs.close()
    try:
        yield Peer(server, process, ours)
    finally:
        ours.close()
        process.kill()
        process.wait()
        server.close()


def make_requests(count: int, seed: int) -> Iterator[Record]:
    """Of all sizes from nothing to half the result ring, so that slots, spans and wraps all occur."""
    draw = random.Random(seed)
    sizes = [0, 1, 160, 448, 449, 640, 1500, CONFIG.result_slots // 2 * CONFIG.slot_bytes - 64]
    for seq in range(count):
        payload = draw.randbytes(draw.choice(sizes))
        yield Record(RequestKind.DATA, draw.randrange(2**40), draw.randrange(9), seq, payload, seq + 1)


@PLATFORMS
@pytest.mark.parametrize("burst_max", [1, 40], ids=["one by one, both ends sleep", "bursts, both rings fill"])
def test_every_record_comes_back_once_and_in_order(platform: Platform, burst_max: int) -> None:
    seed, count = 20_260_101, 4000 if burst_max > 1 else 1500
    print(f"seed {seed}")
    draw = random.Random(seed)
    requests = list(make_requests(count, seed))
    results: list[Record] = []
    sent = 0
    with running_peer(platform) as peer:
        while len(results) < count:
            for _ in range(draw.randint(1, burst_max)):
                if sent == count or not peer.server.try_send(*requests[sent]):
                    break
                sent += 1
            peer.server.ring_bell()
            peer.wait_for_results()
            results += peer.server.receive()
            assert peer.process.poll() is None
        refused = peer.server.refused()
        flight = peer.server.flight()
    assert results == [request._replace(kind=ResultKind.AUDIO) for request in requests]
    assert flight.worker_pid == peer.process.pid
    assert flight.heartbeat_ns > 0
    if burst_max > 1:
        assert refused > 0  # the rings did fill, so "full" was really exercised


@PLATFORMS
def test_a_killed_worker_leaves_whole_results_in_order_and_its_last_words(platform: Platform) -> None:
    requests = list(make_requests(100_000, seed=7))
    results: list[Record] = []
    sent = 0
    with running_peer(platform) as peer:
        sentinel: int | None = None
        try:
            while not select.select([peer.lifeline], [], [], 0)[0]:
                while sent < len(requests) and peer.server.try_send(*requests[sent]):
                    sent += 1
                peer.server.ring_bell()
                peer.wait_for_results()
                results += peer.server.receive(8)
                if sentinel is None and results:
                    sentinel = platform.open_sentinel(peer.process.pid, peer.lifeline.fileno())
                    assert not select.select([sentinel], [], [], 0)[0]
                if len(results) > 500:
                    peer.process.send_signal(signal.SIGKILL)
            assert sentinel is not None
            assert select.select([sentinel], [], [], PATIENCE_S)[0]
        finally:
            if sentinel is not None:
                os.close(sentinel)
        while late := peer.server.receive():
            results += late
        flight = peer.server.flight()
        assert peer.server.queued() > 0 or sent == len(results)
    expected = [request._replace(kind=ResultKind.AUDIO) for request in requests[: len(results)]]
    assert results == expected
    assert flight.state in {FlightState.IDLE, FlightState.STEPPING}
    streams = {request.stream for request in requests[:sent]}
    assert set(flight.streams) <= streams
    assert (flight.state is FlightState.STEPPING) or not flight.streams


@PLATFORMS
def test_a_worker_whose_server_is_gone_ends_by_itself(platform: Platform) -> None:
    with running_peer(platform) as peer:
        peer.server.try_send(RequestKind.DATA, 1, 1, 1, b"hello")
        peer.server.ring_bell()
        peer.wait_for_results()
        assert [result.payload for result in peer.server.receive()] == [b"hello"]
        peer.lifeline.close()
        assert peer.process.wait(PATIENCE_S) == 0


@PLATFORMS
def test_a_killed_process_group_leaves_nothing_behind(platform: Platform) -> None:
    """A server and its worker, killed together without a chance to clean up."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[2])\n"
        "from tests.faults.test_ring_processes import PORTABLE, choose_platform, running_peer\n"
        "platform = PORTABLE if sys.argv[3] == PORTABLE.name else choose_platform()\n"
        "with running_peer(platform) as peer:\n"
        "    peer.server.try_send(2, 1, 1, 1, b'hello'); peer.server.ring_bell(); peer.wait_for_results()\n"
        "    print(peer.process.pid, flush=True); sys.stdin.read()\n"
    )
    patterns = ["/dev/shm/*", tempfile.gettempdir() + "/voiceserver-*"]
    before = {path for pattern in patterns for path in glob.glob(pattern)}
    leader = subprocess.Popen(
        [sys.executable, "-c", script, str(ROOT), str(ROOT / "tests"), platform.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with leader:
        assert leader.stdout is not None
        worker_pid = int(leader.stdout.readline())
        os.killpg(leader.pid, signal.SIGKILL)
    # The orphan is reaped by init; until then it is a zombie that holds no memory.
    status = Path(f"/proc/{worker_pid}/status")
    if sys.platform == "linux":
        assert not status.exists() or "State:\tZ" in status.read_text() or _is_dying(worker_pid)
    after = {path for pattern in patterns for path in glob.glob(pattern)}
    assert after <= before


def _is_dying(pid: int) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], PATIENCE_S)[0])
    finally:
        os.close(fd)
