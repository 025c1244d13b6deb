"""Workers die and hang under real callers: told at once, and then the same words, each of them once."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.e2e.serving import ServerProcess
from tests.faults.calling import Call, speech, with_fault
from tests.faults.workers_of import pid_of
from voiceserver.events.events import InputCommitted, SpeechStarted


def assert_the_same(call: Call, undisturbed: Call) -> None:
    assert call.finals == undisturbed.finals
    assert call.reply_text == undisturbed.reply_text
    assert call.reply_bytes == undisturbed.reply_bytes
    assert call.endings == ["completed"]
    assert call.turns == 1
    call.assert_books_balance()


def is_told(call: Call, stage: str, reason: str) -> bool:
    return any((busy.stage, busy.reason, busy.step) == (stage, reason, "lost") for busy in call.busy)


@pytest.mark.parametrize("stage", ["vad", "stt"])
async def test_a_worker_is_killed_in_mid_sentence(
    server: ServerProcess, undisturbed: Call, stage: str
) -> None:
    async def fault(call: Call) -> None:
        await call.until(lambda: bool(call.of(SpeechStarted)) and call.said_ms > 1_400)
        os.kill(pid_of(server, stage), signal.SIGKILL)

    call = await with_fault(server.url, speech(), fault)
    assert is_told(call, stage, "worker_lost")
    assert_the_same(call, undisturbed)


@pytest.mark.parametrize("stage", ["reply", "tts"])
async def test_a_worker_is_stopped_just_before_it_is_needed(
    server: ServerProcess, undisturbed: Call, stage: str
) -> None:
    async def fault(call: Call) -> None:
        await call.until(lambda: bool(call.of(InputCommitted)))
        os.kill(pid_of(server, stage), signal.SIGSTOP)

    assert_the_same(await with_fault(server.url, speech(), fault), undisturbed)


async def test_a_worker_dies_while_it_speaks(server: ServerProcess, undisturbed: Call) -> None:
    async def fault(call: Call) -> None:
        await call.until(lambda: call.reply_bytes > 0)
        os.kill(pid_of(server, "tts"), signal.SIGKILL)

    assert_the_same(await with_fault(server.url, speech(), fault), undisturbed)


@pytest.mark.parametrize("stage", ["vad", "stt"])
async def test_a_worker_hangs_in_mid_sentence(server: ServerProcess, undisturbed: Call, stage: str) -> None:
    async def fault(call: Call) -> None:
        await call.until(lambda: bool(call.of(SpeechStarted)) and call.said_ms > 1_400)
        os.kill(pid_of(server, stage), signal.SIGSTOP)

    call = await with_fault(server.url, speech(), fault)
    assert is_told(call, stage, "worker_hung")
    assert_the_same(call, undisturbed)


async def test_every_stage_dies_at_once_under_three_callers(server: ServerProcess, undisturbed: Call) -> None:
    async def nothing(call: Call) -> None:
        await call.until(lambda: call.is_over)

    async def fault(call: Call) -> None:
        await call.until(lambda: bool(call.of(SpeechStarted)) and call.said_ms > 1_400)
        for stage in ("vad", "stt", "reply", "tts"):
            os.kill(pid_of(server, stage), signal.SIGKILL)

    calls = await asyncio.gather(
        with_fault(server.url, speech(), fault, pace=1.0),
        with_fault(server.url, speech(), nothing, pace=1.0),
        with_fault(server.url, speech(), nothing, pace=1.0),
    )
    for call in calls:
        assert_the_same(call, undisturbed)
    assert all(is_told(call, "vad", "worker_lost") for call in calls)
