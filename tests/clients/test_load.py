"""The load generator: its schedule on a manual clock, its frames against the standard's judge, and a real run."""

from __future__ import annotations

import asyncio
import io
from itertools import pairwise

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner
from websockets.frames import Frame
from websockets.protocol import State
from websockets.server import ServerProtocol

from tests.clients.native_server import Caller, native_server
from voiceserver.events.events import (
    Accounting,
    ReplyDone,
    ReplyStarted,
    ServerBusy,
    ServerReady,
    SessionClose,
    SessionClosing,
    SessionReady,
    SpeechStarted,
    SpeechStopped,
    TranscriptFinal,
)
from voiceserver_clients import load as load_module
from voiceserver_clients.callers import Schedule, Script, Tally
from voiceserver_clients.connecting import BadAddress, ConnectFailed
from voiceserver_clients.histogram import Histogram
from voiceserver_clients.load import Load, Plan, run_greeted, tally_from_json, tally_to_json, watch
from voiceserver_clients.load import load as load_command
from voiceserver_clients.load_processes import share_of
from voiceserver_clients.load_table import status_table
from voiceserver_clients.raw import BINARY, TEXT, RawConnection, build_frame
from voiceserver_clients.recording import Recording

SPEECH = Recording("speech", b"\x01\x00" * 16_000, 16_000)


class Member:
    def __init__(self) -> None:
        self.due_ms: list[float] = []

    def step(self, due_ms: float) -> None:
        self.due_ms.append(due_ms)


class TestSchedule:
    def test_each_member_is_due_once_a_period_however_late_the_clock(self) -> None:
        lateness = Histogram()
        schedule = Schedule(lambda: 0.0, lateness)
        members = [Member() for _ in range(7)]
        for member in members:
            schedule.join(member, 20)
        for now_ms in (3, 4, 90, 91, 200):  # the loop is held up from 4 to 90
            schedule.advance(now_ms)
        for member in members:
            assert len(member.due_ms) == 10
            assert [later - earlier for earlier, later in pairwise(member.due_ms)] == [20.0] * 9
        assert (
            lateness.max_ms == 108
        )  # of the tick at 92: counted from when the tick was due, not from when it ran

    def test_phases_spread(self) -> None:
        schedule = Schedule(lambda: 0.0, Histogram())
        members = [Member() for _ in range(1_000)]
        for member in members:
            schedule.join(member, 100)
        schedule.advance(100)
        per_tick = [
            sum(due == tick * 2.0 for member in members for due in member.due_ms) for tick in range(1, 51)
        ]
        assert sum(per_tick) == 1_000
        assert 15 <= min(per_tick) <= max(per_tick) <= 25

    def test_who_left_is_not_stepped(self) -> None:
        schedule = Schedule(lambda: 0.0, Histogram())
        member = Member()
        schedule.join(member, 20)
        schedule.advance(20)
        schedule.leave(member, 20)
        schedule.advance(100)
        assert len(member.due_ms) == 1


class TestFrames:
    @given(st.binary(max_size=70_000), st.sampled_from([TEXT, BINARY]))
    def test_judge_reads_what_was_built(self, payload: bytes, opcode: int) -> None:
        judge = ServerProtocol(state=State.OPEN, max_size=None)
        judge.receive_data(build_frame(opcode, payload))
        (frame,) = judge.events_received()
        assert isinstance(frame, Frame)
        assert (frame.opcode, bytes(frame.data), frame.fin) == (opcode, payload, True)

    @given(
        st.lists(st.tuples(st.sampled_from([TEXT, BINARY]), st.integers(0, 70_000)), max_size=6),
        st.lists(st.integers(1, 4_000), min_size=1, max_size=20),
    )
    def test_server_frames_are_read_however_they_are_split(
        self, messages: list[tuple[int, int]], cuts: list[int]
    ) -> None:
        heard: list[tuple[int, int]] = []

        class Listening(RawConnection):
            def on_text(self, payload: bytes) -> None:
                heard.append((TEXT, len(payload)))

            def on_binary(self, size: int) -> None:
                heard.append((BINARY, size))

        connection = Listening(b"")
        judge = ServerProtocol(state=State.OPEN)
        stream = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
        for opcode, size in messages:
            (judge.send_text if opcode == TEXT else judge.send_binary)(b"x" * size)
        stream += b"".join(judge.data_to_send())
        at = turn = 0
        while at < len(stream):
            size = cuts[turn % len(cuts)]
            connection.data_received(stream[at : at + size])
            at, turn = at + size, turn + 1
        assert heard == messages


