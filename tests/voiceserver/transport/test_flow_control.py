"""A caller that sends faster than real time is read more slowly and loses nothing; a live one is shed as ever."""

from __future__ import annotations

import pytest
from websockets.frames import Opcode

from tests.voiceserver.shell import AnsweredStream, Line, Shell, audio, masked, text, upgrade
from voiceserver.config.schema import SessionConfig
from voiceserver.errors import Refusal
from voiceserver.events import events as ev
from voiceserver.session import requests
from voiceserver.session.audio_input import PIECE, AudioInput
from voiceserver.session.session import Session
from voiceserver.transport.ticks import LONG_TURN_MS
from voiceserver_workers.ipc.messages import RequestKind, ResultKind

SECOND = b"\x01\x00" * 16_000


def send(line: Line, seconds: int) -> int:
    """As fast as the server reads; how many seconds it read."""
    for sent in range(seconds):
        if not line.transport.is_reading():
            return sent
        line.receive(audio(SECOND))
    return seconds


def take(stream: AnsweredStream, seconds: float) -> None:
    stream.answer(ResultKind.CONSUMED, seq=round(seconds * 16_000))
    stream.pool.streams[0].owner.on_tick()


def dropped_ms(line: Line) -> float:
    return sum(float(event.get("dropped_ms", 0.0)) for event in line.events())


def test_a_recording_is_read_as_fast_as_it_is_taken_and_nothing_is_dropped() -> None:
    shell = Shell("vad")
    line = shell.call()
    left, read = 23, 0
    while left:
        now = send(line, left)
        left, read = left - now, read + now
        if left:
            assert not line.transport.is_reading()
            (stream,) = shell.pools["vad"].streams
            take(stream, read - 3)
            shell.loop.settle()
            assert not line.transport.is_reading(), "more than a quarter waits"
            take(stream, read - 2)
            shell.loop.settle()
            assert line.transport.is_reading()
    take(stream, 23)
    line.receive(text({"type": "session.close"}))
    books = line.events()[-1]["accounting"]
    assert books["received_ms"] == 23_000.0
    assert books["dropped_ms"] == dropped_ms(line) == 0.0


def test_it_is_read_up_to_half_of_the_bound() -> None:
    assert send(Shell("vad").call(), 23) == 6


def test_a_live_caller_of_a_slow_server_is_shed_by_the_same_numbers_and_always_read() -> None:
    shell = Shell("vad")
    line = shell.call()
    shell.pools["vad"].room = 0
    for _ in range(13):
        shell.loop.advance(1_000.0)
        line.receive(audio(SECOND))
        assert line.transport.is_reading()
    shell.loop.advance(1_000.0)
    assert dropped_ms(line) == 3_000.0


def test_a_recording_after_a_long_silence_is_no_live_audio() -> None:
    shell = Shell("vad", ping_interval_ms=0)
    line = shell.call()
    line.receive(audio(SECOND))
    shell.pools["vad"].room = 1
    take(shell.pools["vad"].streams[0], 1)
    shell.loop.advance(60_000.0)
    assert send(line, 23) == 6
    shell.loop.advance(60_000.0)
    assert dropped_ms(line) == 0.0
    assert not line.transport.is_reading()


def test_a_burst_after_a_hiccup_is_live_audio() -> None:
    shell = Shell("vad")
    line = shell.call()
    shell.pools["vad"].room = 0
    for _ in range(6):
        shell.loop.advance(3_000.0)
        line.receive(audio(SECOND) * 3)
    assert line.transport.is_reading()
    shell.loop.advance(1_000.0)
    assert dropped_ms(line) == 8_000.0


def test_whoever_we_do_not_read_is_not_given_up_for_its_silence() -> None:
    shell = Shell("vad", ping_interval_ms=1_000, ping_timeout_ms=1_000, idle_timeout_ms=5_000)
    line = shell.call()
    read = send(line, 23)
    shell.loop.advance(60_000.0)
    assert line.close_code is None
    take(shell.pools["vad"].streams[0], read)
    shell.loop.settle()
    assert line.transport.is_reading()
    shell.loop.advance(30_000.0)
    assert line.transport.is_aborted, "now that we read, silence counts again"


def test_what_was_read_already_waits_too_and_goes_on_in_order() -> None:
    shell = Shell("vad")
    line = shell.call(upgrade("/v1/stream?rate=8000"))
    tiny = audio(b"\x01\x00" * 1_600)  # 200 ms
    line.connection.data_received(tiny * 300)  # a turn is 256 frames
    assert not line.transport.is_reading()
    shell.loop.settle()
    (stream,) = shell.pools["vad"].streams
    assert stream.sent[-1][2] == 256 * 1_600
    stream.answer(ResultKind.CONSUMED, seq=256 * 1_600)
    shell.loop.settle()
    assert stream.sent[-1][2] == 300 * 1_600


