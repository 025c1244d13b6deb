"""The worker process of the ring fault tests: sends every request back as a result, until its lifeline ends.

``python ring_peer.py PLATFORM SEGMENT_FD REQUEST_BELL_FD RESULT_BELL_FD LIFELINE_FD``
"""

from __future__ import annotations

import os
import sys

from voiceserver_workers.ipc.channel import WorkerEnd
from voiceserver_workers.ipc.messages import ResultKind
from voiceserver_workers.ipc.platform import PORTABLE, choose_platform


def main(platform_name: str, *fds: str) -> None:
    *ring_fds, lifeline = map(int, fds)
    platform = PORTABLE if platform_name == PORTABLE.name else choose_platform()
    worker = WorkerEnd.attach(ring_fds, platform=platform)
    for fd in ring_fds:
        os.close(fd)
    while not worker.wait(1000, [lifeline]):
        while records := worker.receive(64):
            worker.record_step([record.stream for record in records], deadline_ns=0)
            for _, stream, turn, seq, payload, sent_ns in records:
                sent = worker.send(ResultKind.AUDIO, stream, turn, seq, payload, sent_ns, timeout_ms=20_000)
                if not sent:
                    raise SystemExit("the server took nothing for 20 s")
            worker.ring_bell()
            worker.record_idle()
    worker.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
