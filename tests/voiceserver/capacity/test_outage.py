"""No worker is left: who waits hears it from its own gate, everybody else from here, once and then every few seconds."""

from __future__ import annotations

from typing import Any

import pytest

from tests.voiceserver.shell import Line, Shell, audio, text, upgrade
from tests.voiceserver.transport.test_resume import resume, token_of
from voiceserver.capacity.outage import REPEAT_MS, SLICE
from voiceserver.config.schema import BackpressureConfig
from voiceserver.wire import openai, whisperlive
from voiceserver_workers.ipc.messages import ResultKind

LOOK_MS = 50.0
CHUNK = bytes(640)


def pass_time(shell: Shell, by_ms: float) -> None:
    """With the server's looks at its pools."""
    end_ms = shell.loop.now_ms + by_ms
    while shell.loop.now_ms < end_ms:
        shell.services.outage.look()
        shell.loop.advance(LOOK_MS)


def go_out(shell: Shell, stage: str = "vad", for_ms: float = 400.0) -> None:
    shell.pools[stage].ready = False
    pass_time(shell, for_ms)


def come_back(shell: Shell, stage: str = "vad") -> None:
    shell.pools[stage].ready = True
    pass_time(shell, LOOK_MS)


def of(line: Line, kind: str) -> list[dict[str, Any]]:
    return [event for event in line.events() if event["type"] == kind]


@pytest.mark.parametrize("head", [upgrade(), upgrade("/v1/realtime", "Authorization: Bearer x\r\n")])
def test_who_comes_when_the_stage_is_back_hears_nothing_of_its_absence(head: bytes) -> None:
    shell = Shell("vad", "stt")
    go_out(shell)
    shell.pools["vad"].ready = True
    # The server looks at its pools a few times in a second, and has not looked since.
    caller = shell.call(head)
    assert caller.status == 101
    assert not any("no_worker" in str(event) for event in caller.events())
    pass_time(shell, 2 * REPEAT_MS)
    assert not any("no_worker" in str(event) for event in caller.events())
    assert "server.ready" not in caller.types()


def test_a_silent_caller_is_told_once_and_costs_no_session() -> None:
    shell = Shell("vad", "stt")
    idle = shell.call()
    go_out(shell)
    (busy,) = of(idle, "server.busy")
    told = {name: busy[name] for name in ("stage", "reason", "lag_ms", "retry_after_ms", "credit_ms")}
    assert told == {
        "stage": "vad", "reason": "no_worker", "lag_ms": 0, "retry_after_ms": 700, "credit_ms": 10_000,
    }  # fmt: skip
    assert idle.connection.call is None
    pass_time(shell, REPEAT_MS - 500)
    assert len(of(idle, "server.busy")) == 1
    pass_time(shell, 500)
    assert len(of(idle, "server.busy")) == 2
    come_back(shell)
    (ready,) = of(idle, "server.ready")
    assert ready["stage"] == "vad"
    pass_time(shell, 2 * REPEAT_MS)
    assert idle.types()[1:] == ["server.busy", "server.busy", "server.ready"]


def test_a_worker_that_is_back_before_long_is_nobodys_business() -> None:
    shell = Shell("vad", "stt")
    idle = shell.call()
    go_out(shell, for_ms=200)
    come_back(shell)
    pass_time(shell, 1_000)
    assert idle.types() == ["session.ready"]


@pytest.mark.parametrize("path", ["/v1/stream", openai.PATH])
def test_who_joins_meanwhile_is_told_right_after_the_greeting(path: str) -> None:
    shell = Shell("vad", "stt")
    go_out(shell)
    line = shell.call(upgrade(path))
    native = ["session.ready", "server.busy"]
    assert line.types() == (native if path == "/v1/stream" else ["session.created", "rate_limits.updated"])
    come_back(shell)
    assert line.types()[2:] == (["server.ready"] if path == "/v1/stream" else [])


def test_a_whisperlive_client_waits_until_there_is_a_worker() -> None:
    shell = Shell("vad", "stt")
    go_out(shell)
    line = shell.call(upgrade(whisperlive.PATH))
    line.receive(
        text({"uid": "me", "language": "en", "task": "transcribe", "model": "small", "use_vad": True})
    )
    assert [event.get("status") or event.get("message") for event in line.events()] == ["WAIT"]
    come_back(shell)
    assert line.events()[-1]["message"] == "SERVER_READY"


def test_who_talks_hears_its_own_signals_and_one_ready() -> None:
    shell = Shell("vad", "stt")
    line = shell.call()
    shell.pools["vad"].room = 0
    line.receive(audio(CHUNK))
    go_out(shell, for_ms=1_400)
    signals = of(line, "server.busy")
    assert len(signals) == 2
    assert all(signal["lag_ms"] >= 250 for signal in signals)
    shell.pools["vad"].room = 100
    stream = shell.pools["vad"].streams[-1]
    stream.owner.on_room("vad")
    stream.owner.on_tick()
    stream.answer(ResultKind.CONSUMED, 0, stream.sent[-1][2])
    come_back(shell)
    pass_time(shell, 1_500)
    assert len(of(line, "server.ready")) == 1


