"""Real workers die in every way we know: one crash path, an honest reason, a new worker, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.local_bench import ENGINE, LocalBench, is_alive, make_local_bench
from voiceserver.config.schema import StageConfig
from voiceserver.errors import ConfigError
from voiceserver.pool.hang_detector import KNOWN_STEPS
from voiceserver.pool.process_pool import SWEEP_MS, ProcessPool
from voiceserver.testing.pool_suite import Owner
from voiceserver_workers.ipc.messages import ResultKind
from voiceserver_workers.ipc.platform import PORTABLE


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("kill", "worker_lost"),
        ("exit", "worker_lost"),
        ("_exit", "worker_lost"),
        ("segfault", "worker_lost"),
        ("memory", "worker_memory"),
        ("stop", "worker_hung"),
        ("sleep 60", "worker_hung"),
    ],
)
async def test_every_death_is_told_with_its_reason_and_a_new_worker_serves(word: str, reason: str) -> None:
    step_timeout_ms = 400.0 if reason == "worker_hung" else 5_000.0
    async with make_local_bench(step_timeout_ms=step_timeout_ms) as bench:
        victim, witness = Owner("victim"), Owner("witness")
        stream, beside = victim.open(bench.pool), witness.open(bench.pool)
        witness.say(beside, "published before")
        await bench.until(lambda: ResultKind.DONE in witness.kinds())
        pid = bench.pid()
        victim.say(stream, word)
        await bench.until(lambda: bool(victim.lost and witness.lost))
        assert (victim.lost, witness.lost) == ([reason], [reason])
        await bench.until(lambda: not is_alive(pid))
        await bench.until(bench.pool.is_ready)
        witness.say(witness.open(bench.pool), "after")
        await bench.until(lambda: witness.texts()[-1] == "after 1")
        # The flight recorder knew whose input it was: only that session is on trial.
        assert bench.pool.workers.quarantine.trial_items("victim", bench.now_ms())
        assert not bench.pool.workers.quarantine.trial_items("witness", bench.now_ms())


@pytest.mark.parametrize("word", ["kill", "_exit", "stop", "memory"])
async def test_without_pidfds_the_lifeline_tells_the_same(word: str) -> None:
    async with make_local_bench(step_timeout_ms=400, platform=PORTABLE) as bench:
        owner = Owner("victim")
        owner.say(owner.open(bench.pool), word)
        await bench.until(owner.is_lost)
        owner.say(await owner.reopen(bench), "after")
        await bench.until(lambda: owner.texts() == ["after 1"])


async def test_an_idle_worker_that_is_stopped_is_found_hung() -> None:
    async with make_local_bench(step_timeout_ms=300) as bench:
        owner = Owner()
        owner.open(bench.pool)
        await bench.until(lambda: bool(owner.results))
        bench.kill_worker(0, signal.SIGSTOP)
        await bench.until(lambda: bool(owner.lost))
        assert owner.lost == ["worker_hung"]
        await bench.until(bench.pool.is_ready)


async def test_a_stopped_worker_is_found_long_before_the_longest_step_is_over() -> None:
    async with make_local_bench(step_timeout_ms=3_600_000) as bench:
        owner, busy = Owner(), Owner("busy")
        owner.open(bench.pool)
        busy.say(busy.open(bench.pool), "sleep 1")  # quiet too, and at work
        await bench.until(lambda: busy.texts() == ["sleep 1 1"])
        bench.kill_worker(0, signal.SIGSTOP)
        await bench.until(lambda: bool(owner.lost))
        assert owner.lost == ["worker_hung"]
        await bench.until(bench.pool.is_ready)


async def known(bench: LocalBench) -> Owner:
    """A caller whom the worker has answered often enough for its steps to be known."""
    owner = Owner("known")
    stream = owner.open(bench.pool)
    for index in range(KNOWN_STEPS):
        owner.say(stream, "hello")
        await bench.until(lambda count=index + 1: len(owner.texts()) == count)  # type: ignore[misc]
    await asyncio.sleep(2 * SWEEP_MS / 1000)
    return owner


@pytest.mark.parametrize("words", ["sleep 3600", "work 3600"])
async def test_an_engine_that_never_returns_is_found_by_what_its_steps_usually_take(words: str) -> None:
    async with make_local_bench(step_timeout_ms=3_600_000) as bench:
        witness, victim = await known(bench), Owner("victim")
        begun_ms = bench.now_ms()
        victim.say(victim.open(bench.pool), words)
        await bench.until(lambda: bool(victim.lost and witness.lost))
        assert victim.lost == ["worker_hung"]
        assert bench.now_ms() - begun_ms >= (500.0 if words.startswith("sleep") else 1_000.0)
        await bench.until(bench.pool.is_ready)


@pytest.mark.parametrize("words", ["work 0.6", "toil 1.5"])
async def test_an_engine_that_gets_on_is_slow_and_no_more(words: str) -> None:
    async with make_local_bench(step_timeout_ms=3_600_000) as bench:
        witness, slow = await known(bench), Owner("slow")
        slow.say(slow.open(bench.pool), words)
        await bench.until(lambda: bool(slow.lost or slow.texts()))
        assert slow.texts() == [f"{words} 1"]
        assert not witness.lost


async def test_an_engine_of_which_little_is_known_has_all_the_time_that_is_allowed() -> None:
    async with make_local_bench(step_timeout_ms=3_600_000) as bench:
        owner = Owner()
        owner.say(owner.open(bench.pool), "sleep 1.2")
        await bench.until(lambda: bool(owner.lost or owner.texts()))
        assert owner.texts() == ["sleep 1.2 1"]


async def test_a_worker_that_keeps_dying_does_not_stop_the_pool() -> None:
    async with make_local_bench() as bench:
        for round_ in range(4):
            await bench.until(bench.pool.is_ready)
            owner = Owner(f"caller {round_}")
            owner.say(owner.open(bench.pool), "_exit")
            await bench.until(owner.is_lost)
        await bench.until(bench.pool.is_ready)
        assert bench.pool.stats().restarts == 4
        assert bench.pool.stats().workers[0].generation == 5


async def test_with_no_worker_left_everybody_is_told_when_to_come_back() -> None:
    async with make_local_bench() as bench:
        bench.kill_worker(0)
        await bench.until(lambda: not bench.pool.is_ready())
        refusal = Owner().try_open(bench.pool)
        assert getattr(refusal, "reason", None) == "no_worker"
        assert getattr(refusal, "retry_after_ms", 0) > 0
        await bench.until(bench.pool.is_ready)


async def test_a_killed_forkserver_takes_its_workers_along_and_all_come_back() -> None:
    async with make_local_bench(workers=2) as bench:
        owner = Owner()
        owner.open(bench.pool)
        pids = [bench.pid(0), bench.pid(1)]
        forkserver = bench.pool.forkserver_pid()
        assert forkserver is not None
        os.kill(forkserver, signal.SIGKILL)
        await bench.until(lambda: bool(owner.lost))
        await bench.until(lambda: not any(is_alive(pid) for pid in pids))
        await bench.until(
            lambda: all(w.state == "ready" and w.pid not in pids for w in bench.pool.stats().workers)
        )
        owner.say(owner.open(bench.pool), "back")
        await bench.until(lambda: owner.texts() == ["back 1"])
        assert "forkserver_lost" in bench.names()


async def test_a_terminal_interrupt_does_not_reach_workers() -> None:
    async with make_local_bench() as bench:
        owner = Owner()
        stream = owner.open(bench.pool)
        for number in (signal.SIGINT, signal.SIGTERM):
            bench.kill_worker(0, number)
        owner.say(stream, "still here")
        await bench.until(lambda: owner.texts() == ["still here 1"])
        assert owner.lost == []


async def test_a_worker_that_is_busy_for_ever_is_killed_at_stop() -> None:
    async with make_local_bench(step_timeout_ms=60_000) as bench:
        owner = Owner()
        owner.say(owner.open(bench.pool), "sleep 60")
        pid = bench.pid()
        await bench.until(lambda: bench.pool.workers.handles[0].stats().queued == 0)
        await bench.pool.stop()
        await bench.until(lambda: not is_alive(pid))


async def test_nothing_stays_open_after_many_deaths() -> None:
    async with make_local_bench() as bench:

        async def die(times: int) -> None:
            for _ in range(times):
                deaths = bench.pool.stats().restarts
                bench.kill_worker(0)
                await bench.until(lambda: bench.pool.stats().restarts > deaths)  # noqa: B023
                await bench.until(lambda: bench.pool.is_ready() and bench.pid() != 0)

        await die(3)
        before = len(os.listdir("/proc/self/fd"))
        await die(3)
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("engine", "params", "key", "text"),
    [
        ("no_such_engine", {}, "stages.reply.engine", "no engine is called 'no_such_engine'"),
        ("voiceserver.testing.engines:Nobody", {}, "stages.reply.engine", "has no 'Nobody'"),
        (ENGINE, {"load": "bad preload"}, "stages.reply.params.load", "the weights are not there"),
        (ENGINE, {"load": "bad params"}, "stages.reply.params.load", "params.load: 'bad params'"),
    ],
)
async def test_an_engine_that_cannot_be_had_is_a_config_error(
    engine: str, params: dict[str, str], key: str, text: str
) -> None:
    pool = ProcessPool("reply", StageConfig(engine=engine, params=params))
    with pytest.raises(ConfigError, match=text) as caught:
        await asyncio.wait_for(pool.start(), 30)
    assert caught.value.key == key
    assert not pool.is_ready()


def soft_limit(pid: int, limit: int) -> None:
    """Of open files, of a running process."""
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))


@contextmanager
def few_files(pid: int, limit: int) -> Iterator[None]:
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    soft_limit(pid, limit)
    try:
        yield
    finally:
        soft_limit(pid, before)


async def test_a_forkserver_without_descriptors_harms_no_worker_and_starts_the_next_one_later() -> None:
    async with make_local_bench(workers=2) as bench:
        forkserver, healthy = bench.pool.forkserver_pid(), bench.pid(1)
        assert forkserver is not None
        with few_files(forkserver, 3):
            bench.kill_worker(0)
            await bench.until(lambda: bench.names().count("fork_failed") >= 2)
            assert (bench.pool.forkserver_pid(), bench.pid(1)) == (forkserver, healthy)
            owner = Owner()
            owner.say(owner.open(bench.pool), "meanwhile")
            await bench.until(lambda: owner.texts() == ["meanwhile 1"])
        await bench.until(lambda: all(worker.state == "ready" for worker in bench.pool.stats().workers))
        assert bench.pid(1) == healthy


async def test_a_forkserver_that_hangs_is_replaced_and_its_workers_serve_on() -> None:
    async with make_local_bench(workers=2) as bench:
        hung, healthy = bench.pool.forkserver_pid(), bench.pid(1)
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        bench.kill_worker(0)
        await bench.until(lambda: bench.pool.stats().restarts > 0)
        await bench.until(lambda: all(w.state == "ready" and w.pid for w in bench.pool.stats().workers))
        assert bench.pool.forkserver_pid() != hung
        assert bench.pid(1) == healthy
        assert "forkserver_lost" in bench.names()
        # It is kept for the sake of its last worker.
        assert is_alive(hung)
        bench.kill_worker(1)
        await bench.until(lambda: not is_alive(hung))
        await bench.until(lambda: bench.pool.stats().restarts > 1)
        await bench.until(lambda: all(w.state == "ready" and w.pid for w in bench.pool.stats().workers))


async def test_a_forkserver_that_hangs_is_noticed_before_it_is_needed() -> None:
    async with make_local_bench() as bench:
        hung, healthy = bench.pool.forkserver_pid(), bench.pid()
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        await bench.until(lambda: "forkserver_lost" in bench.names())
        await bench.until(lambda: bench.pool.forkserver_pid() not in (None, hung))
        assert bench.pid() == healthy


async def test_workers_that_have_lived_for_long_come_back_after_the_death_of_their_forkserver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They wait for the next forkserver, which is no loading that takes too long."""
    async with make_local_bench() as bench:
        monkeypatch.setattr("voiceserver.pool.worker_processes.LOAD_TIMEOUT_MS", 1.0)
        forkserver = bench.pool.forkserver_pid()
        assert forkserver is not None
        first = bench.pid()
        os.kill(forkserver, signal.SIGKILL)
        await bench.until(lambda: "forkserver_lost" in bench.names())
        # Longer than two sweeps: workers are looked at while there is no forkserver that has loaded the engine.
        await asyncio.sleep(3 * SWEEP_MS / 1000)
        monkeypatch.setattr("voiceserver.pool.worker_processes.LOAD_TIMEOUT_MS", 60_000.0)
        await bench.until(lambda: bench.pool.is_ready() and bench.pid() not in (0, first))


