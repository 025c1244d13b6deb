"""What a session keeps is bounded, whatever a caller or a stage does, and what is given up is said."""

from __future__ import annotations

import pytest

from tests.voiceserver.session_bench import RATE_HZ, Bench, settings_of
from voiceserver.errors import Refusal
from voiceserver.events import events as ev
from voiceserver.session.turns import MOST_PENDING
from voiceserver_workers.ipc.messages import RequestKind

CHUNK = RATE_HZ // 10


def by_hand() -> Bench:
    """A caller who ends each turn, and whom stt never answers."""
    bench = Bench(turn_detection=None)
    bench.stt_answers = False
    return bench


def say_turn(bench: Bench) -> None:
    bench.seq += CHUNK
    bench.session.receive_audio(bytes(2 * CHUNK), bench.now_ms)
    bench.pump()
    bench.do(ev.InputCommit(creates_reply=False))


def waiting(bench: Bench) -> int:
    assert bench.session.transcripts is not None
    return len(bench.session.transcripts.pending_turns)


# ------------------------------------------------------------------------------------------- replies beside a reply


def talk_over_a_reply(bench: Bench, times: int) -> None:
    bench.do(ev.SessionUpdate(turn_detection=ev.TurnDetectionChange(interrupts_reply=False)))
    bench.converse("a question")
    bench.answer("One.", is_done=False)
    for count in range(times):
        bench.converse(f"and {count}")


def test_all_that_is_said_beside_a_reply_gets_one_answer() -> None:
    bench = Bench(settings_of(reply_timeout_ms=1e6))
    talk_over_a_reply(bench, 20)
    assert len(bench.session.queue or ()) == 1
    first = bench.session.reply
    assert first is not None
    bench.answer()
    bench.speak(1, 100)
    assert bench.session.reply not in (None, first)
    assert not bench.session.queue
    assert "and 19" in str(bench.asked()), "the answer is to all of it"
    bench.answer("Two.")
    bench.speak(1, 100)
    assert [done.reason for done in bench.all(ev.ReplyDone)] == ["completed", "completed"]


def test_a_reply_that_the_client_named_is_not_taken_for_that_answer() -> None:
    bench = Bench()
    talk_over_a_reply(bench, 0)
    bench.do(ev.ReplyCreate(key="mine", is_out_of_band=True))
    bench.converse("more")
    bench.converse("and more")
    assert [create.key for create in bench.session.queue or ()] == ["mine", ""]


# --------------------------------------------------------------------------------------------- stt that never ends


def test_stt_that_never_finishes_is_not_waited_for_without_end() -> None:
    bench = by_hand()
    for _ in range(MOST_PENDING + 8):
        say_turn(bench)
    assert waiting(bench) == MOST_PENDING
    failed = bench.all(ev.TranscriptFailed)
    assert [(event.turn, event.code) for event in failed] == [(turn, "stt_behind") for turn in range(1, 9)]
    assert failed[0].message == (
        "More than 32 turns wait for their transcripts, so the oldest is given up; 100 ms of it had not been heard."
    )
    books = bench.session.accounting()
    assert (books.received_ms, books.discarded_ms) == (4_000.0, 4_000.0), "nothing was heard"
    assert bench.session.audio_input is not None
    assert bench.session.audio_input.capture.discarded == 8 * CHUNK
    assert bench.session.audio_input.capture.memory_bytes < MOST_PENDING * 2 * (2 * CHUNK + 200)


def test_turns_that_no_stt_takes_are_bounded_too() -> None:
    bench = by_hand()
    bench.refuses["stt"] = Refusal("full", 100.0)
    for _ in range(300):
        say_turn(bench)
    assert bench.session.audio_input is not None
    assert waiting(bench) == MOST_PENDING
    books = bench.session.accounting()
    assert books.received_ms == books.dropped_ms + books.discarded_ms == 30_000.0
    bench.refuses.clear()
    bench.pass_time(200)
    turns = [turn for kind, turn, _, _ in bench.sent["stt"] if kind == RequestKind.FLUSH]
    assert turns == list(range(300 - MOST_PENDING + 1, 301))


def test_a_late_transcript_of_a_turn_that_was_given_up_is_passed_over() -> None:
    bench = by_hand()
    for _ in range(MOST_PENDING + 1):
        say_turn(bench)
    bench.transcribe("too late", turn=1)
    assert bench.all(ev.TranscriptFinal) == []
    bench.transcribe("in time", turn=2)
    assert bench.one(ev.TranscriptFinal).text == "in time"
    assert waiting(bench) == MOST_PENDING - 1


@pytest.mark.parametrize("sent", [1, 2])
def test_a_stage_that_has_half_of_a_turn_that_is_given_up_begins_afresh(sent: int) -> None:
    bench = by_hand()
    bench.refuses["stt"] = Refusal("full", 100.0)
    for _ in range(MOST_PENDING):
        say_turn(bench)
    session, audio_input = bench.session, bench.session.audio_input
    assert audio_input is not None
    session.stream_opened("stt", bench.now_ms)
    bench.open_stages.add("stt")
    for _ in range(sent):
        audio_input.capture.mark_sent()
    session.receive_audio(bytes(2 * CHUNK), bench.now_ms)
    session.receive_event(ev.InputCommit(creates_reply=False), bench.now_ms)
    assert session.streams_to_change()[0] == (["stt"] if sent == 1 else [])
