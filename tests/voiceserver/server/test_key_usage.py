"""What keys have used, summed over server processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.server.key_usage import DAY_S, KeyUsage, UsedByKey, usage_that_lasts
from voiceserver.server.multiprocess.handoff import Handoff, mailbox
from voiceserver.server.multiprocess.peer import USAGE_BYTES, Peer, decode_usage
from voiceserver.server.multiprocess.shared_stats import SharedStats

PROCESSES = 3
MOST = 2


class Processes:
    """Server processes with one memory, on one clock, and a supervisor that keeps what an ended one has used."""

    def __init__(self, usage: SharedStats, stats: SharedStats) -> None:
        self.now_s = DAY_S
        self.usage = usage
        self._stats = stats
        self._boxes = [mailbox() for _ in range(PROCESSES)]
        self.of = [self._begin(index) for index in range(PROCESSES)]

    def _begin(self, index: int) -> KeyUsage:
        handoff = Handoff(index, self._boxes[index][0], [end for _, end in self._boxes])
        return KeyUsage(
            lambda: self.now_s, Peer(index, self._boxes[index][1], self._stats, handoff, self.usage)
        )

    def restart(self, index: int) -> None:
        kept = decode_usage(self.usage.get(PROCESSES))
        merged = usage_that_lasts(kept, decode_usage(self.usage.get(index)))
        self.usage.put(PROCESSES, msgspec.json.encode(merged))
        self.usage.clear(index)
        self.of[index] = self._begin(index)

    def close(self) -> None:
        for end in (end for ends in self._boxes for end in ends):
            end.close()


@contextmanager
def processes() -> Iterator[Processes]:
    usage, stats = SharedStats.create(PROCESSES + 1, USAGE_BYTES), SharedStats.create(PROCESSES + 1, 4096)
    found = Processes(usage, stats)
    yield found
    found.close()
    usage.close()
    stats.close()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["come", "look", "leave", "talk", "restart", "second"]), st.integers(0, PROCESSES - 1)
    ),
    max_size=60,
)


@given(STEPS)
def test_sessions_never_exceed_the_limit_and_no_audio_is_forgotten(steps: list[tuple[str, int]]) -> None:
    """``look``: a caller is let in by the key's limit and refused by another one, so no session follows."""
    with processes() as server:
        open_ms: list[dict[str, float]] = [{} for _ in range(PROCESSES)]
        ended_ms = 0.0
        for count, (step, index) in enumerate(steps):
            usage, mine = server.of[index], open_ms[index]
            if step in ("come", "look"):
                is_free = usage.try_reserve("key", MOST)
                if step == "come" and is_free:
                    usage.enter("key")
                    mine[str(count)] = 0.0
                if is_free:
                    assert sum(map(len, open_ms)) <= MOST
            elif step == "leave" and mine:
                session, talk_ms = mine.popitem()
                usage.leave("key", talk_ms, session)
                ended_ms += talk_ms
            elif step == "talk" and mine:
                session = next(iter(mine))
                mine[session] += 1_000.0
                usage.note("key", session, mine[session])
            elif step == "restart":
                usage.publish()
                ended_ms += sum(mine.values())
                mine.clear()
                server.restart(index)
            elif step == "second":
                for one in server.of:
                    one.publish()
        for one in server.of:
            one.publish()
        total_ms = ended_ms + sum(sum(mine.values()) for mine in open_ms)
        assert {one.talk_ms("key") for one in server.of} == {total_ms}
        if sum(map(len, open_ms)) < MOST:
            assert server.of[0].try_reserve("key", MOST), "a free place is given"


def test_a_new_day_begins_for_all_processes() -> None:
    with processes() as server:
        first, second, _ = server.of
        first.enter("key")
        first.leave("key", 5_000.0)
        assert second.talk_ms("key") == 5_000.0
        server.restart(0)
        assert second.talk_ms("key") == 5_000.0
        server.now_s += DAY_S
        assert second.talk_ms("key") == 0.0


def test_what_is_kept_is_of_the_latest_day() -> None:
    kept = {"a": UsedByKey(0, 2, 10.0), "b": UsedByKey(0, 1, 10.0), "c": UsedByKey(0, 2, 1.0)}
    ended = {"a": UsedByKey(3, 2, 5.0), "b": UsedByKey(1, 2, 7.0), "c": UsedByKey(1, 1, 9.0)}
    assert usage_that_lasts(kept, ended) == {
        "a": UsedByKey(0, 2, 15.0),
        "b": UsedByKey(0, 2, 7.0),
        "c": UsedByKey(0, 2, 1.0),
    }
