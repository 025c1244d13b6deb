"""The two ends of a channel, on this machine's platform and on the fallback that macOS gets."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator

import pytest

from voiceserver_workers.ipc.channel import (
    ChannelConfig,
    Flight,
    FlightState,
    RecordTooLarge,
    ServerEnd,
    WorkerEnd,
)
from voiceserver_workers.ipc.messages import Record
from voiceserver_workers.ipc.platform import PORTABLE, Platform, choose_platform
from voiceserver_workers.ipc.ring import LONG_BURST_BYTES

SMALL = ChannelConfig(request_slots=8, result_slots=4, slot_bytes=256)
WEAKLY_ORDERED = Platform(
    name="portable, weakly ordered",
    create_segment=PORTABLE.create_segment,
    seal=PORTABLE.seal,
    create_doorbell=PORTABLE.create_doorbell,
    open_sentinel=PORTABLE.open_sentinel,
    is_store_ordered=False,
)
Ends = tuple[ServerEnd, WorkerEnd]


@pytest.fixture(params=[choose_platform(), PORTABLE, WEAKLY_ORDERED], ids=lambda platform: platform.name)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    platform: Platform = request.param
    server = ServerEnd.create(SMALL, generation=7, platform=platform)
    worker = WorkerEnd.attach(server.worker_fds(), platform=platform)
    server.close_worker_fds()
    yield server, worker
    worker.close()
    server.close()


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_both_ends_agree_on_sizes_and_generation(ends: Ends) -> None:
    server, worker = ends
    assert worker.config == server.config == SMALL
    assert worker.generation == server.generation == 7


def test_a_request_arrives_as_it_was_sent(ends: Ends) -> None:
    server, worker = ends
    assert server.try_send(2, 2**40, 3, 2**50, memoryview(b"audio"), sent_ns=99)
    assert worker.receive() == [Record(2, 2**40, 3, 2**50, b"audio", 99)]
    assert worker.receive() == []


def test_a_received_payload_is_bytes_and_outlives_its_slot(ends: Ends) -> None:
    server, worker = ends
    server.try_send(2, 1, 0, 0, bytearray(b"first"))
    (record,) = worker.receive()
    for _ in range(8):
        server.try_send(2, 1, 0, 0, b"other")
    assert type(record.payload) is bytes
    assert type(record) is Record
    assert record.payload == b"first"


def test_full_is_false_and_counted_and_takes_nothing(ends: Ends) -> None:
    server, worker = ends
    assert [server.try_send(2, 1, 0, seq) for seq in range(9)] == [True] * 8 + [False]
    assert server.refused() == 1
    assert (server.queued(), server.free_slots()) == (8, 0)
    assert [record.seq for record in worker.receive()] == list(range(8))
    assert (server.queued(), server.free_slots()) == (0, 8)
    assert server.try_send(2, 1, 0, 8)


def test_receive_obeys_its_limit(ends: Ends) -> None:
    server, worker = ends
    for seq in range(5):
        server.try_send(2, 1, 0, seq)
    assert [record.seq for record in worker.receive(limit=3)] == [0, 1, 2]
    assert server.queued() == 2
    assert [record.seq for record in worker.receive(limit=3)] == [3, 4]


def test_a_long_record_spans_slots_and_arrives_whole(ends: Ends) -> None:
    server, worker = ends
    payload = bytes(range(256)) * 3
    assert server.try_send(2, 1, 0, 0, payload)
    assert server.queued() == 4
    assert worker.receive() == [Record(2, 1, 0, 0, payload)]


def test_a_long_record_survives_the_wrap(ends: Ends) -> None:
    server, worker = ends
    payload = bytes(range(256)) * 3
    for _ in range(6):
        server.try_send(2, 1, 0, 0)
    worker.receive()
    assert server.try_send(2, 1, 0, 0, memoryview(payload))
    assert worker.receive() == [Record(2, 1, 0, 0, payload)]


def test_a_long_record_without_room_takes_nothing(ends: Ends) -> None:
    server, worker = ends
    for seq in range(5):
        server.try_send(2, 1, 0, seq)
    assert not server.try_send(2, 1, 0, 5, bytes(768))
    assert server.queued() == 5
    assert [record.seq for record in worker.receive()] == list(range(5))


def test_a_record_that_can_never_fit_is_an_error_that_says_the_limit(ends: Ends) -> None:
    server, worker = ends
    limit = 4 * 256 - 64
    assert server.try_send(2, 1, 0, 0, bytes(limit))
    with pytest.raises(RecordTooLarge, match=str(limit)):
        server.try_send(2, 1, 0, 0, bytes(limit + 1))
    assert [len(record.payload) for record in worker.receive()] == [limit]


def test_a_payload_of_other_than_bytes_is_refused_before_anything_is_published(ends: Ends) -> None:
    server, worker = ends
    with pytest.raises((IndexError, ValueError)):
        server.try_send(2, 1, 0, 0, memoryview(bytes(8)).cast("h"))
    assert server.queued() == 0
    assert worker.receive() == []


def test_the_oldest_request_tells_its_age(ends: Ends) -> None:
    server, worker = ends
    assert server.oldest_sent_ns() == 0
    server.try_send(2, 1, 0, 0, sent_ns=50)
    server.try_send(2, 1, 0, 1, sent_ns=60)
    assert server.oldest_sent_ns() == 50
    worker.receive(limit=1)
    assert server.oldest_sent_ns() == 60
    worker.receive()
    assert server.oldest_sent_ns() == 0


def test_the_bell_rings_only_for_a_sleeping_server_and_once_per_sleep(ends: Ends) -> None:
    server, worker = ends
    worker.try_send(66, 1, 0, 0)
    worker.ring_bell()
    assert not is_readable(server.result_fd())  # awake: not told that it sleeps
    assert server.rearm() is True  # asleep now, but a result was there first
    assert len(server.receive()) == 1
    assert server.rearm() is False
    worker.try_send(66, 1, 0, 1)
    assert not is_readable(server.result_fd())  # a push alone rings nothing
    worker.ring_bell()
    assert is_readable(server.result_fd())
    os.read(server.result_fd(), 4096)
    worker.ring_bell()
    assert not is_readable(server.result_fd())  # rung already for this sleep
    assert server.rearm() is True
    worker.ring_bell()
    assert is_readable(server.result_fd())  # a new sleep, a new ring
    assert len(server.receive()) == 1


def test_rearm_silences_the_bell(ends: Ends) -> None:
    server, worker = ends
    assert server.rearm() is False
    worker.try_send(66, 1, 0, 0)
    worker.ring_bell()
    server.receive()
    assert server.rearm() is False
    assert not is_readable(server.result_fd())


def test_wait_returns_at_once_when_requests_are_there_and_still_names_extra_fds(ends: Ends) -> None:
    server, worker = ends
    mine, theirs = os.pipe()
    try:
        server.try_send(2, 1, 0, 0)
        assert worker.wait(60_000, [mine]) == []
        os.close(theirs)  # end of file: the server is gone
        assert worker.wait(60_000, [mine]) == [mine]
        assert len(worker.receive()) == 1
        assert worker.wait(60_000, [mine]) == [mine]
    finally:
        os.close(mine)


def test_wait_is_woken_by_a_bell_that_rang_while_awake(ends: Ends) -> None:
    server, worker = ends
    assert worker.wait(0) == []
    server.try_send(2, 1, 0, 0)
    server.ring_bell()
    assert worker.wait(60_000) == []
    assert len(worker.receive()) == 1


def test_wait_gives_up_after_its_timeout_and_beats(ends: Ends) -> None:
    server, worker = ends
    assert server.heartbeat_ns() == 0
    before_ns = time.monotonic_ns()
    assert worker.wait(2) == []
    assert before_ns <= server.heartbeat_ns() <= time.monotonic_ns()


def test_send_gives_up_on_a_full_ring_but_beats_and_rings(ends: Ends) -> None:
    server, worker = ends
    server.rearm()
    assert all(worker.send(66, 1, 0, seq, timeout_ms=0) for seq in range(4))
    assert not worker.send(66, 1, 0, 4, timeout_ms=1)
    assert server.heartbeat_ns() > 0
    assert is_readable(server.result_fd())
    assert [record.seq for record in server.receive()] == [0, 1, 2, 3]
    assert worker.send(66, 1, 0, 4, timeout_ms=0)


def test_the_flight_recorder_tells_the_step_in_progress(ends: Ends) -> None:
    server, worker = ends
    empty = Flight(FlightState.STARTING, (), 0, 0, 0, 0, 0, 0, 0, 0, os.getpid())
    assert server.flight() == empty
    worker.record_state(FlightState.LOADING)
    assert server.flight().state is FlightState.LOADING
    worker.record_step([5, 2**40, 7], deadline_ns=1234)
    flight = server.flight()
    assert (flight.state, flight.streams, flight.batch_size) == (FlightState.STEPPING, (5, 2**40, 7), 3)
    assert (flight.deadline_ns, flight.steps, flight.items) == (1234, 0, 0)
    assert flight.started_ns == flight.heartbeat_ns == server.heartbeat_ns() > 0
    worker.record_idle()
    flight = server.flight()
    assert (flight.state, flight.streams, flight.deadline_ns) == (FlightState.IDLE, (), 0)
    assert (flight.steps, flight.items) == (1, 3)
    assert flight.step_ns_total == flight.heartbeat_ns - flight.started_ns
    worker.record_idle()
    assert server.flight().steps == 1
    assert server.flight().optional_ns_total == 0


def test_the_flight_recorder_knows_what_would_be_left_out_under_pressure(ends: Ends) -> None:
    server, worker = ends
    for is_optional in (False, True):
        worker.record_step([1], deadline_ns=1)
        worker.record_idle(is_optional=is_optional)
    flight = server.flight()
    assert flight.steps == 2
    assert 0 < flight.optional_ns_total < flight.step_ns_total


def test_the_flight_recorder_keeps_the_first_256_streams_of_a_wider_batch(ends: Ends) -> None:
    server, worker = ends
    worker.record_step(range(300), deadline_ns=1)
    assert server.flight().streams == tuple(range(256))
    assert server.flight().batch_size == 300


def test_close_is_idempotent_and_returns_every_fd() -> None:
    for platform in (choose_platform(), PORTABLE):
        before = len(os.listdir("/dev/fd"))
        server = ServerEnd.create(SMALL, platform=platform)
        worker = WorkerEnd.attach(server.worker_fds(), platform=platform)
        for _ in range(2):
            worker.close()
            server.close()
        assert len(os.listdir("/dev/fd")) == before
        with pytest.raises(ValueError, match=r"closed|released"):
            server.try_send(2, 1, 0, 0)


def test_results_of_a_dead_worker_can_still_be_received(ends: Ends) -> None:
    server, worker = ends
    worker.try_send(68, 1, 0, 0, b"last words")
    worker.close()
    assert [record.payload for record in server.receive()] == [b"last words"]
    server.try_send(2, 1, 0, 0)
    server.ring_bell()


def test_long_records_end_a_burst_early_and_nothing_waits_unseen() -> None:
    server = ServerEnd.create(ChannelConfig())
    worker = WorkerEnd.attach(server.worker_fds())
    try:
        payload = bytes(LONG_BURST_BYTES // 2)
        assert all(server.try_send(2, 1, 0, seq, payload) for seq in range(3))
        assert [record.seq for record in worker.receive()] == [0, 1]
        assert worker.wait(60_000) == []  # does not sleep: one is left
        assert [record.seq for record in worker.receive()] == [2]
    finally:
        worker.close()
        server.close()
