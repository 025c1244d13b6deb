"""One server process among several: ``python -m voiceserver.server.multiprocess.child INDEX LIFELINE_FD STATS_FD MAILBOX_FD...``,
where the first mailbox is the read end of its own.

It gets its configuration over the lifeline, says ``r`` when it is ready and ``d`` when somebody asked to drain, and ends at once
when the lifeline ends: then its supervisor is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from voiceserver.errors import VoiceServerError
from voiceserver.server.multiprocess.handoff import Handoff
from voiceserver.server.multiprocess.lifeline import receive_config
from voiceserver.server.multiprocess.peer import Peer
from voiceserver.server.multiprocess.shared_stats import SharedStats
from voiceserver.server.run import serve_peer


def main() -> int:
    index, lifeline_fd, shared_stats_fd, *mail_fds = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the supervisor
    lifeline = socket.socket(fileno=lifeline_fd)
    config = receive_config(lifeline)
    lifeline.setblocking(False)
    shared_stats = SharedStats(shared_stats_fd, config.server.processes + 1)
    own_mailbox, *mailboxes = (socket.socket(fileno=fd) for fd in mail_fds)
    handoff = Handoff(index, own_mailbox, mailboxes)

    try:
        return serve_peer(config, Peer(index, lifeline, shared_stats, handoff))
    except VoiceServerError as error:
        print(f"voiceserver: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
