"""The server ends: asked to, by force, and with everything that it started. Nothing stays, and the next one can start at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.serving import ServerProcess, serving
from tests.faults.calling import Call, speech, with_fault
from tests.faults.chatting import NO_VOICE, Chat
from tests.faults.conftest import SETTINGS as SPOKEN
from tests.faults.local_bench import is_alive
from tests.faults.test_worker_orphans import named_files, wait_until_gone
from tests.faults.workers_of import descendants, pid_of
from voiceserver.events.events import ServerDraining, SpeechStarted

ENGINE = "tests.faults.fault_engines:Answering"
SETTINGS = [f"{key}={value}" for key, value in {**NO_VOICE, "stages.reply.engine": ENGINE}.items()]


@pytest.fixture
def answering() -> Iterator[ServerProcess]:
    with serving(*SETTINGS, "server.drain_timeout_ms=3000") as server:
        pid_of(server, "reply")
        yield server


def test_a_drain_refuses_finishes_says_so_and_exits_with_0(answering: ServerProcess) -> None:
    with Chat(answering.url) as busy, Chat(answering.url) as idle:
        busy.ask("sleep 1")
        answering.get("/healthz")  # the question is in by now
        answering.signal(signal.SIGTERM)
        told = idle.read_type("server.draining")
        assert 0 < told["deadline_ms"] <= 3_000
        assert idle.read_end() == 1012
        with pytest.raises(InvalidStatus) as refused:
            Chat(answering.url)
        assert refused.value.response.status_code == 503
        assert int(refused.value.response.headers["Retry-After"]) > 0
        assert busy.read_end() == 1012
        (done,) = busy.said("reply.done")
        assert (done["reason"], done["text"]) == ("completed", "You said sleep 1.")
        assert [event["type"] for event in busy.events].index("server.draining") < busy.events.index(done)
    assert answering.wait() == 0


def test_a_turn_that_does_not_end_is_cut_off_at_the_deadline(answering: ServerProcess) -> None:
    workers = descendants(answering.process.pid)
    with Chat(answering.url) as busy:
        busy.ask("sleep 60")
        answering.get("/healthz")
        answering.signal(signal.SIGTERM)
        assert busy.read_end() == 1012
        assert [event["reason"] for event in busy.said("reply.done")] == ["cancelled"]
    assert answering.wait() == 0
    assert not any(map(is_alive, workers))


def test_a_second_signal_ends_at_once(answering: ServerProcess) -> None:
    workers = descendants(answering.process.pid)
    with Chat(answering.url) as busy:
        busy.ask("sleep 60")
        answering.get("/healthz")
        answering.signal(signal.SIGTERM)
        busy.read_type("server.draining")
        answering.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            busy.read_type("reply.done")
    assert answering.wait() == 128 + signal.SIGTERM
    assert not any(map(is_alive, workers))


def test_a_killed_server_leaves_nothing_and_its_port_is_free_at_once(answering: ServerProcess) -> None:
    before = named_files()
    processes = descendants(answering.process.pid)
    assert len(processes) >= 2
    with Chat(answering.url) as caller:
        assert caller.talk("hello") == "You said hello."
        answering.signal(signal.SIGKILL)
        assert answering.wait() == -signal.SIGKILL
        with pytest.raises(ConnectionClosed):
            caller.read_type("nothing")
        with serving(*SETTINGS, port=answering.port) as again, Chat(again.url) as next_caller:
            assert next_caller.talk("back") == "You said back."
    wait_until_gone(processes)
    assert named_files() <= before


def test_a_killed_process_group_leaves_neither_process_nor_file(answering: ServerProcess) -> None:
    before = named_files()
    processes = descendants(answering.process.pid)
    os.killpg(answering.process.pid, signal.SIGKILL)
    answering.wait()
    wait_until_gone(processes)
    assert named_files() <= before


async def test_a_drain_in_mid_sentence_lets_the_caller_say_it_to_the_end(undisturbed: Call) -> None:
    with serving(*SPOKEN, "server.drain_timeout_ms=60000") as server:
        for stage in ("vad", "stt", "reply", "tts"):
            await asyncio.to_thread(pid_of, server, stage)

        async def fault(call: Call) -> None:
            await call.until(lambda: bool(call.of(SpeechStarted)) and call.said_ms > 1_200)
            server.signal(signal.SIGTERM)
            await call.until(lambda: bool(call.of(ServerDraining)))

        call = Call()
        with pytest.raises(Exception, match="1012"):
            await with_fault(server.url, speech(), fault, call=call)
        assert call.finals == undisturbed.finals
        assert call.endings == ["completed"]
        call.assert_books_balance()
        assert await asyncio.to_thread(server.wait) == 0
