from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from voiceserver.backpressure import Admission, Ticket
from voiceserver.errors import Refusal


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=80))
def test_a_place_is_reserved_once_and_released_once(limit: int, steps: list[tuple[bool, int]]) -> None:
    admission = Admission(limit, 0, "connection", 2_000.0)
    tickets: list[Ticket] = []
    held: set[int] = set()
    for enters, which in steps:
        if enters:
            got = admission.try_enter(0.0)
            assert isinstance(got, Ticket) == (len(held) < limit)
            if isinstance(got, Ticket):
                held.add(len(tickets))
                tickets.append(got)
            else:
                assert got == Refusal("at_capacity", 2_000.0)
        elif tickets:
            tickets[which % len(tickets)].release()  # also those that were released before
            held.discard(which % len(tickets))
        assert admission.taken == len(held)
        assert admission.free == limit - len(held)


def test_the_smaller_limit_counts_while_a_connection_holds_a_talkers_place() -> None:
    assert Admission(10, 3, "connection", 1.0).free == 3
    assert Admission(10, 3, "speech", 1.0).free == 10
    assert Admission(0, 0, "connection", 1.0).free is None
