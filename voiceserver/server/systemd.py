"""One datagram to the supervisor of services, where it asks for that (``sd_notify(3)``)."""

from __future__ import annotations

import contextlib
import socket

from voiceserver.config.environment import environment


def tell_systemd(state: str) -> None:
    """``READY=1``, ``STOPPING=1``. Never waits and never raises; nothing without ``$NOTIFY_SOCKET``."""
    path = environment().get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(state.encode(), address)
