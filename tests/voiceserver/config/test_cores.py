from __future__ import annotations

import os
import sys
import time

import pytest

from voiceserver.config.cores import CPU_QUOTA, Cores, usable_cores

ME = os.getpid()


def test_it_is_what_the_server_and_its_workers_used_since_the_last_look() -> None:
    spent = {ME: 10.0, 7: 100.0, 8: 5.0}
    cores = Cores(processes=10_000, read=spent.get)  # so many that each has one core
    assert cores.share == 1
    assert cores.busy([7, 8], 1_000.0) is None
    spent.update({ME: 10.25, 7: 100.5})
    assert cores.busy([7, 8], 2_000.0) == pytest.approx(0.75)
    assert cores.busy([7, 8], 3_000.0) == 0.0


def test_a_worker_that_is_gone_or_new_counts_from_when_it_was_seen() -> None:
    spent = {ME: 10.0, 7: 100.0}
    cores = Cores(processes=10_000, read=spent.get)
    cores.busy([7], 1_000.0)
    del spent[7]
    spent[9] = 50.0
    assert cores.busy([7, 9], 2_000.0) == 0.0
    spent[9] = 50.5
    assert cores.busy([9], 3_000.0) == pytest.approx(0.5)


def test_where_nothing_tells_nothing_is_known() -> None:
    cores = Cores(read=lambda pid: None)
    assert [cores.busy([1], 1_000.0), cores.busy([1], 2_000.0)] == [None, None]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_this_process_is_seen_at_work() -> None:
    cores = Cores()
    cores.busy([], 0.0)
    end_s = time.process_time() + 0.1
    while time.process_time() < end_s:
        pass
    busy = cores.busy([], 100.0)
    assert busy is not None
    assert busy >= 0.08 / cores.share


@pytest.mark.parametrize(
    ("quota", "least"),
    [("50000 100000\n", 0.5), ("max 100000\n", 1), ("", 1), ("nonsense", 1)],
)
def test_a_control_group_may_grant_less_than_the_cores_there_are(quota: str, least: float) -> None:
    found = usable_cores({CPU_QUOTA: quota}.get)
    assert found == 0.5 if least < 1 else found >= least


def test_all_of_a_quota_used_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voiceserver.config.cores._text_of", lambda path: "50000 100000")
    spent = {ME: 10.0}
    cores = Cores(read=spent.get)
    assert cores.share == 0.5
    cores.busy([], 0.0)
    spent[ME] += 0.5
    assert cores.busy([], 1_000.0) == pytest.approx(1.0)
