"""Whose input kills workers: found alone, and never by keeping bad company."""

from __future__ import annotations

from voiceserver.pool.quarantine import TRIAL_ITEMS, Quarantine


def test_who_is_alone_in_the_batch_of_a_second_crash_is_guilty() -> None:
    quarantine = Quarantine(window_ms=1_000.0)
    assert quarantine.record_crash({"a", "b"}, 0.0) == set()
    assert quarantine.trial_items("a", 1.0) == quarantine.trial_items("b", 1.0) == TRIAL_ITEMS
    assert quarantine.record_crash({"a"}, 10.0) == {"a"}
    assert quarantine.left_ms("a", 10.0) == 1_000.0
    assert quarantine.left_ms("a", 1_010.0) == 0.0


def test_the_companions_of_the_guilty_are_acquitted() -> None:
    quarantine = Quarantine()
    quarantine.record_crash({"a", "b"}, 0.0)
    quarantine.record_crash({"c", "d"}, 1.0)
    quarantine.record_crash({"a"}, 2.0)
    assert not quarantine.trial_items("b", 3.0)
    assert quarantine.trial_items("c", 3.0), "of another crash"
    assert quarantine.record_crash({"b"}, 4.0) == set(), "b begins with a clean record"


def test_nobody_is_guilty_in_company() -> None:
    """An operator kills a worker, and later another: a hundred callers were in both batches."""
    quarantine = Quarantine()
    everybody = {f"caller {index}" for index in range(100)}
    assert quarantine.record_crash(everybody, 0.0) == set()
    assert quarantine.record_crash(everybody, 1.0) == set()
    assert quarantine.record_crash({"caller 7"}, 2.0) == {"caller 7"}


def test_an_old_crash_is_forgotten() -> None:
    quarantine = Quarantine(window_ms=1_000.0)
    quarantine.record_crash({"a"}, 0.0)
    assert quarantine.record_crash({"a"}, 1_000.0) == set()
    assert quarantine.trial_items("a", 1_999.0)
    assert not quarantine.trial_items("a", 2_000.0)
