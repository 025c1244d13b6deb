"""One server process among several:
``python -m voiceserver.server.multiprocess.child SUPERVISOR_PID INDEX LIFELINE_FD STATS_FD USAGE_FD MAILBOX_FD...``,
where the first mailbox is the read end of its own.

It gets its configuration over the lifeline, says ``r`` when it is ready and ``d`` when somebody asked to drain, and beats in the
shared memory while its loop runs. It ends at once when its supervisor is gone: the kernel sees to that where it can, also
for a process that is stopped; elsewhere the end of the lifeline tells.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from voiceserver.errors import VoiceServerError
from voiceserver.observability.log_writer import last_words
from voiceserver.server.multiprocess.handoff import Handoff
from voiceserver.server.multiprocess.lifeline import receive_config
from voiceserver.server.multiprocess.peer import USAGE_BYTES, Peer
from voiceserver.server.multiprocess.shared_stats import SharedStats
from voiceserver.server.run import serve_peer
from voiceserver_workers.ipc.platform import die_with_parent


def main() -> int:
    parent_pid, index, lifeline_fd, stats_fd, usage_fd, *mail_fds = map(int, sys.argv[1:])
    # A terminal's Ctrl-C is for the supervisor.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent_pid)
    lifeline = socket.socket(fileno=lifeline_fd)
    config = receive_config(lifeline)
    lifeline.setblocking(False)
    places = config.server.processes + 1
    stats, usage = SharedStats(stats_fd, places), SharedStats(usage_fd, places, USAGE_BYTES)
    own_mailbox, *mailboxes = (socket.socket(fileno=fd) for fd in mail_fds)

    def is_silent(process: int) -> bool:
        return stats.is_silent(process, time.monotonic_ns())

    handoff = Handoff(index, own_mailbox, mailboxes, is_silent)
    try:
        return serve_peer(config, Peer(index, lifeline, stats, handoff, usage))
    except VoiceServerError as error:
        last_words(f"voiceserver: error: {error}")
        return 2


if __name__ == "__main__":
    os._exit(main())
