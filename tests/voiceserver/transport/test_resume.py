"""A call that loses its connection goes on over the next one: every message once, no audio twice, one token for one resume."""

from __future__ import annotations

import base64
import gc
import re
import socket
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode

from tests.voiceserver.shell import Line, Shell, audio, masked, text, upgrade
from voiceserver.config.schema import BackpressureConfig, SessionConfig
from voiceserver.server.multiprocess.handoff import Handoff
from voiceserver.server.multiprocess.peer import Peer
from voiceserver.server.multiprocess.shared_stats import SharedStats
from voiceserver.session.session import Session
from voiceserver.transport.call import Call
from voiceserver.transport.connection import CLOSE_TIMEOUT_MS
from voiceserver.transport.replay_buffer import ASK_BYTES, MAX_CALL_BYTES, ReplayBuffer
from voiceserver.transport.session_store import HOLD_MS
from voiceserver.wire.native import NativeCodec
from voiceserver.wire.openai.items import Conversation, Item, Part
from voiceserver_workers.ipc.messages import RequestKind, ResultKind

CHUNK = bytes(640)  # 20 ms


def begin(shell: Shell, chunks: int = 5) -> Line:
    line = shell.call()
    line.receive(audio(CHUNK) * chunks)
    return line


def token_of(line: Line) -> str:
    token = line.events()[0]["resume_token"]
    assert isinstance(token, str)
    return token


def resume(shell: Shell, token: str, more: str = "") -> Line:
    return shell.call(upgrade(f"/v1/stream?rate=16000&resume={token}{more}"))


def transcripts(line: Line) -> list[str]:
    return [event["text"] for event in line.events() if event["type"] == "transcript.final"]


def commit(line: Line) -> None:
    line.receive(text({"type": "input.commit"}))


def answer_last(shell: Shell, words: str, turn: int = 1) -> None:
    stream = shell.pools["stt"].streams[-1]
    stream.answer(ResultKind.FINAL, turn, stream.sent[-1][2], words.encode())
    shell.loop.settle()


def test_audio_continues_from_what_was_received_and_the_stream_goes_on() -> None:
    shell = Shell("stt")
    first = begin(shell)
    first.lose()
    second = resume(shell, token_of(first))
    ready = second.events()[0]
    assert second.status == 101
    assert (ready["is_resumed"], ready["received_ms"]) == (True, 100.0)
    assert ready["session_id"] == first.events()[0]["session_id"]
    second.receive(audio(CHUNK))
    commit(second)
    answer_last(shell, "all of it")
    assert transcripts(second) == ["all of it"]
    (stream,) = shell.pools["stt"].streams  # it found everything as it was
    assert sum(len(sent[3]) for sent in stream.sent) == 6 * len(CHUNK)


def test_what_is_said_while_nobody_is_there_is_told_once() -> None:
    shell = Shell("stt")
    first = begin(shell)
    commit(first)
    first.lose()
    answer_last(shell, "meanwhile")
    second = resume(shell, token_of(first))
    assert second.types()[:2] == ["session.ready", "transcript.final"]
    second.lose()
    third = resume(shell, token_of(second), "&after=2")  # input.committed and the transcript
    assert transcripts(second) + transcripts(third) == ["meanwhile"]


def test_what_left_and_never_arrived_is_told_again_to_a_caller_who_counts() -> None:
    shell = Shell("stt")
    first = begin(shell)
    commit(first)
    answer_last(shell, "on its way")
    assert first.types() == ["session.ready", "input.committed", "transcript.final"]
    first.lose()
    second = resume(shell, token_of(first), "&after=1")
    assert second.types() == ["session.ready", "transcript.final"]


def test_a_token_is_good_for_one_resume_and_every_resume_has_its_own() -> None:
    shell = Shell("stt")
    first = begin(shell)
    token = token_of(first)
    assert re.fullmatch(r"sess_[0-9a-f]{16}\.[\w-]{22}", token)
    first.lose()
    second = resume(shell, token)
    pings = [bytes(frame.data) for frame in second.frames() if frame.opcode is Opcode.PING]
    second.receive(masked(Opcode.PONG, pings[-1]))
    assert token_of(second) not in ("", token)
    assert (resume(shell, token).status, second.transport.is_aborted) == (410, False)
    second.lose()
    assert resume(shell, token_of(second)).status == 101


