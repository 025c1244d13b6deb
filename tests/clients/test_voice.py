"""VoiceClient against a scripted server on a real socket."""

from __future__ import annotations

import asyncio
import math
import ssl
from pathlib import Path

import msgspec
import pytest

from tests.clients.native_server import Caller, native_server
from voiceserver.events.events import (
    ErrorEvent,
    InputCommit,
    ReplyAudio,
    ReplyCancel,
    ReplyDone,
    ReplyStarted,
    ServerBusy,
    ServerEvent,
    ServerReady,
    SessionClose,
    SessionReady,
)
from voiceserver_clients.connecting import (
    BadAddress,
    ConnectFailed,
    ConnectionLost,
    Reconnect,
    Refused,
    stream_url,
)
from voiceserver_clients.voice import VoiceClient

TLS = Path(__file__).resolve().parents[1] / "e2e" / "tls"
READY = SessionReady("s1", 16_000, 24_000, resume_token="token-1")
SECOND = 16_000 * 2  # bytes
EAGER = Reconnect(attempts=3, first_ms=1, longest_ms=2)


def busy(credit_ms: float) -> ServerBusy:
    return ServerBusy("stt", "no_free_stream", 300, credit_ms, 500)


async def wait_closed(caller: Caller) -> None:
    while True:
        if isinstance(await caller.receive(), SessionClose):
            return


async def all_events(client: VoiceClient) -> list[ServerEvent]:
    return [event async for event in client.events()]


class TestTurn:
    async def test_audio_goes_out_and_typed_events_come_back_until_the_close(self) -> None:
        async def script(caller: Caller) -> None:
            await caller.say(READY)
            await caller.receive_audio(SECOND)
            await caller.say(ReplyStarted(7), b"\x01\x00" * 240, ReplyDone(7, "completed"))
            await wait_closed(caller)

        async with native_server(script) as server, VoiceClient.connect(server.url) as client:
            ready = await client.wait_ready()
            await client.send_audio(bytes(SECOND))
            await client.finish()
            events = await all_events(client)
            assert ready.output_rate_hz == 24_000
            assert [type(event) for event in events] == [SessionReady, ReplyStarted, ReplyAudio, ReplyDone]
            assert events[2] == ReplyAudio(7, b"\x01\x00" * 240)
            assert client.sent_ms == 1_000
            assert server.callers[0].query == {"rate": "16000"}
            assert bytes(server.callers[0].audio) == bytes(SECOND)

    async def test_commands_are_the_events_of_the_wire(self) -> None:
        async def script(caller: Caller) -> None:
            await wait_closed(caller)

        async with native_server(script) as server, VoiceClient.connect(server.url) as client:
            await client.commit()
            await client.cancel_reply()
            await client.finish()
            assert await all_events(client) == []
            assert server.callers[0].events == [InputCommit(), ReplyCancel(), SessionClose()]

    async def test_event_of_a_newer_server_is_skipped(self) -> None:
        async def script(caller: Caller) -> None:
            await caller.socket.send('{"type": "weather.changed", "to": "rain"}')
            await caller.say(READY)

        async with native_server(script) as server, VoiceClient.connect(server.url) as client:
            assert await all_events(client) == [READY]

    async def test_half_a_sample_is_refused_before_it_leaves(self) -> None:
        async def script(caller: Caller) -> None:
            await wait_closed(caller)

        async with native_server(script) as server, VoiceClient.connect(server.url) as client:
            with pytest.raises(ValueError, match="whole number"):
                await client.send_audio(b"abc")


