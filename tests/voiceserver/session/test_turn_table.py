"""The table of turns: what is not in it raises, and what the product does is in it."""

from __future__ import annotations

import itertools

import pytest

from tests.voiceserver.session_bench import Bench
from voiceserver.errors import IllegalTransition
from voiceserver.events import events as ev
from voiceserver.session import turns
from voiceserver.session.audio_input import AudioInput
from voiceserver.session.endpointing import Stop
from voiceserver.session.transcripts import Transcripts
from voiceserver.session.turn_table import TURN, TurnEvent, TurnState, check_event, check_move

STATES: tuple[TurnState, ...] = ("idle", "listening", "thinking", "speaking")
EVENTS: tuple[TurnEvent, ...] = ("start", "stop", "final", "reply_started", "reply_done", "cancel")


def bench_in(state: TurnState) -> Bench:
    bench = Bench()
    if state != "idle":
        bench.say()
    if state in ("thinking", "speaking"):
        bench.pause()
        bench.take_stt()
        bench.transcribe("hello")
    if state == "speaking":
        bench.answer("Hi.", is_done=False)
        bench.speak(1, 100, is_done=False)
    assert bench.session.stage_of_turn == state
    return bench


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATES, EVENTS)))
def test_what_is_not_in_the_table_raises(state: TurnState, event: TurnEvent) -> None:
    if event in TURN[state]:
        check_event(state, event)
        assert TURN[state][event]
    else:
        with pytest.raises(IllegalTransition, match=event):
            check_event(state, event)


@pytest.mark.parametrize("state", STATES)
def test_only_a_caller_who_speaks_can_stop_and_the_session_is_unchanged(state: TurnState) -> None:
    bench = bench_in(state)
    session = bench.session
    turn, events = session.turn, list(bench.events)
    audio_input = session.audio_input
    if state == "listening":
        bench.do(ev.InputCommit())
        assert session.stage_of_turn == "thinking"
        return
    unused = AudioInput(16_000, None, 1_000)
    session.transcripts = session.transcripts or Transcripts(session.outgoing)
    with pytest.raises(IllegalTransition, match="stop"):
        turns.end_speech(session, audio_input or unused, Stop(0.0, 0.0, "commit"), bench.now_ms)
    assert (session.turn, bench.events, session.audio_input) == (turn, events, audio_input)


def test_a_reply_cannot_start_beside_another() -> None:
    bench = bench_in("speaking")
    reply = bench.session.reply
    with pytest.raises(IllegalTransition, match="reply_started"):
        turns.start_reply(bench.session, ev.ReplyCreate(), bench.now_ms)
    assert bench.session.reply is reply
    assert not bench.session.events_to_send()


def test_a_move_to_a_state_that_does_not_follow_raises() -> None:
    check_move("listening", "stop", "thinking")
    with pytest.raises(IllegalTransition, match="start cannot lead from idle to speaking"):
        check_move("idle", "start", "speaking")