def test_the_token_before_is_good_until_the_new_one_has_arrived() -> None:
    shell = Shell("stt")
    first = begin(shell)
    first.lose()
    lost = resume(shell, token_of(first))
    lost.lose()  # and session.ready with it
    assert resume(shell, token_of(first)).status == 101


@pytest.mark.parametrize("lost_answers", [2, 3, 7])
def test_the_token_that_a_caller_has_stays_good_while_answers_are_lost(lost_answers: int) -> None:
    shell = Shell("stt")
    first = begin(shell)
    never_arrived = []
    for _ in range(lost_answers):
        lost = resume(shell, token_of(first))
        assert lost.status == 101
        lost.lose()
        never_arrived.append(token_of(lost))
    back = resume(shell, token_of(first))
    assert (back.status, back.events()[0]["received_ms"]) == (101, 100.0)
    assert {resume(shell, token).status for token in never_arrived} == {410}
    pings = [bytes(frame.data) for frame in back.frames() if frame.opcode is Opcode.PING]
    back.receive(masked(Opcode.PONG, pings[-1]))
    assert resume(shell, token_of(first)).status == 410
    assert resume(shell, token_of(back)).status == 101


def test_a_token_that_is_used_has_arrived() -> None:
    shell = Shell("stt")
    first = begin(shell)
    first.lose()
    second = resume(shell, token_of(first))
    second.lose()  # before it answered the ping
    third = resume(shell, token_of(second))
    third.lose()
    assert resume(shell, token_of(first)).status == 410
    assert resume(shell, token_of(second)).status == 101


def test_a_caller_may_be_back_before_the_server_knows_that_it_was_gone() -> None:
    shell = Shell("stt")
    first = begin(shell)
    second = resume(shell, token_of(first))
    assert first.events()[-1]["code"] == "session_taken_over"
    assert first.close_code == 1000
    assert first.transport.is_ended
    assert not first.transport.is_aborted, "it may still be read"
    shell.loop.advance(CLOSE_TIMEOUT_MS)
    assert first.transport.is_aborted
    assert second.events()[0]["received_ms"] == 100.0
    assert (shell.services.state.sessions, shell.admission.taken, len(shell.services.state.connections)) == (
        1,
        1,
        1,
    )
    second.receive(audio(CHUNK))
    commit(second)
    answer_last(shell, "still one call")
    assert transcripts(second) == ["still one call"]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("resume=sess_0.x", 404, "session_unknown"),
        ("resume=%ff%00", 404, "session_unknown"),
        ("resume=TOKEN&after=-1", 400, "bad_parameter"),
        ("resume=TOKEN&rate=8000", 400, "bad_parameter"),
        ("resume=TOKENx", 410, "session_gone"),
    ],
)
def test_what_cannot_be_resumed_is_said_before_the_upgrade(query: str, status: int, code: str) -> None:
    shell = Shell("stt")
    first = begin(shell)
    first.lose()
    line = shell.call(upgrade("/v1/stream?" + query.replace("TOKEN", token_of(first))))
    assert (line.status, line.body["error"]["code"]) == (status, code)
    assert resume(shell, token_of(first)).status == 101


def test_after_the_window_the_call_is_closed_accounted_and_gone() -> None:
    shell = Shell("stt", session=SessionConfig(resume_window_ms=10_000))
    first = begin(shell)
    first.lose()
    shell.loop.advance(9_900)
    assert not [entry for entry in shell.logged if entry["event"] == "session closed"]
    shell.loop.advance(200)
    (entry,) = [entry for entry in shell.logged if entry["event"] == "session closed"]
    assert (entry["reason"], entry["received_ms"], entry["code"]) == ("expired", 100.0, 1006)
    assert shell.pools["stt"].streams[0].is_closed
    line = resume(shell, token_of(first))
    assert (line.status, "expired" in line.body["error"]["message"]) == (410, True)
    assert shell.admission.taken == 0


def test_without_a_window_nothing_is_kept_and_no_token_is_given() -> None:
    shell = Shell("stt", session=SessionConfig(resume_window_ms=0))
    first = begin(shell)
    assert "resume_token" not in first.events()[0]
    first.lose()
    assert shell.logged[-1]["event"] == "session closed"


def test_a_caller_who_said_nothing_leaves_nothing() -> None:
    shell = Shell("stt")
    first = shell.call()
    first.lose()
    assert shell.admission.taken == 0
    assert resume(shell, token_of(first)).status == 404