class TestScript:
    def test_recordings_with_silence_in_whole_chunks(self) -> None:
        script = Script.build([SPEECH, SPEECH], chunk_ms=100, gap_ms=1_000)
        assert len(script.frames) == 2 * (10 + 10)
        assert {len(frame) for frame in script.frames} == {4 + 4 + 3_200}

    def test_nothing_to_say(self) -> None:
        with pytest.raises(ValueError, match="recording"):
            Script.build([], 20)


def test_tallies_travel_between_processes_and_add_up() -> None:
    first = Tally()
    first.count("turns", 3)
    first.count_failed("no answer")
    first.latencies["ping"].record(5)
    second = tally_from_json(tally_to_json(first))
    second.add(first)
    assert second.counts["turns"] == 6
    assert (second.counts["failed"], second.reasons) == (2, {"no answer": 2})
    assert second.latencies["ping"].count == 2
    assert second.latencies["ping"].max_ms == 5


@given(st.tuples(*[st.integers(0, 50)] * 3), st.integers(1, 40))
def test_callers_are_dealt_evenly_to_the_processes(counts: tuple[int, int, int], processes: int) -> None:
    plan = Plan("ws://x", *counts)
    shares = [share_of(plan, processes, index) for index in range(processes)]
    for name, count in zip(("talkers", "listeners", "connections"), counts, strict=True):
        assert sum(share[name] for share in shares) == count
    sizes = [sum(share.values()) for share in shares]
    assert max(sizes) - min(sizes) <= 1


async def converse(caller: Caller) -> None:
    """Ends a turn after 300 ms of audio, answers, is busy once, and closes with the caller's own accounting."""
    await caller.say(SessionReady("s", 16_000, 24_000))
    is_answered = False
    while not isinstance(await caller.receive(), SessionClose):
        if len(caller.audio) >= 32_000 * 3 // 10 and not is_answered:
            is_answered = True
            await caller.say(
                SpeechStarted(1, 0), SpeechStopped(1, 100, "commit"), TranscriptFinal(1, "hi"), ReplyStarted(1),
                b"\0\0" * 480, ReplyDone(1, "completed"), ServerBusy("stt", "slow", 300, 0, 500), ServerReady(),
            )  # fmt: skip
    heard_ms = len(caller.audio) / 32
    await caller.say(SessionClosing("client", Accounting(heard_ms, heard_ms, 0, 0)))
    await caller.socket.close()