class TestBusy:
    async def test_sends_its_credit_and_then_waits_for_ready(self) -> None:
        told = asyncio.Event()

        async def script(caller: Caller) -> None:
            await caller.say(READY, busy(credit_ms=300))
            await caller.receive_audio(SECOND * 3 // 10)
            with pytest.raises(TimeoutError):  # nothing more arrives while the client is out of credit
                await asyncio.wait_for(caller.receive(), 0.1)
            told.set()
            await caller.say(ServerReady())
            await caller.receive_audio(SECOND)

        async with native_server(script) as server, VoiceClient.connect(server.url) as client:
            async for event in client.events():
                if isinstance(event, ServerBusy):
                    break
            await client.send_audio(bytes(SECOND))
            assert told.is_set()
            assert client.credit_ms == math.inf

    async def test_a_fresh_busy_gives_fresh_credit(self) -> None:
        async def script(caller: Caller) -> None:
            await caller.say(busy(0))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(caller.receive(), 0.05)
            await caller.say(busy(100))
            await caller.receive_audio(SECOND // 10)

        async with native_server(script) as server, VoiceClient.connect(server.url) as client:
            async for _ in client.events():
                break
            await client.send_audio(bytes(SECOND // 10))
            assert client.sent_ms == 100


class TestRefusal:
    async def test_503_carries_reason_and_retry_time(self) -> None:
        body = '{"error": {"code": "capacity_exhausted", "message": "all 8 places are taken"}}'
        async with native_server(wait_closed, refusals=((503, "4", body),)) as server:
            with pytest.raises(Refused) as caught:
                await VoiceClient.connect(server.url).__aenter__()
        assert (caught.value.reason, caught.value.retry_after_ms) == ("all 8 places are taken", 4_000)

    async def test_other_statuses_are_failures_with_their_text(self) -> None:
        async with native_server(wait_closed, refusals=((400, "", "rate must be 8000 to 48000"),)) as server:
            with pytest.raises(ConnectFailed, match="rate must be") as caught:
                await VoiceClient.connect(server.url, rate_hz=1).__aenter__()
        assert caught.value.status == 400

    async def test_nobody_listens(self) -> None:
        async with native_server(wait_closed) as server:
            url = server.url
        with pytest.raises(ConnectFailed, match="no answer"):
            await VoiceClient.connect(url).__aenter__()

    async def test_over_tls_the_certificate_is_checked(self) -> None:
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_tls.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
        async with native_server(wait_closed, tls=server_tls) as server:
            with pytest.raises(ConnectFailed, match="certificate"):
                await VoiceClient.connect(server.url).__aenter__()
            trusts = ssl.create_default_context(cafile=TLS / "cert.pem")
            async with VoiceClient.connect(server.url, tls=trusts):
                pass
        assert len(server.callers) == 1

    async def test_not_a_websocket_address(self) -> None:
        with pytest.raises(BadAddress, match="not a ws://"):
            await VoiceClient.connect("http://127.0.0.1:1/").__aenter__()

    async def test_error_and_close_1013_is_a_refusal(self) -> None:
        async def script(caller: Caller) -> None:
            await caller.say(busy(0), ErrorEvent("capacity_exhausted", "no place for you", retryable=True))
            await caller.socket.close(1013)

        async with native_server(script) as server, VoiceClient.connect(server.url) as client:
            with pytest.raises(Refused, match="no place for you") as caught:
                await all_events(client)
            assert caught.value.retry_after_ms == 500

    async def test_the_error_itself_may_say_when_to_come_back(self) -> None:
        async def script(caller: Caller) -> None:
            await caller.say(ErrorEvent("at_capacity", "full", retryable=True, retry_after_ms=1_250.0))
            await caller.socket.close(1013)

        async with native_server(script) as server, VoiceClient.connect(server.url) as client:
            with pytest.raises(Refused) as caught:
                await all_events(client)
            assert caught.value.retry_after_ms == 1_250


class TestLoss:
    async def test_without_a_policy_the_loss_is_raised_everywhere(self) -> None:
        async def script(caller: Caller) -> None:
            await caller.say(READY)
            caller.socket.transport.abort()

        async with native_server(script) as server, VoiceClient.connect(server.url) as client:
            with pytest.raises(ConnectionLost) as caught:
                await all_events(client)
            assert caught.value.code == 1006
            with pytest.raises(ConnectionLost):
                await client.send_audio(bytes(2))
            with pytest.raises(ConnectionLost):
                await client.commit()

    async def test_ready_that_never_comes_raises_what_came_instead(self) -> None:
        async def script(caller: Caller) -> None:
            await caller.socket.close(1012, "restarting")

        async with native_server(script) as server, VoiceClient.connect(server.url) as client:
            with pytest.raises(ConnectionLost, match="restarting"):
                await client.wait_ready()

    async def test_resume_sends_again_from_what_the_server_has(self) -> None:
        audio = b"".join(number.to_bytes(2, "little") for number in range(16_000))
        kept_ms = 350.0

        async def first(caller: Caller) -> None:
            await caller.say(READY)
            await caller.receive_audio(SECOND // 2)
            caller.socket.transport.abort()

        async def second(caller: Caller) -> None:
            await caller.say(
                SessionReady("s1", 16_000, 24_000, "token-2", is_resumed=True, received_ms=kept_ms)
            )
            await caller.receive_audio(SECOND - int(SECOND * kept_ms / 1000))
            await wait_closed(caller)

        async with (
            native_server(first, second) as server,
            VoiceClient.connect(server.url, reconnect=EAGER) as client,
        ):
            await client.wait_ready()
            await client.send_audio(audio[: SECOND // 2])
            await client.send_audio(audio[SECOND // 2 :])
            await client.finish()
            readies = [event for event in await all_events(client) if isinstance(event, SessionReady)]
            assert server.callers[1].query == {"rate": "16000", "resume": "token-1", "after": "0"}
            heard = bytes(server.callers[0].audio)[: int(SECOND * kept_ms / 1000)] + bytes(
                server.callers[1].audio
            )
            assert heard == audio
            assert [ready.is_resumed for ready in readies] == [False, True]
            assert (client.reconnects, client.lost_ms) == (1, 0)

    async def test_a_server_that_forgot_starts_anew_and_the_loss_is_told(self) -> None:
        async def first(caller: Caller) -> None:
            await caller.say(READY)
            await caller.receive_audio(SECOND // 2)
            caller.socket.transport.abort()

        async def second(caller: Caller) -> None:
            await caller.say(SessionReady("s2", 16_000, 24_000, "token-2"))
            await wait_closed(caller)

        async with (
            native_server(first, second) as server,
            VoiceClient.connect(server.url, reconnect=EAGER) as client,
        ):
            await client.send_audio(bytes(SECOND // 2))
            await client.finish()
            await all_events(client)
            assert client.lost_ms == 500

    async def test_a_session_that_is_gone_is_followed_by_a_new_one(self) -> None:
        async def first(caller: Caller) -> None:
            await caller.say(READY)
            await caller.receive()
            caller.socket.transport.abort()

        async def second(caller: Caller) -> None:
            await caller.say(SessionReady("s2", 16_000, 24_000, "token-2"))
            await wait_closed(caller)

        async with (
            native_server(first, second) as server,
            VoiceClient.connect(server.url, reconnect=EAGER) as client,
        ):
            await client.wait_ready()
            server.refusals[:] = [(410, "", "expired")]
            await client.send_audio(bytes(2))
            await client.finish()
            readies = [event for event in await all_events(client) if isinstance(event, SessionReady)]
            assert [ready.session_id for ready in readies] == ["s1", "s2"]
            assert "resume" not in server.callers[1].query

    async def test_gives_up_after_its_attempts_with_the_servers_last_word(self) -> None:
        async def script(caller: Caller) -> None:
            await caller.say(READY)
            await caller.receive()
            caller.socket.transport.abort()

        async with (
            native_server(script) as server,
            VoiceClient.connect(server.url, reconnect=EAGER) as client,
        ):
            await client.wait_ready()
            server.refusals[:] = [(503, "0", f"full, attempt {number}") for number in range(1, 4)]
            await client.send_audio(bytes(2))
            with pytest.raises(Refused, match="attempt 3"):
                await all_events(client)
            assert server.refusals == []

    async def test_a_resume_that_is_forbidden_is_not_tried_again(self) -> None:
        async def script(caller: Caller) -> None:
            await caller.say(READY)
            await caller.receive()
            caller.socket.transport.abort()

        async with (
            native_server(script) as server,
            VoiceClient.connect(server.url, reconnect=EAGER) as client,
        ):
            await client.wait_ready()
            server.refusals[:] = [(403, "", "this token was used before"), (503, "0", "never asked")]
            await client.send_audio(bytes(2))
            with pytest.raises(ConnectFailed, match="used before"):
                await all_events(client)
            assert len(server.refusals) == 1

    @pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
    def test_delay_never_undercuts_the_server(self, draw: float) -> None:
        policy = Reconnect(first_ms=100, longest_ms=1_000)
        assert policy.delay_ms(0, 4_000, draw=draw) >= 4_000
        assert policy.delay_ms(30, draw=draw) <= 1_000


def test_stream_url_keeps_what_the_caller_put_there() -> None:
    assert stream_url("ws://h:1", 8_000) == "ws://h:1/v1/stream?rate=8000"
    assert (
        stream_url("ws://h:1/x?rate=44100", 8_000, "t/1", 7) == "ws://h:1/x?rate=44100&resume=t%2F1&after=7"
    )


class TestControlEvents:
    async def test_what_was_lost_with_the_connection_is_sent_again_in_its_place(self) -> None:
        """A commit between two stretches of audio: both of them, and what belongs between, come once."""

        async def first(caller: Caller) -> None:
            await caller.say(READY)
            await caller.receive_audio(SECOND)
            caller.socket.transport.abort()

        async def second(caller: Caller) -> None:
            ready = SessionReady("s1", 16_000, 24_000, "token-2", is_resumed=True, received_ms=250.0)
            await caller.say(msgspec.structs.replace(ready, received_events=1))
            while not (caller.events and isinstance(caller.events[-1], SessionClose)):
                order.append(await caller.receive())

        order: list[object] = []
        async with (
            native_server(first, second) as server,
            VoiceClient.connect(server.url, reconnect=EAGER) as client,
        ):
            await client.wait_ready()
            await client.cancel_reply()
            await client.send_audio(bytes(SECOND // 2))
            await client.commit()
            await client.send_audio(bytes(SECOND // 2))
            await client.finish()
            await all_events(client)
        sizes = [len(one) if isinstance(one, bytes) else type(one) for one in order]
        at = sizes.index(InputCommit)
        assert sum(size for size in sizes[:at] if isinstance(size, int)) == SECOND // 4
        assert sum(size for size in sizes[at:] if isinstance(size, int)) == SECOND // 2
        assert [size for size in sizes if not isinstance(size, int)] == [InputCommit, SessionClose]

    async def test_what_the_server_has_is_not_sent_again(self) -> None:
        async def first(caller: Caller) -> None:
            await caller.say(READY)
            while len(caller.events) < 2:
                await caller.receive()
            caller.socket.transport.abort()

        async def second(caller: Caller) -> None:
            ready = SessionReady("s1", 16_000, 24_000, "token-2", is_resumed=True, received_ms=500.0)
            await caller.say(msgspec.structs.replace(ready, received_events=2))
            await wait_closed(caller)

        async with (
            native_server(first, second) as server,
            VoiceClient.connect(server.url, reconnect=EAGER) as client,
        ):
            await client.wait_ready()
            await client.send_audio(bytes(SECOND // 2))
            await client.commit()
            await client.cancel_reply()
            await client.finish()
            await all_events(client)
            assert server.callers[1].events == [SessionClose()]
            assert not server.callers[1].audio

    async def test_a_new_session_is_told_what_the_old_one_was_not(self) -> None:
        async def first(caller: Caller) -> None:
            await caller.say(READY, busy(0))
            await caller.receive()
            caller.socket.transport.abort()

        async def second(caller: Caller) -> None:
            await caller.say(SessionReady("s2", 16_000, 24_000, "token-2"))
            await wait_closed(caller)

        async with (
            native_server(first, second) as server,
            VoiceClient.connect(server.url, reconnect=EAGER) as client,
        ):
            await client.wait_ready()
            await client.cancel_reply()
            sending = asyncio.create_task(client.send_audio(bytes(SECOND // 2)))
            await sending
            await client.commit()
            await client.finish()
            await all_events(client)
            assert server.callers[1].events == [InputCommit(), SessionClose()]


class TestEnd:
    @pytest.mark.parametrize(("code", "words"), [(1011, "made its worker fail"), (1008, "not read in time")])
    async def test_a_session_that_the_server_has_ended_is_not_begun_again(
        self, code: int, words: str
    ) -> None:
        async def script(caller: Caller) -> None:
            await caller.say(READY, ErrorEvent("ended", words))
            await caller.socket.close(code, "ended")

        async with (
            native_server(script) as server,
            VoiceClient.connect(server.url, reconnect=EAGER) as client,
        ):
            with pytest.raises(ConnectionLost, match=words) as caught:
                await all_events(client)
            assert caught.value.code == code
            assert len(server.callers) == 1
