"""The waiting room through the shell: connections that wait, move up, are let in, give up, and leak nothing."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.voiceserver.shell import Line, Shell, audio, text, upgrade
from voiceserver.config.schema import BackpressureConfig
from voiceserver.transport.call import TOLD_MS
from voiceserver.transport.connection import CLOSE_TIMEOUT_MS
from voiceserver_workers.ipc.messages import ResultKind


def make_shell(limit: int, room: int = 2, hold: str = "connection") -> Shell:
    limits = BackpressureConfig(
        max_talkers=limit, waiting_room=room, hold=hold, waiting_timeout_ms=30_000, tenant_share=1.0
    )
    return Shell("vad", "stt", limits=limits)


def last(line: Line, kind: str) -> dict[str, Any]:
    return [event for event in line.events() if event["type"] == kind][-1]


def test_who_waits_hears_the_place_and_is_let_in_in_order() -> None:
    shell = make_shell(1)
    first, second, third = (shell.call() for _ in range(3))
    assert last(second, "server.busy")["position"] == 1
    assert last(third, "server.busy")["position"] == 2
    assert last(third, "server.busy")["retry_after_ms"] > last(second, "server.busy")["retry_after_ms"]
    first.lose()
    assert "server.ready" in second.types()
    assert [event["position"] for event in third.events() if event["type"] == "server.busy"] == [2, 1]
    assert "server.ready" not in third.types()


def test_who_waits_hears_fresh_numbers_every_second() -> None:
    shell = make_shell(1)
    shell.call()
    waiting = shell.call()
    shell.loop.advance(3_500)
    assert len([name for name in waiting.types() if name == "server.busy"]) == 4


def test_the_audio_of_who_waits_is_kept_and_goes_to_work_with_the_place() -> None:
    shell = make_shell(1)
    first, waiting = shell.call(), shell.call()
    waiting.receive(audio(bytes(640)))
    assert len(shell.pools["vad"].streams) == 0
    first.lose()
    assert [payload for _, _, _, payload in shell.pools["vad"].streams[0].sent] == [bytes(640)]


def test_who_leaves_the_room_moves_the_others_up() -> None:
    shell = make_shell(1)
    shell.call()
    second, third = shell.call(), shell.call()
    second.lose()
    assert last(third, "server.busy")["position"] == 1
    assert (shell.admission.waiting, shell.admission.talkers) == (1, 1)


def test_who_waited_too_long_is_told_and_closed_with_1013() -> None:
    shell = make_shell(1)
    shell.call()
    waiting = shell.call()
    shell.loop.advance(29_900)
    assert "error" not in waiting.types()
    shell.loop.advance(100)
    shell.admission.tick(shell.loop.now_ms)
    shell.services.places.changed()
    shell.loop.settle()
    error = last(waiting, "error")
    assert (error["code"], error["retryable"], error["retry_after_ms"]) == ("waiting_timeout", True, 2_000)
    assert waiting.types()[-1] == "session.closing"
    assert waiting.close_code is None, "a moment to read why"
    shell.loop.advance(TOLD_MS - 100)
    assert waiting.close_code is None
    shell.loop.advance(200)
    assert waiting.close_code == 1013
    shell.loop.advance(CLOSE_TIMEOUT_MS + 100)
    assert waiting.transport.is_aborted
    assert shell.admission.waiting == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_abandoned_and_failed_handshakes_leak_no_place(seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    shell = make_shell(3, room=4)
    heads = [
        upgrade(), upgrade()[:40], b"GET /v1/stream HTTP/1.1\r\n\r\n", b"\x16\x03\x01",
        upgrade(more="Origin: http://page\r\n"), upgrade("/v1/stream?rate=7"), upgrade("/nowhere"),
        upgrade(more="Sec-WebSocket-Version: 8\r\n"), b"X" * 20_000,
    ]  # fmt: skip
    lines = []
    for _ in range(1_000):
        lines.append(shell.call(dice.choice(heads)))
        if dice.random() < 0.4 or len(lines) > 60:
            lines.pop(dice.randrange(len(lines))).lose()
        assert shell.admission.talkers <= 3
        assert shell.admission.waiting <= 4
    shell.loop.advance(10_000)
    for line in lines:
        line.lose()
    shell.loop.settle()
    admission = shell.admission
    assert (admission.taken, admission.talkers, admission.waiting, admission.lingering) == (0, 0, 0, 0)
    assert admission.refused > 0


def test_a_session_that_has_ended_gives_its_place_back_before_its_socket_closes() -> None:
    shell = make_shell(1)
    first, waiting = shell.call(), shell.call()
    first.receive(text({"type": "session.close"}))
    assert not first.is_lost
    assert "server.ready" in waiting.types()


def test_where_speech_takes_the_place_silent_callers_take_none() -> None:
    shell = make_shell(1, room=1, hold="speech")
    lines = [shell.call() for _ in range(50)]
    assert shell.admission.talkers == 0
    for line in lines[:3]:
        line.receive(text({"type": "session.update", "turn_detection": None}))
        line.receive(audio(bytes(3_200)))
    assert (shell.admission.talkers, shell.admission.waiting) == (1, 1)
    assert len(shell.pools["stt"].streams) == 1
    assert last(lines[1], "server.busy")["position"] == 1
    shell.loop.advance(300)
    assert last(lines[2], "server.busy")["reason"] == "at_capacity"
    # The place is free as soon as the words are there, while the call goes on.
    lines[0].receive(text({"type": "input.commit", "creates_reply": False}))
    shell.pools["stt"].streams[0].answer(ResultKind.FINAL, 1, 1_600, b"hello")
    shell.loop.settle()
    assert "transcript.final" in lines[0].types()
    assert shell.pools["stt"].streams[0].is_closed
    assert len(shell.pools["stt"].streams) == 2
    assert shell.pools["stt"].streams[1].owner is lines[1].connection.call
    assert shell.pools["stt"].streams[1].sent[0][3] == bytes(3_200)
    assert shell.admission.taken == 50
