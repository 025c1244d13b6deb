"""Segments: identity, sealing, sizes, and the one choice of platform."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile

import pytest

from voiceserver_workers.ipc import layout
from voiceserver_workers.ipc import platform as platform_module
from voiceserver_workers.ipc.channel import FlightState, ServerEnd, WorkerEnd
from voiceserver_workers.ipc.layout import ChannelConfig
from voiceserver_workers.ipc.platform import PORTABLE, choose_platform
from voiceserver_workers.ipc.segment import SegmentMismatch, attach_segment, create_segment

CONFIG = ChannelConfig(request_slots=4, result_slots=2, slot_bytes=192)


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ({"request_slots": 3}, "request_slots"),
        ({"request_slots": 1}, "request_slots"),
        ({"result_slots": 0}, "result_slots"),
        ({"result_slots": -4}, "result_slots"),
        ({"slot_bytes": 100}, "slot_bytes"),
        ({"slot_bytes": 64}, "slot_bytes"),
    ],
)
def test_impossible_sizes_are_refused_by_name(sizes: dict[str, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ChannelConfig(**sizes)


def test_slots_follow_the_header_and_never_overlap() -> None:
    requests, results = layout.request_ring(CONFIG), layout.result_ring(CONFIG)
    assert requests.slots_offset >= (layout.FLIGHT_STREAMS + layout.FLIGHT_STREAMS_MAX) * 8
    assert results.slots_offset == requests.slots_offset + 4 * 192
    assert layout.segment_bytes(CONFIG) >= results.slots_offset + 2 * 192
    assert layout.segment_bytes(CONFIG) % layout.PAGE_BYTES == 0


@pytest.mark.parametrize("platform", [choose_platform(), PORTABLE], ids=lambda platform: platform.name)
def test_a_segment_is_shared_and_knows_its_sizes(platform: platform_module.Platform) -> None:
    fd, segment = create_segment(CONFIG, 3, platform)
    other = attach_segment(fd)
    os.close(fd)
    assert (other.config, other.generation) == (CONFIG, 3)
    segment.words[layout.REQUEST_HEAD] = 2**63 + 5
    assert other.words[layout.REQUEST_HEAD] == 2**63 + 5
    other.close()
    segment.close()
    segment.close()


def test_a_file_that_is_no_segment_is_refused() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(100)
        with pytest.raises(SegmentMismatch, match="100"):
            attach_segment(file.fileno())
        file.truncate(layout.segment_bytes(CONFIG))
        with pytest.raises(SegmentMismatch, match="magic"):
            attach_segment(file.fileno())


def test_a_segment_of_another_version_is_refused() -> None:
    fd, segment = create_segment(CONFIG, 1, PORTABLE)
    try:
        segment.words[1] = layout.VERSION + 1
        with pytest.raises(SegmentMismatch, match="version"):
            attach_segment(fd)
    finally:
        segment.close()
        os.close(fd)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can seal a segment")
def test_a_segment_can_be_neither_shrunk_nor_grown() -> None:
    fd, segment = create_segment(CONFIG, 1, choose_platform())
    try:
        for size in (0, layout.segment_bytes(CONFIG) + mmap.PAGESIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
    finally:
        segment.close()
        os.close(fd)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_segment_is_in_memory_before_its_first_use() -> None:
    config = ChannelConfig()
    server = ServerEnd.create(config)
    try:
        reserved_bytes = os.fstat(server.worker_fds()[0]).st_blocks * 512
        with open("/proc/self/smaps") as smaps:
            text = smaps.read()
    finally:
        server.close()
    mapping = text[text.index("memfd:voiceserver-ring") :]
    resident_bytes = int(mapping[mapping.index("Rss:") :].split()[1]) * 1024
    assert reserved_bytes >= layout.segment_bytes(config)
    # The kernel populates a mapping as well as it can: a page may be reserved and not be mapped yet.
    assert layout.segment_bytes(config) - resident_bytes <= 16 * mmap.PAGESIZE


def test_a_machine_without_memfd_gets_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert choose_platform() is PORTABLE


def test_another_system_gets_the_fallback_and_a_channel_works_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert choose_platform() is PORTABLE
    before = set(os.listdir(tempfile.gettempdir()))
    server = ServerEnd.create(CONFIG)
    worker = WorkerEnd.attach(server.worker_fds())
    try:
        left = set(os.listdir(tempfile.gettempdir())) - before
        assert not [name for name in left if name.startswith("voiceserver-")]
        assert server.try_send(2, 1, 1, 1, b"hello")
        server.ring_bell()
        assert [record.payload for record in worker.receive()] == [b"hello"]
        server.rearm()
        worker.try_send(71, 1, 1, 1, b"answer")
        worker.ring_bell()
        assert len(os.read(server.result_fd(), 4096)) == 8
    finally:
        worker.close()
        server.close()


@pytest.mark.parametrize("failing", ["seal", "second doorbell"])
def test_a_failed_creation_leaves_no_fd(failing: str) -> None:
    bells: list[tuple[int, int]] = []

    def seal(fd: int) -> None:
        if failing == "seal":
            raise OSError("not today")

    def create_doorbell() -> tuple[int, int]:
        if bells:
            raise OSError("not today")
        bells.append(PORTABLE.create_doorbell())
        return bells[0]

    platform = platform_module.Platform(
        name="failing",
        create_segment=PORTABLE.create_segment,
        seal=seal,
        create_doorbell=create_doorbell,
        open_sentinel=PORTABLE.open_sentinel,
    )
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(OSError, match="not today"):
        ServerEnd.create(CONFIG, platform=platform)
    assert len(os.listdir("/dev/fd")) == before


def test_a_flight_state_that_nobody_writes_is_unknown() -> None:
    server = ServerEnd.create(CONFIG)
    try:
        server._segment.words[layout.FLIGHT_STATE] = 99
        server._segment.words[layout.FLIGHT_BATCH_SIZE] = 2**64 - 1
        assert server.flight().state is FlightState.UNKNOWN
        assert len(server.flight().streams) == 256
    finally:
        server.close()
