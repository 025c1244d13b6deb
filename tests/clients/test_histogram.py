"""The histogram against sorted lists."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver_clients.histogram import Histogram

VALUES = st.lists(st.floats(0, 1e7, allow_nan=False), min_size=1, max_size=200)


def filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(VALUES, st.floats(0, 100))
def test_percentile_is_within_one_percent_and_a_microsecond_of_nearest_rank(
    values: list[float], rank: float
) -> None:
    ordered = sorted(values)
    exact = ordered[max(0, math.ceil(round(rank * len(ordered) / 100, 9)) - 1)]
    got = filled(values).percentile(rank)
    assert exact - 0.001 <= got <= exact * 1.01 + 0.001


@given(VALUES, VALUES)
def test_adding_is_recording_both(first: list[float], second: list[float]) -> None:
    added = filled(first)
    added.add(filled(second))
    both = filled(first + second)
    assert added.to_buckets() == both.to_buckets()
    assert (added.count, added.max_ms) == (both.count, both.max_ms)


@given(VALUES)
def test_buckets_carry_everything(values: list[float]) -> None:
    histogram = filled(values)
    copy = Histogram.from_buckets(histogram.to_buckets(), histogram.max_ms, histogram.sum_ms)
    assert [copy.percentile(rank) for rank in (0, 50, 99.9)] == [
        histogram.percentile(rank) for rank in (0, 50, 99.9)
    ]
    assert copy.mean() == histogram.mean()


@given(st.integers(0, 1 << 40))
def test_bucket_bounds_hold_their_value(micros: int) -> None:
    """Every microsecond up to 12 days lies in a bucket whose upper end is at most 1 % above it."""
    histogram = Histogram()
    histogram.record(micros / 1000)
    histogram.record(1e12)  # so that the largest value does not hide the bucket's end
    upper_us = histogram.percentile(50) * 1000
    assert micros - 1 <= upper_us <= micros * 1.01 + 1


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        Histogram().percentile(50)
    with pytest.raises(ValueError, match="rank"):
        filled([1.0]).percentile(101)
