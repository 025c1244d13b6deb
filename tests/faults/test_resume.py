"""Connections break in every way we know, in the middle of a sentence: the transcript is the same, each word once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.e2e.serving import ServerProcess
from tests.faults.calling import Call, speech, with_fault
from tests.faults.chatting import Chat
from tests.faults.proxy import Proxy
from voiceserver.events.events import InputCommitted, ReplyStarted, TranscriptFinal
from voiceserver_clients.voice import Reconnect

EAGER = Reconnect(attempts=20, first_ms=20, longest_ms=200)


def assert_the_same(call: Call, undisturbed: Call, reconnects: int) -> None:
    assert call.finals == undisturbed.finals
    assert call.reply_text == undisturbed.reply_text
    assert call.reply_bytes == undisturbed.reply_bytes
    assert call.endings == ["completed"]
    assert call.turns == 1
    assert (call.reconnects, call.lost_ms) == (reconnects, 0)
    assert [ready.is_resumed for ready in call.readies] == [False] + [True] * reconnects
    assert len({ready.resume_token for ready in call.readies}) == reconnects + 1
    call.assert_books_balance()


@pytest.mark.parametrize("cuts_ms", [(700,), (400, 900, 1_400, 2_500)], ids=["once", "four times"])
async def test_a_cut_in_mid_sentence(
    server: ServerProcess, undisturbed: Call, cuts_ms: tuple[int, ...]
) -> None:
    async with Proxy(server.port, delay_ms=5) as proxy:

        async def fault(call: Call) -> None:
            for number, cut_ms in enumerate(cuts_ms, 1):
                await call.until(lambda cut_ms=cut_ms: call.said_ms >= cut_ms)  # type: ignore[misc]
                proxy.cut()
                await call.until(lambda number=number: len(call.readies) > number)  # type: ignore[misc]

        call = await with_fault(proxy.url, speech(), fault, reconnect=EAGER)
    assert_the_same(call, undisturbed, len(cuts_ms))


async def test_a_caller_that_is_away_when_its_transcript_comes(
    server: ServerProcess, undisturbed: Call
) -> None:
    async with Proxy(server.port) as proxy:

        async def fault(call: Call) -> None:
            await call.until(lambda: bool(call.of(InputCommitted)) or call.said_ms * 32 >= len(speech()))
            proxy.accepts = False
            proxy.cut()
            before = proxy.connections
            await call.until(lambda: proxy.connections > before + 1)
            proxy.accepts = True

        call = await with_fault(proxy.url, speech(), fault, reconnect=EAGER)
    assert_the_same(call, undisturbed, 1)


@pytest.mark.parametrize("kind", [TranscriptFinal, ReplyStarted])
async def test_what_was_under_way_when_the_connection_broke(
    server: ServerProcess, undisturbed: Call, kind: type
) -> None:
    """From some moment on nothing that the server says arrives; then the connection is cut."""
    async with Proxy(server.port) as proxy:

        async def fault(call: Call) -> None:
            await call.until(
                lambda: bool(call.of(InputCommitted if kind is TranscriptFinal else TranscriptFinal))
            )
            proxy.swallows_answers = True
            await asyncio.sleep(0.4)
            proxy.swallows_answers = False
            proxy.cut()

        call = await with_fault(proxy.url, speech(), fault, reconnect=EAGER)
    assert_the_same(call, undisturbed, 1)


@pytest.mark.parametrize("end", ["vanish", "swallow"])
async def test_the_network_goes_and_nobody_tells_the_server(
    server: ServerProcess, undisturbed: Call, end: str
) -> None:
    async with Proxy(server.port) as proxy:

        async def fault(call: Call) -> None:
            await call.until(lambda: call.said_ms >= 800)
            if end == "vanish":  # the caller is back while the server still holds the old connection
                proxy.vanish()
                proxy.is_swallowing = False
            else:  # both wait; the server's ping is the first to notice
                proxy.is_swallowing = True
                await asyncio.sleep(0.3)
                proxy.is_swallowing = False

        call = await with_fault(proxy.url, speech(), fault, reconnect=EAGER)
    assert_the_same(call, undisturbed, 1)


async def test_a_slow_line_is_only_slow(server: ServerProcess, undisturbed: Call) -> None:
    call = Call()

    async def nothing(call: Call) -> None:
        await call.until(lambda: bool(call.finals))

    async with Proxy(server.port, delay_ms=20, bytes_per_s=200_000) as proxy:
        call = await with_fault(proxy.url, speech(), nothing, reconnect=EAGER)
    assert_the_same(call, undisturbed, 0)


async def test_a_server_that_is_gone_for_good_is_told_as_such(server: ServerProcess) -> None:
    async with Proxy(server.port) as proxy:
        forget: Callable[[], None] = proxy.cut

        async def fault(call: Call) -> None:
            await call.until(lambda: call.said_ms >= 400)
            proxy.accepts = False
            forget()

        with pytest.raises(Exception, match="no answer from"):
            await with_fault(
                proxy.url, speech(), fault, reconnect=Reconnect(attempts=3, first_ms=10, longest_ms=20)
            )


def test_a_live_connection_whose_token_somebody_else_shows_is_told_so(server: ServerProcess) -> None:
    with Chat(server.url) as first:
        token = first.read_type("session.ready")["resume_token"]
        first.send(type="session.update", speaks=False)
        first.read_type("session.updated")
        with Chat(f"{server.url}?resume={token}") as second:
            assert second.read_type("session.ready")["is_resumed"]
            assert first.read_end() == 1000
            assert first.events[-1]["code"] == "session_taken_over"
            second.send(type="session.close")
            assert second.read_end() == 1000
            assert second.said("error") == []
