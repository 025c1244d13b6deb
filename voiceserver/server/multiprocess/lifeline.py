"""The socket between the supervisor and a child: the configuration goes down it, single bytes come up, and its end is the end of
the child."""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from voiceserver.config.schema import Config

# What a child says to its supervisor, a byte each. DRAIN: somebody pressed the button.
READY: Final = b"r"
DRAIN: Final = b"d"
_LENGTH_BYTES: Final = 8


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
