from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from voiceserver.transport.timers import Wheel


@given(
    st.lists(st.floats(0, 5_000, allow_subnormal=False)),
    st.lists(st.floats(0, 6_000, allow_subnormal=False)).map(sorted),
    st.sampled_from([1.0, 2.0, 250.0]),
)
def test_each_is_given_once_never_early_and_at_most_a_tick_late(
    dues: list[float], times: list[float], tick_ms: float
) -> None:
    wheel: Wheel[int] = Wheel(tick_ms)
    for index, due_ms in enumerate(dues):
        wheel.schedule(due_ms, index)
    given_at: dict[int, float] = {}
    for now_ms in [*times, 10_000.0]:
        is_due = wheel.next_due_ms <= now_ms
        due = wheel.take_due(now_ms)
        assert is_due == bool(due)
        for index in due:
            assert index not in given_at
            given_at[index] = now_ms
            assert dues[index] <= now_ms
        for index, due_ms in enumerate(dues):
            assert index in given_at or due_ms + tick_ms > now_ms
    assert len(given_at) == len(dues)
    assert len(wheel) == 0
    assert wheel.next_due_ms == math.inf


def test_never_is_not_kept() -> None:
    wheel: Wheel[str] = Wheel(1.0)
    wheel.schedule(math.inf, "never")
    assert len(wheel) == 0
