"""The opening handshake, sans I/O: one request head in, the 101 out. ``websockets`` is the judge of it.

permessage-deflate is never negotiated: audio does not shrink, and a compressor costs more memory than a session.
"""

from __future__ import annotations

import logging
from typing import Final

from websockets.datastructures import Headers
from websockets.exceptions import HeaderLineTooLong, RequestLineTooLong, TooManyHeaders
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

MAX_HEAD_BYTES: Final = 16_384
HEAD_END: Final = b"\r\n\r\n"
_METHODS: Final = (b"POST ", b"PUT ", b"DELETE ", b"PATCH ", b"HEAD ", b"OPTIONS ", b"TRACE ", b"CONNECT ")
_log: Final = logging.getLogger("voiceserver.websockets")


class BadRequest(Exception):
    """No handshake will come of this request. ``status``, ``code`` and ``message`` are what the client is told."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Handshake:
    """A well-formed request head. ``path`` includes the query."""

    __slots__ = ("_protocol", "_request", "headers", "is_upgrade", "method", "path")

    def __init__(self, protocol: ServerProtocol, request: Request) -> None:
        self._protocol = protocol
        self._request = request
        self.method = request.method
        self.path = request.path
        self.headers: Headers = request.headers
        self.is_upgrade = any("websocket" in value.lower() for value in request.headers.get_all("Upgrade"))

    def accept(self, subprotocol: str | None) -> bytes:
        """The 101 response, selecting ``subprotocol`` if the client offers it. Raises BadRequest."""
        if subprotocol is not None and _is_offered(subprotocol, self.headers):
            self._protocol.available_subprotocols = [Subprotocol(subprotocol)]
        response = self._protocol.accept(self._request)
        if response.status_code != 101:
            detail = str(self._protocol.handshake_exc)
            raise BadRequest(
                response.status_code, "bad_handshake", f"The WebSocket handshake is wrong: {detail}."
            )
        return response.serialize()


def read_handshake(head: bytes) -> Handshake:
    """Parse a whole request head, up to and with its empty line. Raises BadRequest."""
    protocol = ServerProtocol(logger=_log)
    protocol.receive_data(head)
    for event in protocol.events_received():
        if isinstance(event, Request):
            return Handshake(protocol, event)
    error = protocol.handshake_exc
    if isinstance(error, RequestLineTooLong):
        raise BadRequest(414, "request_too_large", "The request line is too long.")
    if isinstance(error, HeaderLineTooLong | TooManyHeaders):
        raise BadRequest(431, "request_too_large", "The request headers are too large.")
    if head.startswith(_METHODS):
        raise BadRequest(405, "method_not_allowed", "Only GET is answered here.")
    raise BadRequest(400, "bad_request", "This is not an HTTP/1.1 request without a body.")


def is_tls_hello(first: bytes) -> bool:
    """Whether a client speaks TLS: a handshake record of SSL 3 or TLS."""
    return first[:2] == b"\x16\x03"


def _is_offered(subprotocol: str, headers: Headers) -> bool:
    offered = ",".join(headers.get_all("Sec-WebSocket-Protocol"))
    return subprotocol in (name.strip() for name in offered.split(","))
