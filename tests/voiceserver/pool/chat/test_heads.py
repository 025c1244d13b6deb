"""What may come before an answer is bounded."""

from __future__ import annotations

import asyncio

import httpcore
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.pool.chat.heads import MAX_HEAD_BYTES, MAX_INTERIM, HeadLimit, HeadTooLong, bound_heads

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
BODY = b"data: {}\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)


def feed(limit: HeadLimit, data: bytes, step: int) -> None:
    for at in range(0, len(data), step):
        limit.feed(data[at : at + step])


@pytest.mark.parametrize("step", [1, 7, 65_536])
@given(before=st.integers(0, MAX_INTERIM), ends=st.sampled_from([b"\r\n", b"\n"]))
def test_an_answer_may_have_some_interim_answers_and_any_body(step: int, before: int, ends: bytes) -> None:
    limit = HeadLimit()
    head = (INTERIM * before + HEAD).replace(b"\r\n", ends)
    for _ in range(3):  # requests over one connection
        limit.expect()
        feed(limit, head + INTERIM * 99 + b"x" * MAX_HEAD_BYTES * 2, max(step, 7))


@pytest.mark.parametrize("step", [1, 7, 65_536])
@pytest.mark.parametrize(
    "endless",
    [
        INTERIM * (MAX_INTERIM + 1),
        b"HTTP/1.1 103 Early Hints\nLink: <%s>\n\n" % (b"x" * 9_000) * 4,
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * MAX_HEAD_BYTES,
        b"HTTP/1.1 " + b"2" * MAX_HEAD_BYTES,
    ],
)
def test_a_head_without_an_end_is_given_up(endless: bytes, step: int) -> None:
    with pytest.raises(HeadTooLong):
        feed(HeadLimit(), endless, step)


def test_a_switch_of_protocols_is_no_interim_answer() -> None:
    feed(HeadLimit(), b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + INTERIM * 99, 65_536)


def ask(*sent: bytes) -> bytes:
    async def run() -> bytes:
        transport = httpx.AsyncHTTPTransport()
        transport._pool._network_backend = httpcore.AsyncMockBackend(list(sent))
        async with httpx.AsyncClient(transport=bound_heads(transport)) as client:
            return (await client.post("http://x/v1", content=b"{}")).content

    return asyncio.run(run())


def test_the_client_of_the_library_has_the_limit() -> None:
    assert ask(INTERIM * 3 + HEAD[:9], HEAD[9:], BODY) == BODY
    with pytest.raises(httpx.RemoteProtocolError, match="has no end"):
        ask(INTERIM * 2_000, HEAD, BODY)
