"""A caller who says nothing has no session yet, and cannot tell."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from websockets.frames import Opcode

from tests.voiceserver.shell import Line, Shell, audio, masked, text, upgrade
from voiceserver.config.schema import BackpressureConfig
from voiceserver.events.events import SessionReady
from voiceserver.transport.upgrade import SilentCaller

CHUNK = bytes(640)  # 20 ms at 16 kHz

ACTS: list[tuple[str, Callable[[Line], None]]] = [
    ("it speaks", lambda line: line.receive(audio(CHUNK))),
    ("it writes", lambda line: line.receive(text({"type": "input.commit"}))),
    ("it breaks the standard", lambda line: line.receive(b"\xf2\x80\0\0\0\0")),
    ("it does not read", lambda line: line.connection.pause_writing()),
    ("the server drains", lambda line: line.connection.drain(1_000.0)),
]


def has_session(line: Line) -> bool:
    return line.connection.call is not None


def test_a_silent_caller_is_greeted_and_pinged_and_has_no_session() -> None:
    shell = Shell("vad", ping_interval_ms=1_000)
    line = shell.call()
    assert line.types() == ["session.ready"]
    shell.loop.advance(1_300.0)
    assert line.frames()[-1].opcode is Opcode.PING
    line.receive(masked(Opcode.PONG, b"") + masked(Opcode.PING, b"hi"))
    assert line.frames()[-1].data == b"hi"
    assert not has_session(line)


@pytest.mark.parametrize(("act"), [pytest.param(act, id=name) for name, act in ACTS])
def test_the_session_is_made_when_something_needs_it(act: Callable[[Line], None]) -> None:
    shell = Shell("vad")
    line = shell.call()
    act(line)
    assert has_session(line)
    assert line.connection.call is not None
    session = line.connection.call.session
    ready = line.events()[0]
    assert (session.session_id, session.resume_token) == (ready["session_id"], ready["resume_token"])
    assert line.types().count("session.ready") == 1


def test_the_greeting_is_the_one_that_the_session_would_give() -> None:
    shell = Shell("vad")
    line = shell.call(upgrade("/v1/stream?rate=8000&reply_rate=24000"))
    silent = line.connection.pending
    assert isinstance(silent, SilentCaller)
    seed, codec = silent._seed, silent.codec
    session = shell.services.sessions.make(codec, seed)
    session.open(0.0)
    (event,) = session.events_to_send()
    assert isinstance(event, SessionReady)
    (frame,) = codec.encode(event)
    assert line.events()[0] == json.loads(frame)


def test_the_token_of_a_silent_caller_is_good_for_one_resume() -> None:
    shell = Shell("vad")
    first = shell.call()
    token = first.events()[0]["resume_token"]
    second = shell.call(upgrade(f"/v1/stream?resume={token}"))
    ready = second.events()[0]
    assert (second.status, ready["is_resumed"]) == (101, True)
    assert ready["session_id"] == first.events()[0]["session_id"]
    second.receive(masked(Opcode.PONG, (0).to_bytes(8, "big")))  # the new token has arrived
    assert shell.call(upgrade(f"/v1/stream?resume={token}")).status == 410


def test_nobody_guesses_the_token_of_a_silent_caller() -> None:
    shell = Shell("vad")
    token = shell.call().events()[0]["resume_token"]
    name, _, secret = token.partition(".")
    for wrong in (
        name,
        f"{name}.",
        f"{name}.{secret[:-1]}",
        f"{name}.{secret[::-1]}",
        f".{secret}",
        "sess_x.y",
    ):
        assert shell.call(upgrade(f"/v1/stream?resume={wrong}")).status == 404


def test_who_leaves_without_a_word_is_accounted_for_all_the_same() -> None:
    shell = Shell("vad")
    line = shell.call()
    line.lose()
    (closed,) = [entry for entry in shell.logged if entry["event"] == "session closed"]
    assert (closed["session"], closed["code"], closed["received_ms"]) == (
        line.events()[0]["session_id"],
        1006,
        0.0,
    )
    assert shell.admission.taken == 0
    token = line.events()[0]["resume_token"]
    assert shell.call(upgrade(f"/v1/stream?resume={token}")).status == 404


def test_who_waits_for_a_place_is_told_so_from_the_first() -> None:
    shell = Shell("vad", limits=BackpressureConfig(max_talkers=1, waiting_room=1))
    shell.call()
    waiting = shell.call()
    assert waiting.types() == ["session.ready", "server.busy"]
    assert has_session(waiting)