def test_a_caller_who_said_goodbye_is_not_kept() -> None:
    shell = Shell("stt")
    first = begin(shell)
    first.receive(masked(Opcode.CLOSE, b"\x03\xe8"))
    first.lose()
    assert resume(shell, token_of(first)).status == 404


def test_who_is_gone_for_longer_gives_place_and_streams_back_and_goes_before_new_callers() -> None:
    shell = Shell("stt", limits=BackpressureConfig(max_talkers=1, waiting_room=8))
    first = begin(shell)
    stream = shell.pools["stt"].streams[0]
    stream.answer(ResultKind.TEXT, 1, stream.sent[-1][2], b"half a")
    first.lose()
    shell.loop.advance(HOLD_MS - 100)
    assert shell.admission.talkers == 1
    waiting = shell.call()
    shell.loop.advance(200)
    assert stream.is_closed
    assert "server.ready" in waiting.types()
    late = shell.call()
    second = resume(shell, token_of(first))
    assert [event["position"] for event in second.events() if event["type"] == "server.busy"] == [1]
    waiting.receive(masked(Opcode.CLOSE, b"\x03\xe8"))
    waiting.lose()
    second.receive(audio(CHUNK))
    commit(second)
    assert "server.ready" in second.types()
    assert "server.ready" not in late.types()
    stream = shell.pools["stt"].streams[-1]
    assert stream.params.start_seq == 0
    assert sum(len(sent[3]) for sent in stream.sent) == 6 * len(CHUNK)  # all that has no transcript yet
    assert stream.sent[-1][0] is RequestKind.FLUSH


def test_a_resume_that_finds_no_place_is_refused_and_may_ask_again() -> None:
    shell = Shell("stt", limits=BackpressureConfig(max_talkers=1, waiting_room=0))
    first = begin(shell)
    first.lose()
    shell.loop.advance(HOLD_MS + 100)
    other = shell.call()
    assert resume(shell, token_of(first)).status == 503
    other.receive(masked(Opcode.CLOSE, b"\x03\xe8"))
    other.lose()
    assert resume(shell, token_of(first)).status == 101


def test_a_session_that_ends_while_nobody_is_there_tells_its_end_to_whoever_comes_back() -> None:
    shell = Shell("stt")
    first = begin(shell)
    first.receive(text({"type": "session.close"}))
    first.lose()
    answer_last(shell, "the last words")
    second = resume(shell, token_of(first))
    assert second.types() == ["session.ready", "transcript.final", "session.closing"]
    assert second.close_code == 1000
    second.receive(masked(Opcode.CLOSE, b"\x03\xe8"))
    second.lose()
    assert [entry["event"] for entry in shell.logged].count("session closed") == 1
    assert resume(shell, token_of(second)).status == 404


def test_a_peer_that_answers_no_ping_is_kept_too() -> None:
    shell = Shell("stt", ping_interval_ms=1_000, ping_timeout_ms=1_000)
    first = begin(shell)
    shell.loop.advance(2_500)
    assert first.transport.is_aborted
    assert first.close_code is None
    first.lose()
    assert resume(shell, token_of(first)).status == 101


def test_a_drain_ends_what_nobody_listens_to_and_keeps_nothing_more() -> None:
    shell = Shell("stt")
    first, second = begin(shell), begin(shell)
    first.lose()
    shell.services.state.begin_drain()
    shell.services.sessions.store.end_all("draining", shell.loop.now_ms)
    second.lose()
    assert [entry["event"] for entry in shell.logged].count("session closed") == 2
    assert shell.admission.taken == 0


def test_a_drain_that_leaves_calls_time_lets_them_come_back_until_it_ends_them() -> None:
    shell = Shell("stt")
    first = begin(shell)
    shell.services.state.begin_drain(leaves_calls=True)
    assert shell.call().status == 503
    for _ in range(2):
        first.lose()
        assert shell.services.sessions.store.detached == 1
        first = resume(shell, token_of(first))
        assert first.status == 101
    shell.services.state.begin_drain()
    first.lose()
    assert shell.services.sessions.store.detached == 0
    assert resume(shell, token_of(first)).status != 101


