"""A call outlives its connections: None while nobody is there, and never two at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from websockets.frames import Opcode

from tests.voiceserver.shell import Line, Shell, audio, masked, text, upgrade
from voiceserver.transport.call import Call
from voiceserver_workers.ipc.messages import ResultKind

CHUNK = bytes(640)  # 20 ms


def call_of(line: Line) -> Call:
    call = line.connection.call
    assert call is not None
    return call


def come_back(shell: Shell, line: Line) -> Line:
    return shell.call(upgrade(f"/v1/stream?resume={line.events()[0]['resume_token']}"))


def test_a_call_has_no_connection_while_nobody_is_there() -> None:
    shell = Shell("stt")
    first = shell.call()
    first.receive(audio(CHUNK))
    call = call_of(first)
    assert call.connection is first.connection
    first.lose()
    assert (first.connection.call, call.connection) == (None, None)
    second = come_back(shell, first)
    assert call.connection is second.connection
    assert call_of(second) is call


def test_who_takes_a_call_over_leaves_the_connection_before_without_one() -> None:
    shell = Shell("stt")
    first = shell.call()
    first.receive(audio(CHUNK))
    call = call_of(first)
    second = come_back(shell, first)
    assert call.connection is second.connection
    assert first.connection.call is None
    before = bytes(first.transport.data)
    first.receive(audio(CHUNK))
    first.receive(text({"type": "input.commit"}))
    second.receive(text({"type": "input.commit"}))
    assert bytes(first.transport.data) == before
    assert call.session.accounting().received_ms == 20.0, (
        "what a connection brings that has no call is nobody's"
    )
    first.lose()
    assert call.connection is second.connection
    assert (shell.services.state.sessions, list(shell.services.state.connections)) == (1, [second.connection])


LAST_MOMENTS: list[Callable[[Line], None]] = [
    lambda line: line.connection.pause_writing(),
    lambda line: line.connection.on_deadline(line.shell.loop.now_ms + 1e9),
    lambda line: line.connection.on_keepalive(line.shell.loop.now_ms + 1e9),
    lambda line: line.connection.on_unopened(line.shell.loop.now_ms + 1e9),
    lambda line: line.connection.drain(1_000.0),
    lambda line: line.connection.resume_writing(),
    lambda line: line.connection.on_fault(RuntimeError("a bug")),
]


@pytest.mark.parametrize("moment", LAST_MOMENTS)
@pytest.mark.parametrize("is_lost", [True, False])
def test_a_connection_that_lost_its_call_does_nothing_to_it(
    moment: Callable[[Line], None], is_lost: bool
) -> None:
    shell = Shell("stt")
    first = shell.call()
    first.receive(audio(CHUNK))
    call = call_of(first)
    second = come_back(shell, first)
    if is_lost:
        first.lose()
    moment(first)
    shell.loop.settle()
    second.receive(text({"type": "input.commit"}))
    stream = shell.pools["stt"].streams[-1]
    stream.answer(ResultKind.FINAL, 1, stream.sent[-1][2], b"still here")
    shell.loop.settle()
    assert second.types()[-1] == "transcript.final"
    assert (call.connection, second.close_code) == (second.connection, None)
    assert shell.services.state.sessions == 1


def test_a_fault_in_making_a_call_ends_one_connection_and_leaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shell = Shell("stt")
    line, other = shell.call(), shell.call()

    def explode(*args: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(type(shell.services.sessions), "make", explode)
        line.receive(audio(CHUNK))
        assert line.transport.is_aborted
        line.lose()
    assert shell.admission.taken == 1
    assert list(shell.services.state.connections) == [other.connection]
    assert shell.services.state.sessions == 1
    other.receive(masked(Opcode.PING, b"hi"))
    assert other.frames()[-1].data == b"hi"