class TestLoad:
    async def test_callers_of_every_kind_come_talk_and_are_counted_out(self) -> None:
        async with native_server(converse, refusals=((503, "3", ""), (500, "", ""))) as server:
            plan = Plan(
                server.url, 3, 2, 4, seconds=0.6, ramp_per_s=1_000, ping_ms=100, seed=5, recordings=(SPEECH,)
            )
            load = Load(plan)
            tally = await load.run()
            counts = tally.counts
            assert (counts["refused"], counts["failed"], counts["connected"]) == (1, 1, 7)
            assert (counts["greeted"], tally.reasons) == (7, {"HTTP 500": 1})
            assert (counts["closed"], counts["lost"]) == (7, 0) or counts["closed"] + counts["lost"] == 7
            talking = sum(bool(caller.audio) for caller in server.callers)
            assert (
                counts["turns"]
                == counts["finals"]
                == counts["replies"]
                == counts["busy"]
                == counts["ready"]
                == talking
            )
            assert counts["received_ms"] == counts["consumed_ms"] == counts["sent_ms"]
            assert tally.latencies["first_audio"].count == talking
            assert tally.latencies["handshake"].count == 7
            assert tally.latencies["ping"].count >= 1
            assert "unaccounted 0.0 ms" in str(status_table(tally, plan.url, plan.callers, 1.0).caption)

    async def test_without_a_server_everybody_fails(self) -> None:
        async with native_server(converse) as server:
            url = server.url
        tally = await Load(Plan(url, connections=3, seconds=0, ramp_per_s=1_000)).run()
        assert tally.counts["failed"] == 3
        assert tally.reasons == {"Connection refused": 3}
        assert "failed: Connection refused (3)" in str(status_table(tally, url, 3, 0.0).caption)

    async def test_who_hangs_up_before_the_handshake_and_who_says_nothing_are_failures(self) -> None:
        transports: list[asyncio.BaseTransport] = []

        class SayNothing(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                transports.append(transport)

        class HangUp(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                transport.close()

        for protocol, reason in (
            (HangUp, "closed before the handshake was answered"),
            (SayNothing, "no answer to the handshake"),
        ):
            async with await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0) as server:
                url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                tally = await Load(Plan(url, connections=2, seconds=0.05, ramp_per_s=1_000)).run()
                for transport in transports:
                    transport.close()
            assert tally.reasons == {reason: 2}
            assert tally.counts["failed"] == 2
        await asyncio.sleep(0)  # closed transports are gone one turn of the loop later

    async def test_another_wire_is_told_and_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(load_module, "READY_TIMEOUT_S", 0.05)

        async def speak_realtime(caller: Caller) -> None:
            await caller.socket.send('{"type":"session.created","event_id":"e1","session":{}}')
            await caller.socket.wait_closed()

        async with native_server(speak_realtime) as server:
            url = server.url.replace("/v1/stream", "/v1/realtime")
            load = Load(Plan(url, connections=2, seconds=600, ramp_per_s=1_000))
            with pytest.raises(
                ConnectFailed, match="/v1/realtime is not the native wire, which is at /v1/stream"
            ):
                await run_greeted(load)

    async def test_who_waits_for_a_place_has_found_the_native_wire(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(load_module, "READY_TIMEOUT_S", 0.05)

        async def let_wait(caller: Caller) -> None:
            await caller.say(ServerBusy("admission", "waiting", 0, 0, 5_000, position=1))
            await caller.receive()
            await caller.socket.close()

        async with native_server(let_wait) as server:
            tally = await run_greeted(Load(Plan(server.url, connections=1, seconds=0.1)))
        assert tally.counts["greeted"] == 1

    async def test_what_is_piped_is_one_table_and_ends_its_last_line(self) -> None:
        async with native_server(converse) as server:
            output = io.StringIO()
            console = Console(file=output, width=120)
            await watch(Load(Plan(server.url, connections=1, seconds=0)), console)
        shown = output.getvalue()
        assert shown.count("latency (ms)") == 1
        assert shown.endswith("\n")
        assert "\x1b" not in shown

    async def test_only_plain_websocket_addresses(self) -> None:
        for url in ("wss://localhost/", "http://localhost/", "ws://localhost:99999/"):
            with pytest.raises(BadAddress):
                Load(Plan(url, connections=1))
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "nobody calls"),
        (("--talkers=1",), 2, "need recordings"),
        (("--connections=1", "--url=http://x"), 2, "not a ws://"),
        (("--connections=-1",), 2, "greater than or equal"),
        (("--connections=2000000000",), 2, "give --processes"),
        (("--connections=1", "--seconds=0", "--url=ws://127.0.0.1:1"), 1, "1 failed"),
        (
            ("--connections=1", "--seconds=0", "--url=ws://127.0.0.1:1"),
            1,
            "ws://127.0.0.1:1: Connection refused (1)",
        ),
        (
            ("--connections=2", "--processes=3", "--seconds=0", "--url=ws://127.0.0.1:1"),
            1,
            "Connection refused (2)",
        ),
        (("--connections=2", "--processes=2", "--url=ws://[::1"), 2, "is not an address"),
        (("--connections=1", "--ping-s=inf"), 2, "Invalid value for '--ping-s'"),
        (("--connections=1", "--ping-s=nan"), 2, "Invalid value for '--ping-s'"),
        (("--connections=1", "--seconds=inf"), 2, "Invalid value for '--seconds'"),
        (("--connections=1", "--seconds=nan"), 2, "Invalid value for '--seconds'"),
        (("--connections=1", "--ramp=nan"), 2, "Invalid value for '--ramp'"),
        (("--connections=1", "--sources=-1"), 2, "Invalid value for '--sources'"),
        (("--connections=1", "--sources=99999"), 2, "Invalid value for '--sources'"),
        (("--connections=99", "--processes=99"), 2, "there are addresses for 31 of them"),
    ],
)
def test_the_exit_code_says_whether_it_was_a_load(arguments: tuple[str, ...], code: int, words: str) -> None:
    app = typer.Typer()
    app.command()(load_command)
    ended = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert (ended.exit_code, words in ended.output) == (code, True), ended.output
