"""The plain handshake may not be told from the standard's judge: the same head gives the same answer, header for header."""

from __future__ import annotations

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.http11 import Request
from websockets.streams import StreamReader

from voiceserver.transport import handshake as hs
from voiceserver.transport.handshake import BadRequest, Handshake, read_handshake

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
PLAIN = {
    "Host": "test",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}
_DATE = re.compile(rb"Date: [^\r]*\r\n")

Answer = tuple[object, ...]


def judged(head: bytes, subprotocol: str | None) -> Answer:
    """What the judge says, without the plain way."""
    reader = StreamReader()
    if head.startswith(hs._METHODS):  # the judge knows no bodies
        head = hs._CHUNKED.sub(b"", hs._LENGTH.sub(b"", head))
    reader.feed_data(head)
    reader.feed_eof()
    try:
        next(Request.parse(reader.read_line))
    except StopIteration as done:
        request = done.value
        return answer_of(Handshake(request, "", request.method, request.protocol), subprotocol)
    except Exception:
        return ("unreadable",)
    raise AssertionError("a head without an end")


def ours(head: bytes, subprotocol: str | None) -> Answer:
    try:
        handshake = read_handshake(head)
    except BadRequest:
        return ("unreadable",)
    return answer_of(handshake, subprotocol)


def answer_of(handshake: Handshake, subprotocol: str | None) -> Answer:
    read = (handshake.method, handshake.path, handshake.is_upgrade, list(handshake.headers.raw_items()))
    try:
        return (*read, _DATE.sub(b"", handshake.accept(subprotocol)))
    except BadRequest as error:
        return (*read, error.status, error.message)


def head_of(lines: list[tuple[str, str]], request_line: str = "GET /v1/stream?rate=16000 HTTP/1.1") -> bytes:
    text = "".join(f"{name}:{value}\r\n" for name, value in lines)
    return f"{request_line}\r\n{text}\r\n".encode("latin-1")


spaces = st.sampled_from(["", " ", "  ", "\t", " \t "])
oddities = st.sampled_from(
    [
        ("Upgrade", "WebSocket"),
        ("Upgrade", "websocket, h2c"),
        ("Upgrade", "h2c"),
        ("Connection", "keep-alive, Upgrade"),
        ("Connection", "keep-alive"),
        ("Connection", "close, upgrade,"),
        ("Connection", '"Upgrade'),
        ("Sec-WebSocket-Key", KEY[:-1]),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZR=="),
        ("Sec-WebSocket-Key", "a" * 24),
        ("Sec-WebSocket-Key", ""),
        ("Sec-WebSocket-Version", "8"),
        ("Sec-WebSocket-Version", "13, 8"),
        ("Sec-WebSocket-Protocol", "voice"),
        ("Sec-WebSocket-Protocol", "other, voice"),
        ("Sec-WebSocket-Protocol", ",,"),
        ("Sec-WebSocket-Protocol", "a b"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
        ("Sec-WebSocket-Extensions", "=;"),
        ("Origin", "https://example.org"),
        ("Content-Length", "0"),
        ("Content-Length", "5"),
        ("Transfer-Encoding", "chunked"),
        ("Cookie", "a=b; c=d"),
        ("X-Latin", "caf\xe9"),
        ("X-Control", "a\x01b"),
        ("Bad Name", "x"),
        ("", "x"),
        ("X-Long", "x" * 9_000),
    ]
)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    lines = [(name.lower() if draw(st.booleans()) else name, value) for name, value in PLAIN.items()]
    for oddity in draw(st.lists(oddities, max_size=3)):
        if draw(st.booleans()):  # instead of the proper one
            lines = [line for line in lines if line[0].lower() != oddity[0].lower()]
        lines.insert(draw(st.integers(0, len(lines))), oddity)
    if draw(st.booleans()):
        lines = draw(st.permutations(lines))
    if lines and draw(st.integers(0, 5)) == 0:
        lines.pop(draw(st.integers(0, len(lines) - 1)))
    spaced = [(name, draw(spaces) + value + draw(spaces)) for name, value in lines]
    request_line = draw(
        st.sampled_from(
            ["GET /v1/stream HTTP/1.1"] * 6
            + ["GET /v1/stream HTTP/1.0", "GET  / HTTP/1.1", "GET /\xe9 HTTP/1.1", "PUT / HTTP/1.1", "GET /"]
        )
    )
    return head_of(spaced, request_line)


@given(heads(), st.sampled_from([None, "voice"]))
@example(head_of(list(PLAIN.items())), None)
@example(head_of([*PLAIN.items(), *[("X", "y")] * 123]), None)
@example(head_of([*PLAIN.items(), *[("X", "y")] * 124]), None)
@settings(max_examples=600, deadline=None)
def test_nobody_can_tell_who_read_the_handshake(head: bytes, subprotocol: str | None) -> None:
    assert ours(head, subprotocol) == judged(head, subprotocol)


@given(heads(), st.data())
@settings(max_examples=300, deadline=None)
def test_nor_that_of_a_damaged_one(head: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(head) - 5))
    damaged = head[:at] + bytes([data.draw(st.integers(0, 255))]) + head[at + 1 :]
    assert ours(damaged, None) == judged(damaged, None)


def test_the_handshakes_of_common_clients_are_plain() -> None:
    browser = {
        **PLAIN,
        "Connection": "keep-alive, Upgrade",
        "Origin": "https://example.org",
        "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
    }
    for lines in (PLAIN, browser):
        head = head_of([(name, f" {value}") for name, value in lines.items()])
        plain = hs._PLAIN.fullmatch(head)
        assert plain is not None
        handshake = hs._read_plain(plain)
        assert handshake is not None
        assert handshake._key == KEY
