"""What one server process has of the others: their figures, their mailboxes, and the lifeline to the supervisor."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from voiceserver.server.multiprocess.handoff import Handoff
from voiceserver.server.multiprocess.lifeline import DRAIN, READY
from voiceserver.server.multiprocess.merge import Figures, decode, figures_of, merge, merge_capacity
from voiceserver.server.multiprocess.shared_stats import SharedStats

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Peer:
    """``index``: of this process. ``shared_stats`` has one more place than processes: for those that have ended."""

    def __init__(
        self, index: int, lifeline: socket.socket, shared_stats: SharedStats, handoff: Handoff
    ) -> None:
        self.index = index
        self.processes = handoff.processes
        self.handoff = handoff
        self.lifeline = lifeline
        self._shared_stats = shared_stats
        self._capacity = b"null"

    def publish(self, families: Iterable[Metric], capacity: bytes) -> None:
        """Write this process's figures where the others read them."""
        self._capacity = capacity
        self._put(families)

    def _put(self, families: Iterable[Metric]) -> Figures:
        figures = figures_of(families, self._capacity, str(self.index))
        self._shared_stats.put(self.index, msgspec.json.encode(figures))
        return figures

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
        return merge([self._put(families), *self._others()])

    def merged_capacity(self, capacity: bytes) -> bytes:
        return merge_capacity([capacity, *(bytes(other.capacity) for other in self._others())])

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
