from __future__ import annotations

import pytest

from voiceserver.capacity.admission import Admission, Ticket
from voiceserver.errors import Refusal


def make(limit: int = 1, room: int = 4, hold: str = "connection", share: float = 1.0) -> Admission:
    return Admission(0, limit, hold, 2_000.0, room=room, share=share, waiting_timeout_ms=60_000.0)


def enter(admission: Admission, now_ms: float = 0.0, tenant: str = "", is_resumed: bool = False) -> Ticket:
    got = admission.try_enter(now_ms, tenant=tenant, is_resumed=is_resumed)
    assert isinstance(got, Ticket)
    return got


def test_the_smaller_limit_counts_while_a_connection_holds_a_talkers_place() -> None:
    assert Admission(10, 3, "connection", 1.0).free == 3
    assert Admission(10, 3, "speech", 1.0).free == 10
    assert Admission(0, 0, "connection", 1.0).free is None


def test_callers_wait_in_order_and_are_let_in_in_order() -> None:
    admission = make()
    first, second, third = (enter(admission) for _ in range(3))
    assert [ticket.position for ticket in (first, second, third)] == [0, 1, 2]
    admission.news()
    first.release(1_000.0)
    assert admission.news() == [second, third]
    assert (second.state, second.position, third.position) == ("admitted", 0, 1)


def test_a_full_room_refuses_with_a_time_and_takes_nothing() -> None:
    admission = make(room=1)
    enter(admission), enter(admission)
    assert admission.try_enter(0.0) == Refusal("at_capacity", 2_000.0)
    assert (admission.talkers, admission.waiting, admission.taken, admission.refused) == (1, 1, 2, 1)


def test_nobody_passes_those_who_wait_when_a_place_is_free() -> None:
    admission = make(limit=1)
    first, waiting = enter(admission), enter(admission)
    first.release(1.0)
    assert waiting.state == "admitted"
    assert enter(admission, 2.0).is_waiting


def test_resumed_calls_wait_before_new_ones_and_behind_other_resumed_ones() -> None:
    admission = make()
    enter(admission)
    new, resumed, later = (
        enter(admission),
        enter(admission, is_resumed=True),
        enter(admission, is_resumed=True),
    )
    assert [ticket.position for ticket in (resumed, later, new)] == [1, 2, 3]


def test_a_resumed_call_takes_a_free_place_although_new_ones_wait_for_their_share() -> None:
    admission = make(limit=4, share=0.5)
    enter(admission, tenant="a"), enter(admission, tenant="a")
    assert enter(admission, tenant="a").is_waiting
    assert enter(admission, tenant="b", is_resumed=True).state == "admitted"


def test_a_caller_who_leaves_the_room_moves_the_others_up() -> None:
    admission = make()
    enter(admission)
    second, third = enter(admission), enter(admission)
    admission.news()
    second.release(5.0)
    assert admission.news() == [third]
    assert third.position == 1
    assert admission.talkers == 1


def test_one_tenant_can_neither_take_all_places_nor_the_whole_room() -> None:
    admission = make(limit=4, room=4, share=0.75)
    greedy = [admission.try_enter(0.0, tenant="greedy") for _ in range(10)]
    tickets = [one for one in greedy if isinstance(one, Ticket)]
    assert [one.state for one in tickets] == ["admitted"] * 3 + ["waiting"] * 2
    assert all(one.reason == "tenant_share" for one in greedy if isinstance(one, Refusal))
    # The place that is left is for somebody else, who does not wait behind the greedy one.
    assert enter(admission, tenant="other").state == "admitted"


def test_a_tenants_share_is_freed_with_its_places() -> None:
    admission = make(limit=2, share=0.5)
    held, waits = enter(admission, tenant="a"), enter(admission, tenant="a")
    assert (held.state, waits.state) == ("admitted", "waiting")
    held.release(1.0)
    assert waits.state == "admitted"


def test_the_estimate_comes_from_the_measured_turnover() -> None:
    admission = make(limit=1)
    admitted = enter(admission, 0.0)
    queue = [enter(admission, 0.0) for _ in range(4)]
    assert [ticket.estimate_ms for ticket in queue] == [2_000.0, 4_000.0, 6_000.0, 8_000.0]
    admitted.release(10_000.0)
    queue[0].release(15_000.0)  # a place every 5 s
    assert [ticket.estimate_ms for ticket in queue[2:]] == [5_000.0, 10_000.0]
    admission.tick(16_500.0)
    assert queue[2].estimate_ms == pytest.approx(3_500.0)
    # Overdue: the next place took longer than it used to, so the estimate does not promise it at once.
    admission.tick(23_000.0)
    assert queue[2].estimate_ms == pytest.approx(8_000.0)


def test_the_refusals_time_is_when_the_queue_before_it_is_through() -> None:
    admission = make(limit=1, room=2)
    first = enter(admission, 0.0)
    second, _ = enter(admission, 0.0), enter(admission, 0.0)
    first.release(10_000.0)
    second.release(14_000.0)
    enter(admission, 14_000.0), enter(admission, 14_000.0)
    assert admission.try_enter(14_000.0) == Refusal("at_capacity", 12_000.0)


def test_who_waits_too_long_is_told_and_sent_away() -> None:
    admission = make()
    enter(admission)
    early, late = enter(admission, 0.0), enter(admission, 30_000.0)
    admission.news()
    admission.tick(59_999.0)
    assert early.is_waiting
    admission.tick(60_000.0)
    assert early.state == "expired"
    assert early in admission.news()
    early.release(60_001.0)
    assert admission.waiting == 1
    assert late.position == 1


def test_a_lower_limit_sends_nobody_away_and_a_higher_one_lets_the_next_in() -> None:
    admission = make(limit=3)
    inside = [enter(admission) for _ in range(3)]
    admission.set_limit(1, 1.0)
    assert all(ticket.state == "admitted" for ticket in inside)
    waiting = enter(admission)
    inside[0].release(2.0)
    inside[1].release(3.0)
    assert waiting.is_waiting
    inside[2].release(4.0)
    assert waiting.state == "admitted"
    second = enter(admission)
    admission.set_limit(2, 5.0)
    assert second.state == "admitted"


def test_idle_connections_take_no_talkers_place_when_only_speech_does() -> None:
    admission = make(limit=2, hold="speech", room=1)
    callers = [enter(admission) for _ in range(1_000)]
    assert admission.talkers == 0
    speaking = [admission.try_talk(0.0) for _ in range(4)]
    assert [one.state if isinstance(one, Ticket) else one.reason for one in speaking] == [
        "admitted", "admitted", "waiting", "at_capacity",
    ]  # fmt: skip
    assert isinstance(speaking[0], Ticket)
    speaking[0].release(1.0)
    assert isinstance(speaking[2], Ticket)
    assert speaking[2].state == "admitted"
    for caller in callers:
        caller.release(2.0)
    assert (admission.taken, admission.talkers) == (0, 2)


def test_news_comes_once() -> None:
    admission = make()
    first, second = enter(admission), enter(admission)
    admission.news()
    first.release(1.0)
    assert admission.news() == [second]
    assert admission.news() == []
