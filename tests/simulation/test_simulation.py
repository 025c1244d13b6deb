"""Hundreds of worlds, each drawn from its seed: every caller is served or told, whatever breaks.

``pytest tests/simulation --seeds 20000`` tries more of them; ``--seed 1234`` replays one exactly.
"""

from __future__ import annotations

from functools import lru_cache

import pytest

from tests.simulation.caller import Caller
from tests.simulation.world import World

BLOCK = 50  # seeds a test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    one = metafunc.config.getoption("--seed")
    count = metafunc.config.getoption("--seeds")
    blocks = [range(one, one + 1)] if one is not None else _blocks(count)
    if "seeds" in metafunc.fixturenames:
        metafunc.parametrize("seeds", blocks, ids=[f"{block.start}-{block.stop - 1}" for block in blocks])


def _blocks(count: int) -> list[range]:
    return [range(begin, min(begin + BLOCK, count)) for begin in range(0, count, BLOCK)]


@lru_cache(maxsize=400)
def play(seed: int) -> World:
    """A world that has ended. Tests that ask different things of one world share it."""
    return play_anew(seed)


def play_anew(seed: int) -> World:
    world = World(seed)
    try:
        world.run()
    finally:
        world.close()
    return world


def test_every_caller_is_served_or_told(seeds: range) -> None:
    for seed in seeds:
        try:
            play(seed)
        except BaseException:
            print(f"world {seed} broke a promise; replay it with: pytest tests/simulation --seed {seed}")
            raise


def test_a_world_replays_exactly() -> None:
    first, second = play_anew(11), play_anew(11)
    assert first.diary
    assert first.diary == second.diary
    assert play(12).diary != first.diary


def test_faults_do_happen_and_most_callers_are_served_all_the_same() -> None:
    worlds = [play(seed) for seed in range(120)]
    callers = [caller for world in worlds for caller in world.callers if caller.session is not None]
    happened = {entry.split()[1] for world in worlds for entry in world.diary if entry.startswith("fault")}
    assert happened == {"crash", "crash-inside", "hang", "slow", "raise"}
    assert sum(pool.workers.restarts for world in worlds for pool in world.pools.values()) > 60
    served = [caller for caller in callers if caller.session and caller.session.close_code == 1000]
    assert len(served) > len(callers) * 0.7
    assert any(caller.refusal is not None for world in worlds for caller in world.callers)
    assert sum(caller.audit.signals for caller in callers) > 60
    assert any("waiting" in entry for world in worlds for entry in world.diary)
    assert any(caller.audit.dropped_ms for caller in callers)
    assert any("interrupted" in caller.audit.done.values() for caller in callers)


def test_outages_do_happen_and_idle_callers_hear_of_them() -> None:
    worlds = [play(seed) for seed in range(1, 120, 2)]
    assert sum(world.outages for world in worlds) > 20
    entries = [entry for world in worlds for entry in world.diary]
    assert sum("ServerBusy" in entry and "'no_worker', lag_ms=0.0" in entry for entry in entries) > 10


def test_servers_retreat_and_their_callers_are_told_what_they_go_without() -> None:
    worlds = [play(seed) for seed in range(2, 200, 4)]
    assert sum(world.lighter_steps for world in worlds) > 60
    callers = [caller for world in worlds for caller in world.callers]
    assert sum(caller.audit.times_lighter for caller in callers) > 20
    assert any("'no_partials'" in entry for world in worlds for entry in world.diary)


def test_who_closes_before_the_transcript_is_ready_hears_that_there_will_be_none() -> None:
    diaries = [entry for seed in range(160) for entry in play(seed).diary if "session_ended" in entry]
    assert len(diaries) > 3
    assert any("; 0 ms of the turn" not in entry for entry in diaries)


def test_connections_break_and_their_callers_come_back_to_the_same_call() -> None:
    callers = [caller for seed in range(3, 160, 4) for caller in play(seed).callers]
    back = [caller for caller in callers if caller.resumes and caller.session is not None]
    assert len(back) > 20
    assert sum(bool(caller.audit.finals) for caller in back) > 15
    assert any(caller.resumes > 2 for caller in back)


def test_replies_are_begun_at_pauses_and_some_for_nothing() -> None:
    sessions = [
        caller.session
        for seed in range(0, 120, 3)
        for caller in play(seed).callers
        if caller.session is not None
    ]
    counts = [session.counters() for session in sessions]
    ahead = sum(count["replies_ahead"] for count in counts)
    assert ahead > 20
    assert ahead < sum(count["replies"] for count in counts)


def test_late_replies_are_filled_and_some_of_them_are_interrupted() -> None:
    audits = [caller.audit for seed in range(1, 160, 4) for caller in play(seed).callers]
    filled = [audit.done.get(turn) for audit in audits for turn in audit.fillers]
    assert filled.count("completed") > 5
    assert any(len(said) > 1 for audit in audits for said in audit.fillers.values())


def test_poison_costs_its_caller_the_call_and_nobody_else() -> None:
    poisoned = 0
    for seed in range(200):
        world = World(seed)
        if any(caller.is_poisonous for caller in world.callers):
            played = play(seed)  # which judges everybody
            poisoned += sum(caller.is_poisonous and _is_quarantined(caller) for caller in played.callers)
        world.close()
    assert poisoned >= 3


def _is_quarantined(caller: Caller) -> bool:
    return caller.session is not None and caller.session.close_reason == "quarantined"
