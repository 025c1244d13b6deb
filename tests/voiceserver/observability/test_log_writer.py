"""Lines leave in a thread: whoever submits one never waits and never hears of a fault; each is written whole, or counted."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voiceserver.observability.log_writer import (
    MAX_LINE_BYTES,
    QUEUE_FULL,
    WRITE_FAILED,
    LineStream,
    LogWriter,
    LostLines,
    OutputPipe,
)

PIPE_BYTES = 4096
F_SETPIPE_SZ = 1031


def tell(count: int) -> bytes:
    return b"lost %d" % count


@contextlib.contextmanager
def small_pipe() -> Iterator[tuple[int, int]]:
    import fcntl

    reads, writes = os.pipe()
    fcntl.fcntl(writes, F_SETPIPE_SZ, PIPE_BYTES)
    ends = [reads, writes]
    try:
        yield reads, writes
    finally:
        for end in ends:
            with contextlib.suppress(OSError):
                os.close(end)


class Disk:
    """A descriptor that takes what ``answers`` say: a number of bytes, or -1 for a full disk. Later it takes everything."""

    def __init__(self, answers: list[int]) -> None:
        self.answers = answers
        self.data = b""

    def write(self, fd: int, data: bytes) -> int:
        answer = self.answers.pop(0) if self.answers else len(data)
        if answer < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(max(answer, 1), len(data))
        self.data += data[:taken]
        return taken


def test_a_reader_that_stops_keeps_nobody_waiting_and_is_told_once_what_it_missed() -> None:
    with small_pipe() as (reads, writes):
        lost = LostLines()
        writer = LogWriter(writes, lost, tell, max_lines=100)
        for number in range(1_000):
            writer.submit(b"%06d" % number + b"x" * 94)  # 100 KB for a pipe of 4 KB: it would block
        assert not writer.flush(0.05)
        missed = lost.counts()[QUEUE_FULL]
        assert missed > 800
        found = b""
        while b"lost" not in found:
            found += os.read(reads, 65_536)
        writer.submit(b"after")
        assert writer.flush(10.0)
        found += os.read(reads, 65_536)
    lines = found.splitlines()
    assert [line for line in lines if line.startswith(b"lost")] == [b"lost %d" % missed]
    assert lines[-1] == b"after"
    numbers = [int(line[:6]) for line in lines if line[:1] == b"0"]
    assert numbers == sorted(numbers)
    assert len(numbers) == 1_000 - missed


def test_a_reader_that_has_gone_is_no_fault_of_who_logs() -> None:
    with small_pipe() as (reads, writes):
        lost = LostLines()
        writer = LogWriter(writes, lost, tell)
        os.close(reads)
        for _ in range(50):
            writer.submit(b"a line")
        assert writer.flush(10.0)
    assert lost.counts()[WRITE_FAILED] == 50


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.binary(min_size=1, max_size=40).map(lambda one: one.hex().encode()), max_size=20),
    answers=st.lists(st.integers(min_value=-1, max_value=30), max_size=60),
)
def test_each_line_is_written_whole_and_in_order_or_counted_as_lost(
    lines: list[bytes], answers: list[int]
) -> None:
    disk, lost = Disk(answers), LostLines()
    writer = LogWriter(-1, lost, tell, write=disk.write)
    for line in lines:
        writer.submit(line)
    assert writer.flush(10.0)
    written = disk.data.splitlines()
    whole = [line for line in written if line in lines]
    rest = iter(lines)
    assert all(line in rest for line in whole)  # in order
    assert len(whole) >= len(lines) - lost.total()
    told = sum(int(line[5:]) for line in written if line.startswith(b"lost "))
    assert told <= lost.total()
    disk.answers.clear()
    writer.submit(b"the last")
    assert writer.flush(10.0)
    told = sum(int(line[5:]) for line in disk.data.splitlines() if line.startswith(b"lost "))
    assert told == lost.total()


def test_a_line_that_was_cut_does_not_run_into_the_next() -> None:
    disk = Disk([3, -1])
    writer = LogWriter(-1, LostLines(), tell, write=disk.write)
    writer.submit(b"first line")
    writer.submit(b"second line")
    assert writer.flush(10.0)
    assert disk.data == b"fir\nsecond line\nlost 1\n"


def test_a_descriptor_that_somebody_made_non_blocking_loses_nothing() -> None:
    with small_pipe() as (reads, writes):
        os.set_blocking(writes, False)
        lost = LostLines()
        writer = LogWriter(writes, lost, tell)
        for _ in range(100):
            writer.submit(b"y" * 100)
        found = b""
        while len(found) < 10_100:
            found += os.read(reads, 4096)
        assert writer.flush(10.0)
    assert lost.total() == 0
    assert found == (b"y" * 100 + b"\n") * 100


def test_what_is_printed_goes_by_lines_and_never_raises() -> None:
    disk = Disk([])
    writer = LogWriter(-1, LostLines(), tell, write=disk.write)
    stream = LineStream(writer)
    print("one", "two", file=stream)
    print("half", end="", file=stream)
    print(" and half \udc80", file=stream)
    stream.write("z" * (MAX_LINE_BYTES + 1))
    stream.write("end")
    stream.end_line()
    stream.flush()
    assert writer.flush(10.0)
    first, second, third, last = disk.data.splitlines()
    assert (first, second, last) == (b"one two", b"half and half \\udc80", b"end")
    assert third.startswith(b"z" * MAX_LINE_BYTES)


def test_other_processes_write_as_much_as_they_like_and_lines_stay_lines() -> None:
    heard: list[bytes] = []
    pipe = OutputPipe(heard.append)

    def write() -> None:
        for _ in range(3_000):
            os.write(pipe.write_fd, b"w" * 99 + b"\n")

    threads = [threading.Thread(target=write, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    os.write(pipe.write_fd, b"v" * (MAX_LINE_BYTES * 2) + b"\nend\n")
    end = threading.Event()
    for _ in range(600):
        if heard[-1:] == [b"end"]:
            end.set()
            break
        end.wait(0.05)
    assert end.is_set()
    assert heard[:6_000] == [b"w" * 99] * 6_000
    pipe.wait_read(1.0)


@pytest.mark.parametrize("reason", [QUEUE_FULL, WRITE_FAILED])
def test_losses_are_counted_by_their_reason(reason: str) -> None:
    lost = LostLines()
    lost.add(reason)
    assert lost.counts()[reason] == lost.total() == 1
