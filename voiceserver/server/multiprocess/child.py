"""One server process among several: ``python -m voiceserver.server.multiprocess.child INDEX LIFELINE_FD BOARD_FD INBOX_FD
MAILBOX_FD…``.

It gets its configuration over the lifeline, says ``r`` when it is ready and ``d`` when somebody asked to drain, and ends at once
when the lifeline ends: then its supervisor is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from voiceserver.config.schema import Config
from voiceserver.server.multiprocess.handoff import Handoff
from voiceserver.server.multiprocess.merge import Figures, decode, figures_of, merge, merge_capacity
from voiceserver.server.multiprocess.shared_stats import SharedStats

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_LENGTH_BYTES: Final = 8


class Peer:
    """What a process has of the others. One more place than processes: for those that have ended."""

    def __init__(
        self, index: int, lifeline: socket.socket, shared_stats: SharedStats, handoff: Handoff | None = None
    ) -> None:
        self.index = index
        self.handoff = handoff
        self.lifeline = lifeline
        self._shared_stats = shared_stats
        self._capacity = b"null"

    def publish(self, families: Iterable[Metric], capacity: bytes) -> None:
        """Tell the others."""
        self._capacity = capacity
        self._tell(families)

    def _tell(self, families: Iterable[Metric]) -> Figures:
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
        """Our families, which are of this moment, with those of the others, which are up to a second old.

        What is shown here the others know from now on: a counter that somebody saw is not seen lower at another process, which
        would pass for a restart.
        """
        return merge([self._tell(families), *self._others()])

    def merged_capacity(self, capacity: bytes) -> bytes:
        return merge_capacity([capacity, *(bytes(other.capacity) for other in self._others())])

    def say(self, word: bytes) -> None:
        try:
            self.lifeline.send(word)
        except OSError:
            return  # the supervisor is gone, and the loop is about to hear of it

    def on_readable(self, end: Callable[[], None]) -> None:
        """For the loop: the supervisor says nothing more, so this can only be its end."""
        try:
            if self.lifeline.recv(64):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        end()


def send_config(sock: socket.socket, config: Config) -> None:
    data = msgspec.json.encode(config)
    sock.sendall(len(data).to_bytes(_LENGTH_BYTES, "big") + data)


def receive_config(sock: socket.socket) -> Config:
    length = int.from_bytes(_read(sock, _LENGTH_BYTES), "big")
    return msgspec.json.decode(_read(sock, length), type=Config)


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise SystemExit(1)
        data += part
    return data


def main() -> int:
    index, lifeline_fd, shared_stats_fd, *mail_fds = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the supervisor
    lifeline = socket.socket(fileno=lifeline_fd)
    config = receive_config(lifeline)
    lifeline.setblocking(False)
    shared_stats = SharedStats(shared_stats_fd, config.server.processes + 1)
    inbox, *mailboxes = (socket.socket(fileno=fd) for fd in mail_fds)
    handoff = Handoff(index, inbox, mailboxes)
    from voiceserver.errors import VoiceServerError
    from voiceserver.server.run import serve_peer

    try:
        return serve_peer(config, Peer(index, lifeline, shared_stats, handoff))
    except VoiceServerError as error:
        print(f"voiceserver: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
