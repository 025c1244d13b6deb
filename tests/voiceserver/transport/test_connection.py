from __future__ import annotations

import json
import struct

import pytest
from websockets.frames import Opcode

from tests.voiceserver.shell import Shell, audio, masked, text, upgrade
from voiceserver.config.schema import BackpressureConfig
from voiceserver.errors import Refusal
from voiceserver.session.session import Session
from voiceserver.transport.call import TOLD_MS
from voiceserver.transport.connection import CLOSE_TIMEOUT_MS
from voiceserver.transport.flow_control import REST
from voiceserver.transport.timers import KEEPALIVE_TICK_MS
from voiceserver.transport.websocket import FRAMES_PER_TURN, RUN_BYTES
from voiceserver_workers.ipc.messages import RequestKind, ResultKind

CHUNK = b"\x01\x00" * 1_600  # 100 ms at 16 kHz


def test_a_caller_is_greeted_with_the_rates_in_the_same_write_as_the_101() -> None:
    line = Shell("vad").call(upgrade("/v1/stream?rate=8000&reply_rate=16000"))
    assert line.status == 101
    (ready,) = line.events()
    assert (ready["type"], ready["input_rate_hz"], ready["output_rate_hz"]) == (
        "session.ready",
        8_000,
        16_000,
    )
    assert line.transport.writes == 1


def test_deflate_is_never_negotiated() -> None:
    line = Shell("vad").call(upgrade(more="Sec-WebSocket-Extensions: permessage-deflate\r\n"))
    assert line.status == 101
    assert b"xtensions" not in line.transport.data


def test_audio_goes_to_the_stage_and_what_it_consumed_is_accounted() -> None:
    shell = Shell("vad")
    line = shell.call()
    assert shell.pools["vad"].streams == []  # nothing is opened for a silent caller
    line.receive(audio(CHUNK))
    line.receive(audio(CHUNK) + audio(CHUNK))  # what comes together goes on together
    (stream,) = shell.pools["vad"].streams
    assert stream.sent == [(RequestKind.DATA, 0, 1_600, CHUNK), (RequestKind.DATA, 0, 4_800, CHUNK + CHUNK)]
    stream.answer(ResultKind.CONSUMED, seq=4_800)
    line.receive(text({"type": "session.close"}))
    closing = line.events()[-1]
    assert closing["type"] == "session.closing"
    assert closing["accounting"]["received_ms"] == closing["accounting"]["consumed_ms"] == 300.0
    assert line.close_code == 1000
    assert stream.is_closed


def test_half_samples_that_come_together_do_not_make_a_whole_one() -> None:
    shell = Shell("vad")
    line = shell.call()
    half = bytes(201)
    line.receive(audio(CHUNK) + audio(half) + audio(half) + audio(CHUNK))
    errors = [event for event in line.events() if event["type"] == "error"]
    assert [error["code"] for error in errors] == ["audio_misaligned"] * 2
    assert b"".join(payload for *_, payload in shell.pools["vad"].streams[0].sent) == CHUNK * 2


def test_what_comes_together_is_handed_on_in_pieces_of_bounded_size() -> None:
    shell = Shell("vad")
    line = shell.call()
    line.receive(audio(CHUNK) * 30)
    sent = [len(payload) for *_, payload in shell.pools["vad"].streams[0].sent]
    assert sum(sent) == 30 * len(CHUNK)
    assert len(CHUNK) < max(sent) < RUN_BYTES + len(CHUNK)


def test_a_message_in_fragments_with_a_ping_inside_is_the_same_audio() -> None:
    shell = Shell("vad")
    line = shell.call()
    first, last = masked(Opcode.BINARY, CHUNK[:11], fin=False), masked(Opcode.CONT, CHUNK[11:])
    line.receive(first + masked(Opcode.PING, b"hi") + last)
    assert shell.pools["vad"].streams[0].sent == [(RequestKind.DATA, 0, 1_600, CHUNK)]
    assert [frame.data for frame in line.frames() if frame.opcode is Opcode.PONG] == [b"hi"]


def test_frames_sent_together_with_the_handshake_are_not_lost() -> None:
    shell = Shell("vad")
    shell.call(upgrade() + audio(CHUNK))
    assert shell.pools["vad"].streams[0].sent[0][3] == CHUNK


