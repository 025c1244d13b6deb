"""Where the server listens: ``::`` is every address of this machine, of both families, as ``0.0.0.0`` is of the older one.

An event loop binds ``::`` for IPv6 alone, so that socket is made here.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable


def is_both_families(host: str) -> bool:
    return host.strip("[]") == "::"


def take_both_families(sock: socket.socket) -> None:
    """Have an IPv6 socket that is not bound yet take callers of IPv4 as well."""
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)


def dual_stack(port: int, *, reuse_port: bool) -> socket.socket:
    """Bound to every address. Raises OSError."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        take_both_families(sock)
        sock.bind(("::", port))
    except OSError:
        sock.close()
        raise
    return sock


def addresses(sockets: Iterable[socket.socket]) -> list[str]:
    """What is bound, for the log: ``127.0.0.1:8080``, ``[::1]:8080``; both families as ``[::]:8080 and 0.0.0.0:8080``."""
    bound = []
    for sock in sockets:
        host, port = sock.getsockname()[:2]
        bound.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        if sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            bound.append(f"0.0.0.0:{port}")
    return bound
