"""The opening handshake, sans I/O: one request head in, the 101 out. ``websockets`` decides what is well-formed.

Any version from 13 on will do, because clients such as the OpenAI SDK hold it back. What later versions added is done here for
all: bounds of lines, methods other than GET, and HTTP/1.0, which is answered but not upgraded.

What nearly every client sends is read and accepted here, in a fraction of the time; the rest goes to ``websockets``.
``tests/laws/test_handshake_differential.py`` holds the two against each other.

permessage-deflate is never negotiated: audio does not shrink, and a compressor costs more memory than a session.
"""

from __future__ import annotations

import logging
import re
from typing import Final, cast

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeaderValue, SecurityError
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.streams import StreamReader
from websockets.typing import Subprotocol
from websockets.utils import accept_key

MAX_HEAD_BYTES: Final = 16_384
MAX_BODY_BYTES: Final = 65_536
MAX_LINE_BYTES: Final = 8_192  # with its line end, as ``websockets`` counts
MAX_HEADERS: Final = 128
HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*(?=\r\n)", re.IGNORECASE)
_PROTOCOLS: Final = ("HTTP/1.1", "HTTP/1.0")
_METHODS: Final = (b"POST ", b"PUT ", b"DELETE ", b"PATCH ", b"HEAD ", b"OPTIONS ", b"TRACE ", b"CONNECT ")
_DIGITS: Final = re.compile(rb"[0-9]{1,15}")
# A GET of HTTP/1.1 whose header lines are of the most ordinary kind.
_PLAIN: Final = re.compile(
    rb"GET ([!-~]{1,4096}) HTTP/1\.1\r\n((?:[-!#$%&'*+.^_`|~0-9a-zA-Z]{1,128}:[\x20-\x7e]{0,4096}\r\n){1,100})\r\n"
)
_HAS_BODY: Final = ("content-length", "transfer-encoding")
_SINGLE: Final = ("sec-websocket-key", "sec-websocket-version", "origin", "host")
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")
_ACCEPTED: Final = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)
_HINTS: Final = ("Upgrade", "Allow")  # of the headers of a refusal, those that say what to do instead
_VERSION: Final = ("Sec-WebSocket-Version", "13")
# Only its ``accept`` is used, which keeps nothing of one request that the next could meet.
_strict_parser: Final = ServerProtocol(logger=logging.getLogger("voiceserver.websockets"))
# Before version 17 a header is set by this name, also without validation.
_set_header: Final = getattr(Headers, "set_insecure", Headers.__setitem__)


