"""What several processes tell of themselves, as one server's figures."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec
import pytest
from prometheus_client.core import Metric

from voiceserver.server.multiprocess.handoff import Handoff
from voiceserver.server.multiprocess.merge import decode, figures_of, lasting, merge, restarts
from voiceserver.server.multiprocess.peer import Peer
from voiceserver.server.multiprocess.shared_stats import PLACE_BYTES, SharedStats

PROCESSES = 2


@pytest.fixture
def shared_stats() -> Iterator[SharedStats]:
    shared_stats = SharedStats.create(PROCESSES + 1)
    yield shared_stats
    shared_stats.close()


@pytest.fixture
def shares(shared_stats: SharedStats) -> Iterator[list[Peer]]:
    ends = [socket.socketpair() for _ in range(PROCESSES)]
    handoffs = [Handoff(index, end, []) for index, (end, _) in enumerate(ends)]
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
