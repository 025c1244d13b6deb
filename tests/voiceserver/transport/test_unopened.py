"""Connections that are no call are bounded, and the oldest of them goes first; a caller never does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.voiceserver.shell import Line, Shell, audio, upgrade
from voiceserver.transport.unopened import SocketLimits, UnopenedConnections


class Member:
    is_dropped = False

    def abort(self) -> None:
        self.is_dropped = True


@given(
    st.integers(1, 8), st.integers(1, 12), st.lists(st.sampled_from(["come", "open", "leave"]), max_size=60)
)
def test_at_most_so_many_are_unopened_and_the_oldest_goes(most: int, sockets: int, steps: list[str]) -> None:
    drops: list[None] = []
    table = UnopenedConnections(SocketLimits(sockets, most), lambda: drops.append(None))
    waiting: list[Member] = []
    opened = 0
    for step in steps:
        if step == "come":
            waiting.append(Member())
            table.add(waiting[-1], opened)
            bound = max(1, min(most, sockets - opened))
            dropped, waiting = waiting[:-bound], waiting[-bound:]
            assert all(one.is_dropped for one in dropped)
        elif waiting:
            table.discard(waiting.pop(0))
            opened += step == "open"
        assert not any(one.is_dropped for one in waiting)
        assert len(table) == len(waiting)


def test_a_flood_of_connections_without_a_request_drops_neither_calls_nor_the_newest_caller() -> None:
    shell = Shell("vad")
    shell.services.state.unopened.limit_to(SocketLimits(50, 8))
    calls = [shell.call() for _ in range(5)]
    flood = [Line(shell) for _ in range(100)]
    assert sum(not line.transport.is_aborted for line in flood) == 8
    late = Line(shell)
    late.receive(upgrade())
    assert late.status == 101
    assert not any(line.transport.is_aborted for line in [*calls, late])
    assert b'voiceserver_refused_total{reason="no_request"} 93.0' in shell.metrics.to_text()


def test_half_of_a_request_is_no_request() -> None:
    shell = Shell("vad")
    shell.services.state.unopened.limit_to(SocketLimits(50, 8))
    slow = Line(shell)
    slow.receive(upgrade()[:-2])
    for _ in range(8):
        Line(shell)
    assert slow.transport.is_aborted


def test_who_has_left_is_not_counted() -> None:
    shell = Shell("vad")
    for _ in range(20):
        shell.call().lose()
        Line(shell).lose()
    assert len(shell.services.state.unopened) == 0
    assert not shell.services.state.connections


def test_who_resumes_gives_its_place_among_the_unopened_back() -> None:
    shell = Shell("vad")
    first = shell.call()
    token = first.events()[0]["resume_token"]
    first.receive(audio(b"\0\0" * 320))
    first.lose()
    second = shell.call(upgrade(f"/v1/stream?resume={token}"))
    assert second.status == 101
    assert len(shell.services.state.unopened) == 0