class BadRequest(Exception):
    """No handshake will come of this request. ``status``, ``code``, ``message`` and ``headers`` are what the client is told."""

    def __init__(self, status: int, code: str, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers


class Handshake:
    """A well-formed request head. ``path`` includes the query."""

    __slots__ = ("_key", "_protocol", "_request", "headers", "is_upgrade", "method", "path")

    def __init__(
        self, request: Request, key: str = "", method: str = "GET", protocol: str = "HTTP/1.1"
    ) -> None:
        """key: ``websockets`` would accept this request with this key, and select no subprotocol."""
        self._request = request
        self._key = key
        self._protocol = protocol
        self.method = method
        self.path = request.path
        self.headers: Headers = request.headers
        self.is_upgrade = bool(key) or any(
            "websocket" in value.lower() for value in request.headers.get_all("Upgrade")
        )

    def accept(self, subprotocol: str | None) -> bytes:
        """The 101 response, selecting ``subprotocol`` if the client offers it. Raises BadRequest."""
        if self._key:  # it offers no subprotocols
            return f"{_ACCEPTED}{accept_key(self._key)}\r\n\r\n".encode()
        self._check_kind()
        is_offered = subprotocol is not None and _is_offered(subprotocol, self.headers)
        _strict_parser.available_subprotocols = (
            [Subprotocol(subprotocol)] if subprotocol and is_offered else None
        )
        _strict_parser.handshake_exc = None
        response = _strict_parser.accept(self._request)
        if response.status_code != 101:
            error = cast("Exception | None", _strict_parser.handshake_exc)
            status: int = response.status_code
            headers = [(name, response.headers[name]) for name in _HINTS if name in response.headers]
            if isinstance(error, InvalidHeaderValue) and error.name == _VERSION[0]:  # RFC 6455, 4.4
                status, headers = 426, [("Upgrade", "websocket"), _VERSION]
            raise BadRequest(status, "bad_handshake", f"The WebSocket handshake is wrong: {error}.", *headers)
        return response.serialize()

    def _check_kind(self) -> None:
        """Raises BadRequest for what is no GET of HTTP/1.1."""
        if self.method != "GET":
            message = f"The WebSocket handshake is wrong: unsupported HTTP method: {self.method}."
            raise BadRequest(405, "bad_handshake", message, ("Allow", "GET"))
        if self._protocol != "HTTP/1.1":
            message = f"The WebSocket handshake is wrong: unsupported HTTP version: {self._protocol}."
            raise BadRequest(505, "bad_handshake", message)


def read_handshake(head: bytes) -> Handshake:
    """Parse a whole request head, up to and with its empty line. Raises BadRequest."""
    plain = _PLAIN.fullmatch(head)
    handshake = _read_plain(plain) if plain is not None else None
    if handshake is not None:
        return handshake
    if head.startswith(_METHODS):
        # The parser knows no bodies. That of a POST was read already, and no other method is answered with one.
        head = _CHUNKED.sub(b"", _LENGTH.sub(b"", head))
    line, _, rest = head.partition(b"\r\n")
    _check_bounds(line, rest)
    reader = StreamReader()
    try:
        method, path, protocol = line.decode("ascii").split(" ", 2)
        if protocol not in _PROTOCOLS:
            raise ValueError(protocol)
        # Old versions read nothing but GET and HTTP/1.1.
        reader.feed_data(f"GET {path} HTTP/1.1\r\n".encode() + rest)
        reader.feed_eof()
        next(Request.parse(reader.read_line))
    except StopIteration as done:
        if len(done.value.headers.get_all("Host")) > 1:  # RFC 9112, 3.2
            raise BadRequest(400, "bad_request", "There is more than one Host header.") from None
        return Handshake(done.value, "", method, protocol)
    except (ValueError, EOFError, NotImplementedError, SecurityError):
        pass
    raise BadRequest(400, "bad_request", "This is not an HTTP/1.1 request without a body.")


def _check_bounds(line: bytes, rest: bytes) -> None:
    """Raises BadRequest for a request line or headers that are too long, or too many headers."""
    most = MAX_LINE_BYTES - len(b"\r\n")
    if len(line) > most:
        raise BadRequest(414, "request_too_large", "The request line is too long.")
    headers = rest.removesuffix(HEAD_END).split(b"\r\n")
    if len(headers) > MAX_HEADERS or any(len(header) > most for header in headers):
        raise BadRequest(431, "request_too_large", "The request headers are too large.")


def _read_plain(plain: re.Match[bytes]) -> Handshake | None:
    """None: ``websockets`` must read it after all."""
    headers = Headers()
    found: dict[str, str] = {}
    for line in plain[2].decode().split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        value = value.strip(" ")
        lower = name.lower()
        if lower in found and lower in _SINGLE:
            return None
        found[lower] = "" if lower in found else value  # several of a kind are never plain
        _set_header(headers, name, value)
    if any(name in found for name in _HAS_BODY):
        return None
    request = Request(plain[1].decode(), headers)
    is_plain = (
        found.get("upgrade", "").lower() == "websocket"
        and found.get("connection", "").lower() in ("upgrade", "keep-alive, upgrade")
        and found.get("sec-websocket-version") == "13"
        and "sec-websocket-protocol" not in found
    )
    key = found.get("sec-websocket-key", "")
    return Handshake(request, key if is_plain and _KEY.fullmatch(key) else "")


def body_length(head: bytes) -> int:
    """How many bytes of body follow the head of a POST; 0 for anything else. Raises BadRequest."""
    if not head.startswith(b"POST "):
        return 0
    if _CHUNKED.search(head):
        message = "A body comes with a Content-Length here, not in chunks."
        raise BadRequest(411, "length_required", message)
    lengths = set(_LENGTH.findall(head))
    if len(lengths) > 1 or any(_DIGITS.fullmatch(length) is None for length in lengths):
        raise BadRequest(400, "bad_request", "Content-Length must be one number of bytes.")
    length = int(lengths.pop()) if lengths else 0
    if length > MAX_BODY_BYTES:
        raise BadRequest(413, "request_too_large", "The request body is too large.")
    return length


def is_tls_hello(first: bytes) -> bool:
    """Whether a client speaks TLS: a handshake record of SSL 3 or TLS."""
    return first[:2] == b"\x16\x03"


def _is_offered(subprotocol: str, headers: Headers) -> bool:
    offered = ",".join(headers.get_all("Sec-WebSocket-Protocol"))
    return subprotocol in (name.strip() for name in offered.split(","))