def test_too_many_kept_calls_cost_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voiceserver.transport.session_store.MAX_DETACHED", 2)
    shell = Shell("stt")
    lines = [begin(shell) for _ in range(3)]
    for line in lines:
        line.lose()
    assert [resume(shell, token_of(line)).status for line in lines] == [410, 101, 101]


def test_kept_bytes_are_bounded_for_all_calls_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voiceserver.transport.session_store.MAX_DETACHED_BYTES", 5 * len(CHUNK) * 2)
    shell = Shell("stt")
    lines = [begin(shell) for _ in range(3)]
    for line in lines:
        line.lose()
    assert shell.services.sessions.store.detached < 3
    assert resume(shell, token_of(lines[-1])).status == 101


WIDE = "\u4f60" * 50_000  # 200 kB


@pytest.mark.parametrize(
    "event",
    [
        {"type": "item.append", "item": {"role": "user", "text": WIDE}},
        {"type": "session.update", "instructions": WIDE},
        {"type": "session.update", "tools": [{"name": "t", "description": WIDE}]},
        {"type": "session.update", "tools": [{"name": "t", "parameters": {"a": [{}] * 4_000}}]},
        {"type": "reply.create", "is_out_of_band": True, "instructions": WIDE},
    ],
    ids=["history", "instructions", "tools", "parameters", "replies that wait"],
)
def test_what_a_client_gave_its_call_counts_as_kept(
    event: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voiceserver.transport.session_store.MAX_DETACHED_BYTES", 500_000)
    shell = Shell("stt", "reply")
    lines = [begin(shell) for _ in range(4)]
    for line in lines:
        line.receive(text({"type": "reply.create"}))  # one is in progress
        line.receive(text(event))
        assert "error" not in line.types()
        line.lose()
    assert shell.services.sessions.store.detached in (1, 2)
    assert resume(shell, token_of(lines[-1])).status == 101


def test_what_is_said_while_nobody_is_there_counts_as_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voiceserver.transport.session_store.MAX_DETACHED_BYTES", 200_000)
    shell = Shell("stt")
    first, second = begin(shell), begin(shell)
    for line in (first, second):
        commit(line)
        line.lose()
    assert shell.services.sessions.store.detached == 2
    answer_last(shell, "word " * 30_000)
    shell.loop.advance(HOLD_MS + 100)
    assert shell.services.sessions.store.detached == 1
    assert resume(shell, token_of(first)).status == 410
    assert transcripts(resume(shell, token_of(second)))


def test_the_oldest_call_may_be_the_one_that_grew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voiceserver.transport.session_store.MAX_DETACHED_BYTES", 200_000)
    shell = Shell("stt")
    second, first = begin(shell), begin(shell)
    for line in (first, second):
        commit(line)
        line.lose()
    answer_last(shell, "word " * 30_000)
    shell.loop.advance(shell.services.sessions.store.window_ms - 1_000)
    assert resume(shell, token_of(first)).status == 410
    assert resume(shell, token_of(second)).status == 101
    assert [entry["reason"] for entry in shell.logged if entry["event"] == "session closed"] == ["evicted"]


def test_a_codec_that_keeps_a_conversation_of_its_own_tells_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voiceserver.transport.session_store.MAX_DETACHED_BYTES", 500_000)
    conversation = Conversation()
    item = Item("long", "message", "user")
    item.parts.append(Part("input_text", "x" * 75_000))
    conversation.add(item)
    assert conversation.kept_bytes >= 300_000
    monkeypatch.setattr(NativeCodec, "memory_bytes", conversation.kept_bytes)
    shell = Shell("stt")
    lines = [begin(shell) for _ in range(3)]
    for line in lines:
        line.lose()
    assert shell.services.sessions.store.detached == 1


def test_messages_are_kept_until_a_pong_says_that_they_arrived() -> None:
    said = ReplayBuffer()
    for number in range(ASK_BYTES // 1_000 + 2):
        said.add(b"%04d" % number * 250)
    ping = said.ask()
    assert said.ask() == b""  # one at a time
    said.add(b"later")
    said.acknowledge(int.from_bytes(ping[2:], "big"))
    assert list(said.after(0)) == [b"later"]
    said.acknowledge(10**6)  # of messages never sent
    assert list(said.after(said.count - 1)) == [b"later"]


def test_what_is_kept_of_one_call_is_bounded() -> None:
    said = ReplayBuffer()
    for _ in range(5_000):
        said.add(bytes(1_000))
        said.forget_oldest()
    assert said.size <= MAX_CALL_BYTES
    assert said.acknowledged + len(list(said.after(0))) == said.count == 5_000


def test_a_realtime_conversation_is_resumed_by_its_id_where_the_client_asked_for_that() -> None:
    shell = Shell("stt")
    line = shell.call(upgrade("/v1/realtime?model=m"))
    line.receive(
        text(
            {
                "type": "session.update",
                "session": {
                    "type": "realtime",
                    "audio": {"input": {"turn_detection": None}},
                    "resumption": {"enabled": True},
                },
            }
        )
    )
    (told,) = [event for event in line.events() if event["type"] == "conversation.created"]
    chunk = base64.b64encode(bytes(9_600)).decode()
    line.receive(text({"type": "input_audio_buffer.append", "audio": chunk}))
    line.receive(text({"type": "input_audio_buffer.commit"}))
    line.lose()
    answer_last(shell, "heard while away")
    again = shell.call(upgrade(f"/v1/realtime?model=m&conversation_id={told['conversation']['id']}"))
    events = again.events()
    assert [event["type"] for event in events[:3]] == [
        "session.created",
        "conversation.created",
        "conversation.item.created",
    ]
    assert events[1]["conversation"]["id"] != told["conversation"]["id"]
    said = [event for event in events if event["type"].endswith("input_audio_transcription.completed")]
    assert [event["transcript"] for event in said] == ["heard while away"]


def test_a_realtime_conversation_that_nobody_asked_to_keep_is_gone() -> None:
    shell = Shell("stt")
    line = shell.call(upgrade("/v1/realtime?model=m"))
    line.receive(text({"type": "session.update", "session": {"type": "realtime", "instructions": "x"}}))
    line.lose()
    assert shell.logged[-1]["event"] == "session closed"
    assert shell.call(upgrade("/v1/realtime?model=m&conversation_id=conv_1")).status == 404


def figures(shell: Shell) -> dict[str, float]:
    lines = shell.metrics.to_text().decode().splitlines()
    return {
        name.removeprefix("voiceserver_calls_"): float(value)
        for name, _, value in (line.rpartition(" ") for line in lines)
        if name.startswith("voiceserver_calls_")
    }


def test_who_comes_back_hears_how_many_of_its_messages_came() -> None:
    shell = Shell("stt")
    first = begin(shell)
    for instructions in ("a", "b"):
        first.receive(text({"type": "session.update", "instructions": instructions}))
    first.receive(text({"type": "no such thing"}))  # a mistake is a message too
    first.lose()
    second = resume(shell, token_of(first))
    assert second.events()[0]["received_events"] == 3
    commit(second)
    second.lose()
    assert resume(shell, token_of(second)).events()[0]["received_events"] == 4
    assert "received_events" not in first.events()[0]


def test_metrics_tell_what_became_of_broken_calls() -> None:
    shell = Shell("stt")
    calls = [begin(shell) for _ in range(3)]
    for call in calls:
        call.lose()
    assert figures(shell)["detached"] == 3
    back = resume(shell, token_of(calls[0]))
    assert (figures(shell)["detached"], figures(shell)["resumed_total"]) == (2, 1)
    shell.loop.advance(shell.services.sessions.store.window_ms + 1_000)
    told = figures(shell)
    assert (told["detached"], told['given_up_total{reason="expired"}']) == (0, 2)
    assert back.close_code is None


def test_a_token_names_the_process_that_keeps_its_call() -> None:
    stats, ends = SharedStats.create(4), [*socket.socketpair(), *socket.socketpair()]
    shell = Shell("stt", peer=Peer(1, ends[0], stats, Handoff(1, ends[1], ends[1:])))
    calls = shell.services.sessions.store
    first = begin(shell)
    token = token_of(first)
    assert token.startswith("sess_1_")
    assert calls.elsewhere(token) is None
    assert calls.elsewhere(token.replace("_1_", "_2_")) == 2
    assert calls.elsewhere(token.replace("_1_", "_3_")) is None, "there is no such process"
    first.lose()
    second = resume(shell, token)
    assert second.events()[0]["is_resumed"]
    away = resume(shell, token.replace("_1_", "_2_"))  # nobody to hand it to
    assert (away.status, away.body["error"]["code"]) == (503, "process_busy")
    stats.close()
    for end in ends:
        end.close()


# ---------------------------------------------------------------------------------------------------------- memory


def say_goodbye(shell: Shell, line: Line) -> None:
    line.receive(text({"type": "session.close"}))
    line.receive(masked(Opcode.CLOSE, b"\x03\xe8"))
    line.lose()


def break_and_expire(shell: Shell, line: Line) -> None:
    line.lose()
    shell.services.sessions.store.end_all("evicted", shell.loop.now_ms)


def break_and_come_back_and_leave(shell: Shell, line: Line) -> None:
    line.lose()
    say_goodbye(shell, resume(shell, token_of(line)))


def be_dropped(shell: Shell, line: Line) -> None:
    line.receive(b"\xf2\x80\0\0\0\0")
    line.lose()


ENDS = [say_goodbye, break_and_expire, break_and_come_back_and_leave, be_dropped]


def counts_of_calls() -> list[int]:
    """How many calls, replay buffers and sessions there are in this process."""
    kinds = [type(one) for one in gc.get_objects()]
    return [kinds.count(kind) for kind in (Call, ReplayBuffer, Session)]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_a_call_that_is_over_is_let_go_at_once(end: Callable[[Shell, Line], None]) -> None:
    """Though timers of it have yet to come, and without the garbage collector, which passes over what is frozen."""
    gc.collect()
    before = counts_of_calls()  # other tests of this process keep the worlds that they share
    shell = Shell("vad", "stt", "reply", "tts", ping_interval_ms=20_000)
    kept = begin(shell)
    line = begin(shell)
    for one in (kept, line):
        one.receive(text({"type": "item.append", "item": {"role": "user", "text": "x" * 100_000}}))
        one.receive(text({"type": "reply.create"}))
        shell.pools["reply"].streams[-1].answer(
            ResultKind.TEXT, 0, 0, b"An answer that is never acknowledged. " * 50
        )
    gc.collect()
    gc.disable()
    try:
        end(shell, line)
        forget_the_test(shell, line)
        assert counts_of_calls() == [count + 1 for count in before], "of the call that goes on"
    finally:
        gc.enable()
    assert kept.close_code is None


GIVEN: dict[str, dict[str, object]] = {
    "history": {"type": "item.append", "item": {"role": "user", "text": WIDE}},
    "instructions": {"type": "session.update", "instructions": WIDE},
    "tools": {"type": "session.update", "tools": [{"name": "t", "description": WIDE}]},
    "replies that wait": {"type": "reply.create", "is_out_of_band": True, "instructions": WIDE},
    "audio": {},
}


@given(
    calls=st.lists(
        st.tuples(st.sampled_from(sorted(GIVEN)), st.integers(1, 3), st.integers(0, 40)),
        min_size=12,
        max_size=20,
    )
)
@settings(max_examples=10, deadline=None)
def test_what_all_calls_without_a_connection_cost_is_bounded(calls: list[tuple[str, int, int]]) -> None:
    """The bound holds at every moment and for the memory that the process really has, not for an estimate of it."""
    bound = 4_000_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voiceserver.transport.session_store.MAX_DETACHED_BYTES", bound)
        shell = Shell("stt", "reply")
        store = shell.services.sessions.store
        for line in [begin(shell) for _ in range(3)]:  # what is only paid once
            break_and_expire(shell, line)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for given_by_client, times, answers in calls:
            line = begin(shell)
            line.receive(text({"type": "reply.create"}))
            (stream,) = shell.pools["reply"].streams[-1:]
            for _ in range(times):
                line.receive(text(GIVEN[given_by_client]) if GIVEN[given_by_client] else audio(CHUNK * 100))
            line.lose()
            for _ in range(answers):
                if not stream.is_closed:
                    stream.answer(ResultKind.TEXT, stream.sent[0][1], 1, b"word " * 2_000)
                assert sum(call.messages.memory_bytes for call in store.kept()) <= bound
            forget_the_test(shell, line)
            del line, stream
            shell.loop.settle()
        gc.collect()
        spent = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert spent <= bound * 1.1 + 500_000


def forget_the_test(shell: Shell, line: Line) -> None:
    """What the pools and the transport of a test remember is not the server's."""
    line.transport.data.clear()
    for pool in shell.pools.values():
        for stream in pool.streams:
            stream.sent = stream.sent[:1]
        pool.streams = [stream for stream in pool.streams if not stream.is_closed]
        pool.forgotten.clear()