@pytest.mark.parametrize("is_choked_first", [True, False])
def test_a_slow_reader_is_not_read_because_it_reads_again(is_choked_first: bool) -> None:
    shell = Shell("vad")
    line = shell.call()
    for is_choked in (is_choked_first, not is_choked_first):
        if is_choked:
            line.transport.unread = 1 << 30
            line.connection.pause_writing()
        else:
            line.receive(audio(SECOND * 6))
    line.transport.unread = 0
    line.connection.resume_writing()
    shell.loop.settle()
    assert not line.transport.is_reading()
    take(shell.pools["vad"].streams[0], 6)
    shell.loop.settle()
    assert line.transport.is_reading()


def test_a_draining_server_closes_whoever_it_does_not_read_and_reads_the_answer() -> None:
    shell = Shell("vad")
    line = shell.call()
    send(line, 23)
    line.connection.drain(1_000.0)
    shell.loop.advance(1_500.0)
    assert line.close_code == 1012
    assert line.transport.is_reading()


def test_whoever_comes_back_is_held_back_on_the_new_connection() -> None:
    shell = Shell("vad")
    line = shell.call()
    token = line.events()[0]["resume_token"]
    read = send(line, 23)
    line.lose()
    shell.loop.advance(100.0)
    back = shell.call(upgrade(f"/v1/stream?resume={token}"))
    assert back.status == 101
    assert not back.transport.is_reading()
    take(shell.pools["vad"].streams[0], read)
    shell.loop.settle()
    assert back.transport.is_reading()


def test_a_long_message_goes_on_in_pieces() -> None:
    audio_input = AudioInput(16_000, None, 10_000.0)
    pcm = bytes(2 * (3 * PIECE + 5))
    audio_input.receive(pcm, 0.0)
    pieces: list[tuple[int, int]] = []

    def send_on(kind: RequestKind, turn: int, seq: int, payload: bytes) -> bool:
        pieces.append((seq, len(payload) // 2))
        return True

    audio_input.outbox.send_to(send_on)
    assert [size for _, size in pieces] == [PIECE, PIECE, PIECE, 5]
    assert pieces[-1][0] == audio_input.received_seq == 3 * PIECE + 5
    audio_input.check()


def dear_answers(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event takes longer than a turn may."""
    handle = requests.handle

    def slowly(session: Session, event: ev.ClientEvent, now_ms: float) -> None:
        shell.loop.now_ms += LONG_TURN_MS * 2
        handle(session, event, now_ms)

    monkeypatch.setattr(requests, "handle", slowly)


def test_cheap_questions_with_dear_answers_are_taken_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell("vad", "reply")
    asker = shell.call()
    dear_answers(shell, monkeypatch)
    asker.connection.data_received(b"".join([text({"type": "session.update"})] * 20))
    shell.loop.run_tick()
    assert asker.types().count("session.updated") == 1
    assert not asker.transport.is_reading()
    shell.loop.advance(2_000)
    assert asker.types().count("session.updated") == 20
    assert asker.transport.is_reading()


def test_what_was_asked_waits_until_the_answers_before_it_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell("vad", "reply")
    asker = shell.call()
    dear_answers(shell, monkeypatch)
    asker.connection.data_received(b"".join([text({"type": "session.update"})] * 20))
    asker.transport.unread = 10 * shell.config.server.write_limit_bytes
    asker.connection.pause_writing()
    shell.loop.advance(2_000)
    assert asker.types().count("session.updated") == 1
    assert not asker.transport.is_reading()
    asker.transport.unread = 0
    asker.connection.resume_writing()
    shell.loop.advance(2_000)
    assert asker.types().count("session.updated") == 20
    assert asker.transport.is_reading()


@pytest.mark.parametrize("window_ms", [0, 60_000])
def test_a_caller_who_left_stands_in_line_for_nothing_and_leaves_nothing_behind(window_ms: int) -> None:
    shell = Shell("vad", "stt", session=SessionConfig(resume_window_ms=window_ms))
    line = shell.call()
    shell.pools["vad"].refusal = Refusal("full", 60_000.0, "vad")
    line.receive(audio(bytes(640)))
    line.receive(masked(Opcode.BINARY, bytes(70_000))[:60_000])
    call = line.connection.call
    assert call is not None
    line.lose()
    shell.loop.advance(window_ms + 10_000)
    assert call in shell.pools["vad"].forgotten
    assert call in shell.pools["stt"].forgotten
    assert line.connection._reader is None
