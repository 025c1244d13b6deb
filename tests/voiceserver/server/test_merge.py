"""What several processes tell of themselves, as one server's figures."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from unittest.mock import MagicMock

import msgspec
import pytest
from prometheus_client.core import Metric

from voiceserver.observability.metrics import log_lines_lost
from voiceserver.server.multiprocess.handoff import Handoff, answer_waiting, mailbox
from voiceserver.server.multiprocess.merge import (
    Unready,
    decode,
    figures_of,
    lasting,
    lost_lines,
    merge,
    restarts,
)
from voiceserver.server.multiprocess.peer import Peer
from voiceserver.server.multiprocess.shared_stats import PLACE_BYTES, SILENT_MS, SharedStats

PROCESSES = 2


@pytest.fixture
def shared_stats() -> Iterator[SharedStats]:
    shared_stats = SharedStats.create(PROCESSES + 1)
    yield shared_stats
    shared_stats.close()


@pytest.fixture
def shares(shared_stats: SharedStats) -> Iterator[list[Peer]]:
    ends = [socket.socketpair() for _ in range(PROCESSES)]
    handoffs = [Handoff(index, end, [end] * PROCESSES) for index, (end, _) in enumerate(ends)]
    yield [Peer(index, end, shared_stats, handoffs[index]) for index, (end, _) in enumerate(ends)]
    for pair in ends:
        for end in pair:
            end.close()


def family(name: str, kind: str, value: float, **labels: str) -> Metric:
    metric = Metric(name, "For a test.", kind)
    metric.add_sample(f"{name}_total" if kind == "counter" else name, labels, value)
    return metric


def told(families: list[Metric]) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("process", "")): sample.value
        for one in families
        for sample in one.samples
    }


def test_a_counter_seen_at_one_process_is_never_seen_lower_at_another(shares: list[Peer]) -> None:
    first, second = shares
    first.publish([family("calls", "counter", 3)], b"{}")
    second.publish([family("calls", "counter", 4)], b"{}")
    assert told(first.merged([family("calls", "counter", 30)]))["calls_total", ""] == 34
    assert told(second.merged([family("calls", "counter", 5)]))["calls_total", ""] == 35
    assert told(first.merged([family("calls", "counter", 30)]))["calls_total", ""] == 35


def test_a_scrape_leaves_the_capacity_that_was_told_in_place(shares: list[Peer]) -> None:
    first, second = shares
    first.publish([], b'{"sessions":3,"lag_ms":9.0}')
    first.merged([])
    merged = msgspec.json.decode(second.merged_capacity(b'{"sessions":4,"lag_ms":2.0}'))
    assert merged == {"sessions": 7, "lag_ms": 9.0}


def test_counts_are_summed_and_of_levels_the_worst_counts() -> None:
    families = [
        [family("calls", "counter", 1), family("lag_seconds", "gauge", 0.5), family("open", "gauge", 2)],
        [family("calls", "counter", 2), family("lag_seconds", "gauge", 0.1), family("open", "gauge", 3)],
    ]
    merged = told(merge([figures_of(own, b"{}", str(index)) for index, own in enumerate(families)]))
    assert merged == {("calls_total", ""): 3, ("lag_seconds", ""): 0.5, ("open", ""): 5}


def test_workers_of_two_processes_are_kept_apart() -> None:
    own = [family("worker_state", "gauge", 1, worker="0")]
    merged = told(merge([figures_of(own, b"{}", "0"), figures_of(own, b"{}", "1")]))
    assert merged == {("worker_state", "0"): 1, ("worker_state", "1"): 1}


def test_only_counts_outlive_their_process() -> None:
    figures = figures_of([family("calls", "counter", 7), family("open", "gauge", 2)], b"{}", "0")
    kept = decode(msgspec.json.encode(lasting([figures])))
    assert kept is not None
    assert told(merge([kept])) == {("calls_total", ""): 7}


def test_the_board_gives_what_was_put_last_and_refuses_what_is_too_long(shared_stats: SharedStats) -> None:
    assert shared_stats.get(0) == b""
    assert shared_stats.put(0, b"abc")
    assert shared_stats.put(0, b"de")
    assert not shared_stats.put(0, bytes(PLACE_BYTES))
    assert shared_stats.get(0) == b"de"
    assert shared_stats.get(1) == b""
    assert decode(shared_stats.get(1)) is None
    assert decode(shared_stats.get(0)) is None


def test_restarts_of_processes_add_up_and_outlive_them() -> None:
    kept = lasting([restarts(0)])
    for _ in range(3):
        kept = lasting([kept, restarts(1)])
    assert told(merge([kept])) == {("voiceserver_process_restarts_total", ""): 3.0}


def test_lines_that_the_supervisor_lost_are_counted_beside_those_of_the_processes() -> None:
    process = figures_of([log_lines_lost({"overflow": 5})], b"null", "0")
    kept = lasting([lost_lines({}, {"overflow": 2})])
    kept = lasting([kept, lost_lines({"overflow": 2}, {"overflow": 3, "gone": 1})])
    found = {tuple(s.labels.values()): s.value for family in merge([process, kept]) for s in family.samples}
    assert found == {("overflow",): 8.0, ("gone",): 1.0}


def test_a_process_hears_why_callers_of_the_others_would_not_be_served(shares: list[Peer]) -> None:
    first, second = shares
    assert second.unready_elsewhere() == []
    assert not second.is_served_elsewhere()
    first.publish([], b"{}", [Unready("no worker is ready", "stt")])
    assert second.unready_elsewhere() == [Unready("no worker is ready", "stt", process=0)]
    assert not second.is_served_elsewhere()
    assert first.unready_elsewhere() == []
    first.publish([], b"{}")
    assert second.unready_elsewhere() == []
    assert second.is_served_elsewhere()


def test_a_process_that_does_not_beat_any_more_is_no_place_for_callers(
    shares: list[Peer], shared_stats: SharedStats
) -> None:
    first, second = shares
    first.beat()
    assert second.unready_elsewhere() == []
    shared_stats.beat(0, shared_stats.beat_ns(0) - int(SILENT_MS * 1e6) - 1)
    assert second.unready_elsewhere() == [Unready("the server process does not answer", process=0)]
    shared_stats.clear(0)
    assert second.unready_elsewhere() == []


@pytest.mark.skipif(sys.platform != "linux", reason="memory without a file is Linux's")
def test_the_memory_is_reserved_and_needs_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    stats = SharedStats.create(PROCESSES)
    assert os.fstat(stats.fd).st_blocks * 512 >= PROCESSES * PLACE_BYTES
    stats.close()


def test_who_waits_for_a_process_that_died_is_answered() -> None:
    read_end, write_end = mailbox()
    callers = [socket.socketpair() for _ in range(3)]
    for _, ours in callers:
        socket.send_fds(write_end, [b"GET / HTTP/1.1\r\n\r\n"], [ours.fileno()])
        ours.close()
    assert answer_waiting(read_end, b"HTTP/1.1 503 ") == len(callers)
    assert answer_waiting(read_end, b"") == 0
    for caller, _ in callers:
        assert caller.recv(100) == b"HTTP/1.1 503 "
        assert caller.recv(100) == b""
        caller.close()
    read_end.close()
    write_end.close()


def test_nobody_is_handed_to_a_process_that_hangs() -> None:
    read_end, write_end = mailbox()
    handoff = Handoff(0, read_end, [write_end, write_end], is_silent=lambda process: process == 1)
    loop = MagicMock()
    handoff.listen(loop, MagicMock())
    transport = MagicMock()
    assert not handoff.hand_on(transport, 1, b"GET")
    transport.set_protocol.assert_not_called()
    handoff.close()
    read_end.close()
    write_end.close()
