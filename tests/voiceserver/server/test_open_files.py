"""How the limit of open files is shared out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.voiceserver.shell import AnsweredPool
from voiceserver.pool import PoolStats, WorkerStats
from voiceserver.server.open_files import own_files, share_out


class Stage(AnsweredPool):
    def __init__(self, workers: int, *, is_remote: bool = False) -> None:
        super().__init__("reply")
        self.is_remote = is_remote
        self._workers = workers

    def stats(self) -> PoolStats:
        one = WorkerStats(0, 1, "ready", 1, 0, 0, 0.0, 0, 0, 0.0)
        return PoolStats(self.stage, "answered", (one,) * self._workers, 0, None, 0.0, 0, 0.0)


@given(st.integers(256, 2_000_000), st.booleans(), st.integers(1, 8))
def test_what_the_server_itself_needs_is_never_given_away(limit: int, is_remote: bool, workers: int) -> None:
    pools = {"stt": Stage(workers), "reply": Stage(1, is_remote=is_remote)}
    calls, (sockets, unopened) = share_out(pools, limit)
    assert calls + unopened == sockets
    requests = min(calls, 256) if is_remote else 0
    assert sockets + requests + own_files(pools) <= limit
    assert calls >= unopened >= 8
    # Most of a large limit is for calls.
    assert limit < 20_000 or calls > 0.9 * limit


def test_more_workers_need_more_files() -> None:
    assert own_files({}) < own_files({"stt": Stage(1)}) < own_files({"stt": Stage(4)})


def test_a_limit_that_is_far_too_low_leaves_some_calls() -> None:
    assert share_out({"stt": Stage(4)}, 20).calls >= 8
