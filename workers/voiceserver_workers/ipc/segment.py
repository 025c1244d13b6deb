"""One piece of shared memory per worker incarnation: created by the server, attached by the worker.

Rule: a segment is complete before anyone can see it (sized, sealed, prefaulted, identity written) and belongs
to one generation of one worker, so no stale byte of a predecessor can ever be read.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

from voiceserver_workers.ipc import layout
from voiceserver_workers.ipc.layout import ChannelConfig
from voiceserver_workers.ipc.platform import PREFAULT_FLAG, Platform


class SegmentMismatch(ValueError):
    """The fd is not a segment of this version of the layout."""


@dataclass(slots=True)
class Segment:
    """Mapped memory and the sizes it was made for. ``words`` sees it as unsigned 64-bit integers."""

    memory: mmap.mmap
    words: memoryview
    config: ChannelConfig
    generation: int

    def close(self) -> None:
        """Unmap. Idempotent."""
        self.words.release()
        self.memory.close()


def create_segment(config: ChannelConfig, generation: int, platform: Platform) -> tuple[int, Segment]:
    """``(fd, segment)``; the caller owns the fd. Raises OSError when the memory is not to be had."""
    size_bytes = layout.segment_bytes(config)
    fd = platform.create_segment(size_bytes)
    try:
        platform.seal(fd)
        memory = _map(fd, size_bytes)
    except OSError:
        os.close(fd)
        raise
    layout.IDENTITY_WORDS.pack_into(
        memory,
        layout.IDENTITY,
        layout.MAGIC,
        layout.VERSION,
        generation,
        config.request_slots,
        config.result_slots,
        config.slot_bytes,
        size_bytes,
    )
    return fd, Segment(memory, memoryview(memory).cast("Q"), config, generation)


def attach_segment(fd: int) -> Segment:
    """Map a segment that another process made. Raises SegmentMismatch when it is something else."""
    file_bytes = os.fstat(fd).st_size
    if file_bytes < layout.SLOTS_OFFSET:
        raise SegmentMismatch(
            f"a segment has at least {layout.SLOTS_OFFSET} bytes, this file has {file_bytes}"
        )
    memory = _map(fd, file_bytes)
    magic, version, generation, request_slots, result_slots, slot_bytes, size_bytes = (
        layout.IDENTITY_WORDS.unpack_from(memory, layout.IDENTITY)
    )
    if (magic, version, size_bytes) != (layout.MAGIC, layout.VERSION, file_bytes):
        memory.close()
        raise SegmentMismatch(
            f"not a ring segment of version {layout.VERSION}: magic {magic:#x}, version {version},"
            f" {size_bytes} bytes declared, {file_bytes} present"
        )
    config = ChannelConfig(request_slots, result_slots, slot_bytes)
    return Segment(memory, memoryview(memory).cast("Q"), config, generation)


def _map(fd: int, size_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED | PREFAULT_FLAG)
    if not PREFAULT_FLAG:
        for offset in range(0, size_bytes, mmap.PAGESIZE):
            memory[offset]
    return memory