async def test_a_worker_that_is_stopped_while_it_loads_is_replaced() -> None:
    async with make_local_bench() as bench:
        await bench.pool.stop()
        pool = bench.pool = ProcessPool(
            "reply",
            StageConfig(engine=ENGINE, params={"load": "for ever"}, workers=1),
            on_event=lambda *_: None,
        )
        starting = asyncio.create_task(pool.start())
        await bench.until(lambda: bool(bench.pid()))
        first = bench.pid()
        bench.kill_worker(0, signal.SIGSTOP)
        await bench.until(lambda: bench.pid() not in (0, first))
        assert not is_alive(first)
        starting.cancel()
        await pool.stop()


async def test_a_worker_comes_back_soon_however_few_descriptors_were_free_when_it_died() -> None:
    async with make_local_bench() as bench:
        for spare in range(10):
            highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
            first = bench.pid()
            with few_files(0, highest + spare):
                bench.kill_worker(0)
                await bench.until(lambda first=first: not is_alive(first))  # type: ignore[misc]
                await asyncio.sleep(4 * SWEEP_MS / 1000)
            died_ms = bench.now_ms()
            await bench.until(lambda: bench.pool.is_ready() and bench.pid() > 0)
            # It is tried again every second; the rest is for a machine that is busy.
            assert bench.now_ms() - died_ms < 15_000.0, spare