def test_all_events_of_a_tick_leave_in_one_write() -> None:
    shell = Shell("vad", "stt", "reply", "tts")
    line = shell.call()
    before = line.transport.writes
    line.receive(text({"type": "nope"}) + text({"type": "nope"}) + masked(Opcode.PING, b""))
    assert line.transport.writes == before + 1
    assert line.types() == ["session.ready", "error", "error"]


@pytest.mark.parametrize(
    ("frame", "code", "param"),
    [
        (audio(b"odd"), "audio_misaligned", None),
        (masked(Opcode.TEXT, b"not json"), "invalid_json", None),
        (text({"type": "session.updat"}), "unknown_type", "type"),
        (text({"type": "session.update", "speed": "x"}), "invalid_field", "speed"),
        (text({"type": "reply.cancel"}), "reply_not_active", None),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,  # frames are masked at random
)
def test_a_mistake_is_answered_and_the_connection_goes_on(frame: bytes, code: str, param: str | None) -> None:
    shell = Shell("vad", "reply")
    line = shell.call()
    line.receive(frame + audio(CHUNK))
    error = line.events()[-1]
    assert (error["type"], error["code"], error.get("param")) == ("error", code, param)
    assert shell.pools["vad"].streams[0].sent[0][3] == CHUNK
    assert line.close_code is None


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "item.delete", "key": "nobody"}, "item_not_found"),
        ({"type": "input.commit"}, "input_empty"),
        ({"type": "session.update", "tool_choice": "x"}, "invalid_field"),
    ],
)
def test_an_error_that_the_session_finds_carries_the_event_id_too(event: dict[str, str], code: str) -> None:
    line = Shell("vad", "reply").call()
    line.receive(text({**event, "event_id": "e9"}))
    error = line.events()[-1]
    assert (error["code"], error["event_id"]) == (code, "e9")


