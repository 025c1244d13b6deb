"""WebSocket frame heads: the few bytes before a payload, as the short path reads them and the server writes them.

Only complete, unfragmented, masked frames of a caller are described here; every other frame belongs to the judge
(``voiceserver.transport.websocket``). Servers never mask, so what is built here is a head and nothing more.

====  =======================================================
byte  meaning
====  =======================================================
0     FIN bit and opcode; the reserved bits must be zero
1     MASK bit and a length of 0..125, or 126 / 127
2..   2 or 8 bytes of length after 126 / 127
..    4 bytes of mask, then the payload
====  =======================================================
"""

from __future__ import annotations

from typing import Final

TEXT: Final = 0x81
BINARY: Final = 0x82
PING: Final = 0x89
PONG: Final = 0x8A

# A second byte above this is a control frame that is too long, or has an extended length.
MASKED: Final = 0x80
SHORT_LENGTH: Final = 125
LENGTH_16: Final = 126 | MASKED

INCOMPLETE: Final = -1
UNUSUAL: Final = -2


def find_payload(data: bytes | bytearray, at: int, max_size: int) -> tuple[int, int]:  # hot
    """Where the payload of the frame at ``data[at]`` is.

    Gives ``(start, end)``; the four bytes before ``start`` are the mask. ``(INCOMPLETE, end)``: ``data`` must reach ``end``
    before it is worth asking again. ``(UNUSUAL, 0)``: not a frame for the short path, by the bytes seen so far.
    """
    have = len(data) - at
    if have < 2:
        return (INCOMPLETE, at + 2) if have and data[at] in _SHORT_PATH else (UNUSUAL, 0)
    head = data[at]
    length = data[at + 1] - MASKED
    if head not in _SHORT_PATH or length < 0:
        return UNUSUAL, 0
    if length <= SHORT_LENGTH:
        start = at + 6
    elif head >= PING:
        return UNUSUAL, 0
    elif length == SHORT_LENGTH + 1:
        if have < 4:
            return INCOMPLETE, at + 4
        length = data[at + 2] << 8 | data[at + 3]
        start = at + 8
    else:
        if have < 10:
            return INCOMPLETE, at + 10
        length = int.from_bytes(data[at + 2 : at + 10], "big")
        start = at + 14
    if length > max_size:
        return UNUSUAL, 0
    end = start + length
    return (start, end) if end - at <= have else (INCOMPLETE, end)


_SHORT_PATH: Final = frozenset((TEXT, BINARY, PING, PONG))


def build_head(head: int, length: int) -> bytes:  # hot
    """The unmasked head of a frame of ``length`` payload bytes."""
    if length <= SHORT_LENGTH:
        return bytes((head, length))
    if length < 65_536:
        return bytes((head, 126, length >> 8, length & 0xFF))
    return bytes((head, 127)) + length.to_bytes(8, "big")


def build_frame(message: str | bytes) -> bytes:  # hot
    """A whole message in one unmasked frame: text for ``str``, binary for ``bytes``."""
    if isinstance(message, str):
        payload = message.encode()
        return build_head(TEXT, len(payload)) + payload
    return build_head(BINARY, len(message)) + message
