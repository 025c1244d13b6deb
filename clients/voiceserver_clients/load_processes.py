"""A load over several processes: its plan, the share of each, and what they tell when they are done."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from voiceserver_clients.callers import TALKER_CHUNK_MS, Tally
from voiceserver_clients.histogram import Histogram
from voiceserver_clients.recording import Recording

SOURCES_OF_A_PROCESS = 8  # at least: so that no two processes fight for the ports of one address
LEAST_PER_SECOND = 0.001
ADDRESSES = 254  # 127.0.0.1 to 127.0.0.254
PORTS_PER_SOURCE = 20_000  # below the usual ephemeral range of one address


@dataclass(frozen=True, slots=True)
class Plan:
    """Who calls, how fast they come, how long they stay. sources: how many addresses 127.0.0.x to call from, 0 for as
    many as the ports demand; recordings: what talkers and listeners say, at 16 kHz."""

    url: str
    talkers: int = 0
    listeners: int = 0
    connections: int = 0
    seconds: float = 10.0
    ramp_per_s: float = 500.0
    ping_ms: int = 20_000
    sources: int = 0
    first_source: int = 1
    seed: int = 1
    recordings: tuple[Recording, ...] = ()
    talker_chunk_ms: int = TALKER_CHUNK_MS

    @property
    def callers(self) -> int:
        return self.talkers + self.listeners + self.connections

    @property
    def addresses(self) -> int:
        return self.sources or -(-self.callers // PORTS_PER_SOURCE)


class LoadFailed(Exception):
    """A process of a load ended by itself. The message holds its last words."""


def tally_to_json(tally: Tally) -> str:
    latencies = {
        name: {"buckets": histogram.to_buckets(), "max_ms": histogram.max_ms, "sum_ms": histogram.sum_ms}
        for name, histogram in tally.latencies.items()
    }
    return json.dumps({"counts": tally.counts, "reasons": tally.reasons, "latencies": latencies})


def tally_from_json(line: str) -> Tally:
    """Raises ValueError for what is not a tally."""
    tally = Tally()
    body = json.loads(line)
    tally.counts.update(body["counts"])
    tally.reasons.update(body.get("reasons", {}))
    for name, parts in body["latencies"].items():
        buckets = [(index, count) for index, count in parts["buckets"]]
        tally.latencies[name] = Histogram.from_buckets(buckets, parts["max_ms"], parts["sum_ms"])
    return tally


def stride_of(plan: Plan) -> int:
    """How many addresses a process has for itself."""
    return max(SOURCES_OF_A_PROCESS, plan.sources)


def share_of(plan: Plan, processes: int, index: int) -> dict[str, int]:
    """Callers of each kind in process ``index``, dealt like cards: nobody gets two more than another."""
    share: dict[str, int] = {}
    dealt = 0
    for name in ("talkers", "listeners", "connections"):
        count: int = getattr(plan, name)
        share[name] = len(range((index - dealt) % processes, count, processes))
        dealt += count
    return share


async def spread(arguments: Sequence[str], processes: int, plan: Plan) -> Tally:
    """Run ``processes`` copies of this module, each with its share, and add up what they saw.

    Raises LoadFailed.
    """

    async def one(index: int) -> Tally:
        share = [f"--{name}={count}" for name, count in share_of(plan, processes, index).items()]
        ramp_per_s = max(plan.ramp_per_s / processes, LEAST_PER_SECOND)
        extra = [f"--ramp={ramp_per_s}", f"--seed={plan.seed + index}", "--processes=1"]
        extra.append(f"--first-source={1 + index * stride_of(plan)}")
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "voiceserver_clients.load",
            *arguments,
            *share,
            *extra,
            "--tally",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, complaint = await child.communicate()
        finally:
            if child.returncode is None:
                child.terminate()
                await child.wait()
        if child.returncode:
            last = complaint.decode(errors="replace").strip().splitlines()[-1:]
            raise LoadFailed(last[0] if last else f"a load process failed with {child.returncode}")
        return tally_from_json(output.decode())

    total = Tally()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index)) for index in range(processes)]
    except ExceptionGroup as failed:  # the first of them ends the others
        raise failed.exceptions[0] from None
    for task in tasks:
        total.add(task.result())
    return total
