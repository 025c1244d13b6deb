"""Messages with descriptors arrive whole and in order, and a receiver without a free descriptor is told what it lacks."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver_workers.ipc.frames import Frame, FrameReader, send_frame


@contextmanager
def ends() -> Iterator[tuple[socket.socket, FrameReader]]:
    here, there = socket.socketpair()
    there.setblocking(False)
    reader = FrameReader(there)
    with here, there:
        yield here, reader
        reader.close()


@contextmanager
def no_descriptor_is_free() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def read_all(reader: FrameReader) -> list[Frame]:
    frames: list[Frame] = []
    while True:
        try:
            frames += reader.read()
        except BlockingIOError:
            return frames


@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 5)), max_size=12))
def test_each_frame_has_its_own_descriptors(sent: list[tuple[bytes, int]]) -> None:
    with ends() as (sock, reader), open(os.devnull) as null:
        for body, count in sent:
            send_frame(sock, body, [null.fileno()] * count)
        frames = read_all(reader)
    assert [(frame.body, len(frame.fds), frame.is_complete) for frame in frames] == [
        (body, count, True) for body, count in sent
    ]
    for frame in frames:
        for fd in frame.fds:
            assert os.path.samestat(os.fstat(fd), os.stat(os.devnull))
            os.close(fd)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_could_not_be_received_is_missing_in_its_own_frame_only(count: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with ends() as (sock, reader):
        send_frame(sock, b"first", [sock.fileno()])
        frames = read_all(reader)
        send_frame(sock, b"second", [sock.fileno()] * count)
        send_frame(sock, b"third")
        with no_descriptor_is_free():
            frames += read_all(reader)
        send_frame(sock, b"fourth", [sock.fileno(), sock.fileno()])
        frames += read_all(reader)
        assert [(frame.body, len(frame.fds), frame.is_complete) for frame in frames] == [
            (b"first", 1, True),
            (b"second", 0, False),
            (b"third", 0, True),
            (b"fourth", 2, True),
        ]
        for frame in frames:
            for fd in frame.fds:
                os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before
