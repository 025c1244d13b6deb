"""Admission under any order of callers: places are conserved, bounded and fair, and everybody hears of every change."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from voiceserver.capacity.admission import Admission, Ticket
from voiceserver.errors import Refusal


class Callers(RuleBasedStateMachine):
    @initialize(
        limit=st.integers(1, 5), room=st.integers(0, 5), share=st.sampled_from([1.0, 0.5, 0.8]),
        hold=st.sampled_from(["connection", "speech"]),
    )  # fmt: skip
    def open(self, limit: int, room: int, share: float, hold: str) -> None:
        self.admission = Admission(
            20, limit, hold, 2_000.0, room=room, share=share, waiting_timeout_ms=50_000.0
        )
        self.hold, self.room, self.share = hold, room, share
        self.now_ms = 0.0
        self.talking: list[Ticket] = []  # claims on a talker's place that were not released
        self.lines: list[Ticket] = []  # plain connections, where speech takes the place
        self.told: dict[Ticket, tuple[str, int]] = {}

    @rule(by_ms=st.sampled_from([1.0, 100.0, 5_000.0, 60_000.0]))
    def wait(self, by_ms: float) -> None:
        self.now_ms += by_ms
        self.admission.tick(self.now_ms)

    @rule(tenant=st.sampled_from(["", "a", "b"]), is_resumed=st.booleans())
    def arrive(self, tenant: str, is_resumed: bool) -> None:
        before = self._counts()
        is_door = self.hold == "connection"
        got = (
            self.admission.try_enter(self.now_ms, tenant=tenant, is_resumed=is_resumed)
            if is_door
            else self.admission.try_talk(self.now_ms, tenant=tenant)
        )
        if isinstance(got, Refusal):
            assert self._counts() == before, "a refusal reserves nothing"
            assert got.retry_after_ms >= 2_000.0
            return
        self.talking.append(got)
        if got.is_waiting:
            self.told[got] = (got.state, got.position)
            ahead = [one for one in self.talking if one.is_waiting and one.position < got.position]
            assert all(one.is_resumed >= got.is_resumed for one in ahead)
        else:
            assert self.admission.talkers <= max(self.admission.limit, 1)

    @precondition(lambda self: self.hold == "speech")
    @rule()
    def connect(self) -> None:
        got = self.admission.try_enter(self.now_ms)
        assert isinstance(got, Ticket) == (len(self.lines) < 20)
        if isinstance(got, Ticket):
            assert not got.is_waiting
            self.lines.append(got)

    @rule(which=st.integers(0, 50), times=st.integers(1, 3))
    def leave(self, which: int, times: int) -> None:
        for claims in (self.talking, self.lines):
            if claims:
                ticket = claims.pop(which % len(claims))
                self.told.pop(ticket, None)
                for _ in range(times):
                    ticket.release(self.now_ms)

    @rule(limit=st.integers(1, 8))
    def learn(self, limit: int) -> None:
        inside = [one for one in self.talking if one.state == "admitted"]
        self.admission.set_limit(limit, self.now_ms)
        assert all(one.state == "admitted" for one in inside), "who is in stays in"

    def _counts(self) -> tuple[int, int, int]:
        return self.admission.taken, self.admission.talkers, self.admission.waiting

    @invariant()
    def places_are_conserved_and_everybody_was_told(self) -> None:
        if not hasattr(self, "admission"):
            return
        waiting = sorted((one for one in self.talking if one.is_waiting), key=lambda one: one.position)
        assert self.admission.talkers == sum(one.state == "admitted" for one in self.talking)
        assert self.admission.waiting == len(waiting) <= self.room
        assert self.admission.taken == len(self.talking if self.hold == "connection" else self.lines)
        assert [one.position for one in waiting] == list(range(1, len(waiting) + 1))
        for ticket in self.admission.news():
            self.told[ticket] = (ticket.state, ticket.position)
        for ticket in self.told:
            assert self.told[ticket] == (ticket.state, ticket.position), "a change that nobody heard of"
        if waiting and self.admission.talkers < self.admission.limit:
            # A place stays free only for other tenants.
            assert self.share < 1
            assert all(one.tenant for one in waiting)


TestCallers = Callers.TestCase
TestCallers.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
