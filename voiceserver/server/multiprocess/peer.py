"""What one server process has of the others: their figures, what their keys have used, their mailboxes, and the lifeline to the
supervisor."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from voiceserver.server.key_usage import UsedByKey
from voiceserver.server.multiprocess.handoff import Handoff
from voiceserver.server.multiprocess.lifeline import DRAIN, READY
from voiceserver.server.multiprocess.merge import Figures, Unready, decode, figures_of, merge, merge_capacity
from voiceserver.server.multiprocess.shared_stats import SharedStats

if TYPE_CHECKING:
    from prometheus_client.core import Metric


BEAT_MS: Final = 100.0
# What a thousand keys in use take.
USAGE_BYTES: Final = 64 * 1024

_decode_usage: Final = msgspec.json.Decoder(dict[str, UsedByKey]).decode


class Peer:
    """``index``: of this process. ``shared_stats`` has one more place than processes, for those that have ended; so has
    ``usage``, which is None where no keys are counted."""

    def __init__(
        self,
        index: int,
        lifeline: socket.socket,
        shared_stats: SharedStats,
        handoff: Handoff,
        usage: SharedStats | None = None,
    ) -> None:
        self.index = index
        self.processes = handoff.processes
        self.handoff = handoff
        self.lifeline = lifeline
        self._shared_stats = shared_stats
        self._usage = usage
        self._capacity = b"null"
        self._unready: Sequence[Unready] = ()

    # ------------------------------------------------------------------------------------------------- sign of life

    def beat(self) -> None:
        """The event loop of this process runs. Call it every ``BEAT_MS``."""
        self._shared_stats.beat(self.index, time.monotonic_ns())

    def is_served_elsewhere(self) -> bool:
        """Whether another process can take callers now."""
        others = (decode(self._shared_stats.get(one)) for one in range(self.processes) if one != self.index)
        return any(figures is not None and not figures.unready for figures in others)

    def unready_elsewhere(self) -> list[Unready]:
        """Why callers whom the kernel gives to the other processes would not be served, as of a second ago."""
        found = []
        for process in range(self.processes):
            if process == self.index:
                continue
            if self._shared_stats.is_silent(process, time.monotonic_ns()):
                found.append(Unready("the server process does not answer", process=process))
            figures = decode(self._shared_stats.get(process))
            for one in figures.unready if figures is not None else ():
                found.append(msgspec.structs.replace(one, process=process))
        return found

    # ------------------------------------------------------------------------------------------------------ figures

    def publish(self, families: Iterable[Metric], capacity: bytes, unready: Sequence[Unready] = ()) -> bool:
        """Write this process's figures where the others read them. False: they are too long, and the old ones stay."""
        self._capacity, self._unready = capacity, unready
        return self._put(families)[1]

    def _put(self, families: Iterable[Metric]) -> tuple[Figures, bool]:
        figures = figures_of(families, self._capacity, str(self.index), self._unready)
        return figures, self._shared_stats.put(self.index, msgspec.json.encode(figures))

    def _others(self) -> list[Figures]:
        found = [
            decode(self._shared_stats.get(place))
            for place in range(self._shared_stats.places)
            if place != self.index
        ]
        return [figures for figures in found if figures is not None]

    def merged(self, families: Iterable[Metric]) -> list[Metric]:
        """The families of this process, as of now, with those of the others, which are up to a second old.

        They are published too: a counter that was read here must not be lower at another process, which would look like
        a restart.
        """
        return merge([self._put(families)[0], *self._others()])

    def merged_capacity(self, capacity: bytes) -> bytes:
        return merge_capacity([capacity, *(bytes(other.capacity) for other in self._others())])

    # -------------------------------------------------------------------------------------------------- usage of keys

    def put_usage(self, usage: Mapping[str, UsedByKey]) -> None:
        """Tell the others what keys have used here. What does not fit is not told."""
        if self._usage is not None:
            self._usage.put(self.index, msgspec.json.encode(usage))

    def usage_of_others(self) -> list[Mapping[str, UsedByKey]]:
        """Of each other process, and of those that have ended."""
        usage = self._usage
        if usage is None:
            return []
        return [decode_usage(usage.get(place)) for place in range(usage.places) if place != self.index]

    # ----------------------------------------------------------------------------------------------- the supervisor

    def announce_ready(self) -> None:
        self._send(READY)

    def ask_to_drain(self) -> None:
        """Have the supervisor drain all processes."""
        self._send(DRAIN)

    def _send(self, byte: bytes) -> None:
        # An error means that the supervisor is gone, which the loop is about to notice.
        with contextlib.suppress(OSError):
            self.lifeline.send(byte)

    def on_readable(self, end: Callable[[], None]) -> None:
        """For the loop: the supervisor sends nothing after the configuration, so this can only be its end."""
        try:
            if self.lifeline.recv(64):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        end()


def decode_usage(data: bytes) -> Mapping[str, UsedByKey]:
    """Empty for what nobody has written yet."""
    try:
        return _decode_usage(data) if data else {}
    except msgspec.DecodeError:
        return {}