def test_a_fault_in_what_a_caller_says_is_told_and_closed_and_never_reaches_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shell = Shell("vad")
    line = shell.call()

    def burst(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr(Session, "receive_event", burst)
    line.receive(text({"type": "input.clear"}))
    assert line.types() == ["session.ready", "error", "session.closing"]
    assert line.close_code == 1011
    assert "connection fault" in [entry.get("event") for entry in shell.logged]


@pytest.mark.parametrize(
    ("frame", "close_code", "code"),
    [
        (b"\x82\xff" + struct.pack("!Q", 2_001) + b"mask", 1009, "message_too_big"),
        (masked(Opcode.TEXT, b"\xff\xfe"), 1007, "invalid_utf8"),
        (b"\x82\x02ab", 1002, "websocket_protocol"),
        (b"\xc2\x80mask", 1002, "websocket_protocol"),
        (b"\x83\x80mask", 1002, "websocket_protocol"),
    ],
    ids=["too big", "invalid UTF-8", "unmasked", "reserved bit", "bad opcode"],
)
def test_a_broken_standard_is_said_accounted_and_closed(frame: bytes, close_code: int, code: str) -> None:
    shell = Shell("vad", max_message_bytes=2_000)
    line = shell.call()
    line.receive(frame)
    assert line.types() == ["session.ready", "error", "session.closing"]
    assert line.events()[1]["code"] == code
    assert line.close_code == close_code
    assert line.transport.is_ended
    line.lose()
    assert shell.logged[-1]["code"] == close_code


def test_the_peers_close_is_answered_and_everything_is_given_back() -> None:
    shell = Shell("vad", limits=BackpressureConfig(max_connections=1))
    line = shell.call()
    line.receive(audio(CHUNK))
    line.receive(masked(Opcode.CLOSE, struct.pack("!H", 1000) + b"bye"))
    assert line.close_code == 1000
    assert line.frames()[-1].opcode is Opcode.CLOSE
    assert line.transport.is_ended
    line.lose()
    assert shell.pools["vad"].streams[0].is_closed
    assert shell.admission.taken == 0
    assert shell.services.state.sessions == 0
    assert not shell.services.state.connections
    closing = shell.logged[-1]
    assert (closing["event"], closing["code"], closing["received_ms"]) == ("session closed", 1000, 100.0)


def test_a_full_stream_keeps_the_rest_until_there_is_room() -> None:
    shell = Shell("vad")
    pool = shell.pools["vad"]
    pool.room = 1
    line = shell.call()
    for _ in range(3):
        line.receive(audio(CHUNK))
    (stream,) = pool.streams
    assert len(stream.sent) == 1
    pool.room = 10
    stream.owner.on_room("vad")
    stream.owner.on_tick()
    assert [seq for _, _, seq, _ in stream.sent] == [1_600, 3_200, 4_800]


def test_audio_that_nobody_takes_is_announced_by_the_deadline_and_again() -> None:
    shell = Shell("vad")
    shell.pools["vad"].refusal = Refusal("no_workers", 500.0)
    line = shell.call()
    line.receive(audio(CHUNK))
    shell.loop.advance(249.0)
    assert line.types() == ["session.ready"]
    shell.loop.advance(3.0)
    busy = line.events()[-1]
    assert (busy["type"], busy["stage"], busy["lag_ms"]) == ("server.busy", "vad", 250.0)
    shell.loop.advance(1_010.0)
    assert line.types().count("server.busy") == 2


def test_a_refused_stream_is_asked_for_again_until_it_opens() -> None:
    shell = Shell("vad")
    pool = shell.pools["vad"]
    pool.refusal = Refusal("all_places_taken", 500.0)
    line = shell.call()
    line.receive(audio(CHUNK))
    shell.loop.advance(50.0)
    assert pool.streams == []
    pool.refusal = None
    shell.loop.advance(60.0)
    assert pool.streams[0].sent[0][3] == CHUNK
    assert "server.busy" not in line.types()


def test_a_lost_worker_is_told_at_once_and_the_audio_goes_out_again() -> None:
    shell = Shell("vad")
    line = shell.call()
    line.receive(audio(CHUNK))
    (stream,) = shell.pools["vad"].streams
    stream.owner.on_stream_lost("vad", "worker_lost")
    stream.owner.on_tick()
    shell.loop.settle()
    assert line.events()[1]["reason"] == "worker_lost"
    assert shell.pools["vad"].streams[1].sent == stream.sent


def test_a_flood_of_tiny_messages_takes_turns_with_reading_paused() -> None:
    shell = Shell("vad")
    line = shell.call()
    line.connection.data_received(audio(b"\x00\x00") * (2 * FRAMES_PER_TURN + 1))
    (stream,) = shell.pools["vad"].streams

    def samples() -> int:
        return sum(len(payload) // 2 for *_, payload in stream.sent)

    assert samples() == FRAMES_PER_TURN
    assert not line.transport.is_reading()
    shell.loop.run_tick()
    assert samples() == 2 * FRAMES_PER_TURN
    assert not line.transport.is_reading()
    shell.loop.settle()
    assert samples() == 2 * FRAMES_PER_TURN + 1
    assert line.transport.is_reading()


def test_whoever_keeps_the_server_busy_has_a_quarter_of_it() -> None:
    shell = Shell("vad")
    line = shell.call()
    clock = shell.services.ticks.clock
    times = iter([clock(), clock() + 20.0])  # when its message came, and when that was read
    shell.services.ticks.clock = lambda: next(times, clock())
    line.connection.data_received(text({"type": "session.update", "instructions": "x" * 700_000}) * 2)
    shell.loop.settle()
    assert line.types().count("session.updated") == 1
    assert not line.transport.is_reading()
    shell.loop.advance(20.0 * REST - 0.1)
    assert not line.transport.is_reading()
    shell.loop.advance(0.2)
    assert line.types().count("session.updated") == 2
    assert line.transport.is_reading()


# ------------------------------------------------------------------------------------------------------------ time


@pytest.mark.parametrize("part_ms", [0.0, 0.2, 0.4, 0.6, 0.9])
def test_the_loop_is_not_woken_again_and_again_for_what_is_due_in_a_moment(part_ms: float) -> None:
    shell = Shell("vad")
    shell.loop.now_ms += part_ms
    line = shell.call()
    line.receive(audio(CHUNK))
    before, loop = shell.loop.timers_set, shell.loop
    while line.types().count("server.busy") == 0:
        assert loop.timers_set - before < 10
        loop.advance(50.0)


def test_a_handshake_that_never_finishes_ends_by_408() -> None:
    shell = Shell("vad", handshake_timeout_ms=300)
    line = shell.call(b"GET /v1/stream HTTP/1.1\r\nHost: ")
    shell.loop.advance(298.0)
    assert not line.transport.data
    shell.loop.advance(KEEPALIVE_TICK_MS + 5.0)
    assert line.status == 408
    assert line.transport.is_ended
    shell.loop.advance(CLOSE_TIMEOUT_MS + 5.0)
    assert line.transport.is_aborted


def test_a_head_without_end_is_refused_by_size() -> None:
    line = Shell("vad").call(b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000)
    assert line.status == 431
    assert line.transport.is_ended


def test_tls_on_the_plain_port_costs_one_log_line() -> None:
    shell = Shell("vad")
    line = shell.call(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    assert line.transport.is_aborted
    assert [entry["event"] for entry in shell.logged] == ["a client speaks TLS to the plain port"]


def test_a_silent_peer_is_pinged_and_then_given_up() -> None:
    shell = Shell("vad", ping_interval_ms=1_000, ping_timeout_ms=500)
    line = shell.call()
    shell.loop.advance(1_300.0)
    assert line.frames()[-1].opcode is Opcode.PING
    line.receive(masked(Opcode.PONG, b""))
    shell.loop.advance(900.0)
    assert [frame.opcode for frame in line.frames()].count(Opcode.PING) == 1
    shell.loop.advance(2_500.0)
    assert line.close_code == 1011
    assert line.events()[-2]["code"] == "ping_timeout"


def test_a_peer_that_talks_is_not_pinged() -> None:
    shell = Shell("vad", ping_interval_ms=1_000)
    line = shell.call()
    for _ in range(10):
        shell.loop.advance(500.0)
        line.receive(audio(b""))
    assert Opcode.PING not in [frame.opcode for frame in line.frames()]


def test_a_message_that_dribbles_in_does_not_count_as_life() -> None:
    shell = Shell("vad", ping_interval_ms=1_000, ping_timeout_ms=1_000)
    line = shell.call()
    line.receive(audio(CHUNK)[:4])
    for _ in range(30):
        shell.loop.advance(100.0)
        if line.close_code is None:
            line.receive(b"\x00")
    assert line.close_code == 1011


@pytest.mark.parametrize(
    ("setting", "code"),
    [({"idle_timeout_ms": 2_000}, "idle_timeout"), ({"max_session_ms": 2_000}, "session_expired")],
)
def test_idle_and_endless_sessions_end_with_a_reason(setting: dict[str, int], code: str) -> None:
    shell = Shell("vad", **setting)
    line = shell.call()
    shell.loop.advance(1_900.0)
    assert line.types() == ["session.ready"]
    shell.loop.advance(600.0)
    assert line.events()[1]["code"] == code
    assert line.close_code == 1000


def test_a_peer_that_never_answers_the_close_is_dropped() -> None:
    shell = Shell("vad")
    line = shell.call()
    line.receive(text({"type": "session.close"}))
    assert line.close_code == 1000
    assert not line.transport.is_ended
    shell.loop.advance(CLOSE_TIMEOUT_MS + 5.0)
    assert line.transport.is_aborted


def test_a_slow_reader_is_dropped_with_a_reason() -> None:
    shell = Shell("vad", slow_reader_timeout_ms=3_000)
    line = shell.call()
    line.connection.pause_writing()
    shell.loop.advance(2_900.0)
    assert not line.transport.is_aborted
    shell.loop.advance(200.0)
    assert (line.types()[-2:], line.close_code) == (["error", "session.closing"], 1008), (
        "behind what is unread"
    )
    assert not line.transport.is_aborted
    shell.loop.advance(CLOSE_TIMEOUT_MS)
    assert line.transport.is_aborted
    line.lose()
    assert (shell.logged[-1]["code"], shell.logged[-1]["reason"]) == (1008, "slow_reader")


def test_a_reader_that_recovers_is_kept() -> None:
    shell = Shell("vad", slow_reader_timeout_ms=3_000)
    line = shell.call()
    line.connection.pause_writing()
    shell.loop.advance(2_900.0)
    line.connection.resume_writing()
    shell.loop.advance(10_000.0)
    assert not line.transport.is_aborted


# ------------------------------------------------------------------------------------------------------- admission


def test_a_full_server_answers_503_before_the_upgrade() -> None:
    shell = Shell("vad", limits=BackpressureConfig(max_connections=1, retry_after_ms=4_000))
    first, second = shell.call(), shell.call()
    assert (first.status, second.status) == (101, 503)
    assert second.body["error"]["code"] == "at_capacity"
    head = bytes(second.transport.data).partition(b"\r\n\r\n")[0].decode()
    seconds = int(head.split("Retry-After: ")[1].split("\r\n")[0])
    assert 4 <= seconds <= 6
    second.lose()
    first.lose()
    assert shell.call().status == 101


def test_a_refused_browser_is_told_and_closed_a_while_later() -> None:
    shell = Shell("vad", limits=BackpressureConfig(max_connections=1))
    shell.call()
    browser = shell.call(upgrade(more="Origin: https://example.test\r\n"))
    assert browser.status == 101
    (error,) = browser.events()
    assert (error["type"], error["code"], error["retryable"]) == ("error", "at_capacity", True)
    browser.receive(audio(CHUNK))
    shell.loop.advance(TOLD_MS - 10.0)
    assert browser.close_code is None
    shell.loop.advance(20.0)
    assert browser.close_code == 1013
    assert shell.pools["vad"].streams == []
    assert shell.admission.lingering == 1
    browser.lose()
    assert shell.admission.lingering == 0
    assert shell.admission.taken == 1


def test_a_thousand_abandoned_handshakes_leak_no_place() -> None:
    shell = Shell("vad", limits=BackpressureConfig(max_connections=2))
    heads = [
        b"",
        upgrade()[:40],
        upgrade(),
        upgrade("/v1/stream?rate=1"),
        upgrade("/nope"),
        upgrade().replace(b": 13", b": 12"),
    ]
    for index in range(1_000):
        line = shell.call(heads[index % len(heads)])
        line.lose()
    assert shell.admission.taken == 0
    assert shell.services.state.sessions == 0
    assert not shell.services.state.connections


# ------------------------------------------------------------------------------------------------------------ ends


def test_a_drain_is_announced_and_ends_with_1012() -> None:
    shell = Shell("vad")
    line = shell.call()
    line.connection.drain(5_000.0)
    shell.loop.settle()
    assert line.types() == ["session.ready", "server.draining", "session.closing"]
    assert line.events()[1]["deadline_ms"] == 5_000.0
    assert line.close_code == 1012


def test_new_callers_of_a_draining_server_are_refused() -> None:
    shell = Shell("vad")
    shell.services.state.begin_drain()
    line = shell.call()
    assert (line.status, line.body["error"]["code"]) == (503, "draining")
    assert shell.admission.taken == 0


def test_a_fault_of_ours_is_told_without_its_text_and_hits_one_caller_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shell = Shell("vad")
    line, other = shell.call(), shell.call()
    line.receive(audio(CHUNK))
    other.receive(audio(CHUNK))

    def explode(*args: object) -> None:
        raise RuntimeError("secret path /home")

    call = line.connection.call
    assert call is not None
    with monkeypatch.context() as patch:
        patch.setattr(type(call.session), "receive_result", explode)
        shell.pools["vad"].streams[0].answer(ResultKind.CONSUMED, seq=1_600)
    shell.loop.settle()
    error = line.events()[1]
    assert error["code"] == "internal_error"
    assert "secret" not in json.dumps(line.events())
    assert line.close_code == 1011
    assert other.close_code is None
    assert "connection fault" in [entry["event"] for entry in shell.logged]


def test_whoever_asks_for_answers_and_reads_none_is_not_read_any_more() -> None:
    shell = Shell("vad", write_limit_bytes=2_000)
    line = shell.call()
    line.connection.pause_writing()
    line.transport.unread = 2_500  # a reply that is ahead of its player: the caller may go on talking
    line.receive(masked(Opcode.PING, b"") * 3)
    assert line.transport.is_reading_now
    line.transport.unread = 9_000
    line.receive(masked(Opcode.PING, b"") * 3)
    assert not line.transport.is_reading_now
    line.transport.unread = 500
    line.connection.resume_writing()
    assert line.transport.is_reading_now