def test_who_was_told_while_idle_and_then_talks_hears_one_ready() -> None:
    shell = Shell("vad", "stt")
    line = shell.call()
    go_out(shell)
    shell.pools["vad"].room = 0
    line.receive(audio(CHUNK))
    pass_time(shell, 300)
    assert [signal["lag_ms"] > 0 for signal in of(line, "server.busy")] == [False, True]
    come_back(shell)
    assert of(line, "server.ready") == [], "its audio still waits"
    shell.pools["vad"].room = 100
    stream = shell.pools["vad"].streams[-1]
    stream.owner.on_room("vad")
    stream.owner.on_tick()
    stream.answer(ResultKind.CONSUMED, 0, stream.sent[-1][2])
    pass_time(shell, 1_500)
    assert len(of(line, "server.ready")) == 1


def test_only_those_are_told_who_need_the_stage() -> None:
    shell = Shell("vad", "stt", "reply", "tts")
    writer, speaker = shell.call(), shell.call()
    writer.receive(text({"type": "session.update", "speaks": False}))
    go_out(shell, "tts")
    assert of(writer, "server.busy") == []
    assert of(speaker, "server.busy")[0]["stage"] == "tts"
    go_out(shell, "stt")
    assert of(writer, "server.busy")[0]["stage"] == "stt"
    assert of(speaker, "server.busy")[-1]["stage"] == "stt"
    come_back(shell, "stt")
    assert len(of(writer, "server.ready")) == 1
    assert of(speaker, "server.busy")[-1]["stage"] == "tts"
    come_back(shell, "tts")
    assert len(of(speaker, "server.ready")) == 1


def test_the_log_tells_of_an_outage_and_its_end_but_not_of_the_start() -> None:
    shell = Shell("vad", "stt")
    for pool in shell.pools.values():
        pool.ready = False
    pass_time(shell, 600.0)
    for stage in shell.pools:
        come_back(shell, stage)
    assert shell.logged == []
    go_out(shell)
    come_back(shell)
    words = [(one["event"], one.get("stages")) for one in shell.logged]
    assert words == [("stages without workers", ["vad"]), ("all stages have workers", None)]


def test_many_callers_are_told_in_slices() -> None:
    shell = Shell("vad", "stt")
    lines = [shell.call() for _ in range(SLICE * 2 + 1)]
    shell.pools["vad"].ready = False
    shell.services.outage.look()
    shell.loop.advance(300)
    shell.services.outage.look()
    written = [line.transport.writes for line in lines]
    told = []
    for _ in range(8):
        shell.loop.run_tick()
        told.append(sum(line.transport.writes > before for line, before in zip(lines, written, strict=True)))
    growth = [after - before for before, after in zip([0, *told], told, strict=False)]
    assert told[-1] == len(lines)
    assert max(growth) == SLICE


def test_a_round_is_overtaken_by_the_news_that_it_is_over() -> None:
    shell = Shell("vad", "stt")
    lines = [shell.call() for _ in range(SLICE * 2)]
    shell.pools["vad"].ready = False
    shell.services.outage.look()
    shell.loop.advance(300)
    shell.services.outage.look()
    shell.loop.run_tick()  # the first slice is told
    shell.pools["vad"].ready = True
    shell.services.outage.look()
    shell.loop.settle()
    kinds = sorted(tuple(line.types()[1:]) for line in lines)
    assert kinds == [()] * SLICE + [("server.busy", "server.ready")] * SLICE


def test_signals_to_all_count_among_the_messages_of_a_call_that_resumes() -> None:
    shell = Shell("stt")
    first = shell.call()
    go_out(shell, "stt")
    come_back(shell, "stt")
    first.receive(audio(CHUNK))
    first.receive(text({"type": "session.update", "language": "en"}))
    assert first.types() == ["session.ready", "server.busy", "server.ready", "session.updated"]
    first.lose()
    second = resume(shell, token_of(first), "&after=2")
    assert second.types() == ["session.ready", "session.updated"]


@pytest.mark.parametrize("after", ["", "&after=0"])
def test_a_signal_to_all_that_was_lost_is_not_missed(after: str) -> None:
    shell = Shell("stt")
    first = shell.call()
    go_out(shell, "stt")
    first.receive(audio(CHUNK))
    first.lose()
    come_back(shell, "stt")
    second = resume(shell, token_of(first), after)
    assert second.types() == ["session.ready", "server.ready"]


def test_who_comes_back_meanwhile_is_told_again() -> None:
    shell = Shell("stt")
    first = shell.call()
    first.receive(audio(CHUNK))
    first.lose()
    go_out(shell, "stt")
    second = resume(shell, token_of(first))
    assert second.types() == ["session.ready", "server.busy"]


def test_a_caller_in_the_waiting_room_and_one_that_leaves_hear_nothing_of_it() -> None:
    limits = BackpressureConfig(max_talkers=1, waiting_room=2, waiting_timeout_ms=60_000, tenant_share=1.0)
    shell = Shell("vad", "stt", limits=limits)
    shell.call()
    waiting = shell.call()
    go_out(shell, for_ms=1_500)
    assert {signal["reason"] for signal in of(waiting, "server.busy")} == {"waiting"}
    leaving = shell.call()
    leaving.receive(text({"type": "session.close"}))
    pass_time(shell, REPEAT_MS)
    assert leaving.types()[-1] == "session.closing"


def test_a_caller_who_reads_no_events_hears_it_once() -> None:
    shell = Shell("vad", "stt")
    line = shell.call()
    line.receive(text({"type": "session.update", "audible_busy": True}))
    go_out(shell)
    pass_time(shell, REPEAT_MS)
    assert line.types().count("server.cue") == 1
    assert len(of(line, "server.busy")) == 2
