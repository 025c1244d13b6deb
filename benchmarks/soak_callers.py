"""One process of the soak's callers: ``clients.load``, watched from outside and gone when its parent is.

Prints one JSON line every second (``arrived``, ``open``, ``tally``) and a last one with ``held``: how many connections answered a
roll call at the very end. It leaves ``seconds`` after everybody arrived, or at once when its standard input ends. With
``{"seconds": ...}`` on standard input the clock starts: everybody is in, also in the other processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from typing import Annotated

import typer
import uvloop

from benchmarks.speech import speech
from clients.load import RATE_HZ, Load, Plan, tally_to_json

REPORT_S = 1.0
ROLL_CALL_S = 20.0
ROLL_PER_TICK = 500


class SoakLoad(Load):
    """Holds everybody until ``go``; asks everybody for a sign of life before they leave."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.held = 0
        self.go: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    @property
    def open_now(self) -> int:
        counts = self.tally.counts
        return int(counts["connected"] - counts["lost"] - counts["closed"])

    async def _stay(self) -> None:
        for histogram in self.tally.latencies.values():
            histogram.clear()
        await asyncio.sleep(await self.go)

    async def _leave(self) -> None:
        self.held = await self._call_roll()
        await super()._leave()

    async def _call_roll(self) -> int:
        """How many of those who think that they are connected have an answer from the server."""
        waiting = [caller for caller in self.callers if caller.is_open]
        for start in range(0, len(waiting), ROLL_PER_TICK):
            for caller in waiting[start : start + ROLL_PER_TICK]:
                caller.call_roll()
            await asyncio.sleep(0.01)
        deadline_s = self._loop.time() + ROLL_CALL_S
        while self.tally.counts["present"] < len(waiting) and self._loop.time() < deadline_s:
            await asyncio.sleep(0.02)
        return int(self.tally.counts["present"])


async def run(plan: Plan) -> None:
    load = SoakLoad(plan)
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(load.run())

    def listen() -> None:
        told = os.read(0, 4096)
        if told and not load.go.done():
            load.go.set_result(float(json.loads(told)["seconds"]))
        elif not told:
            loop.remove_reader(0)
            running.cancel()

    loop.add_reader(0, listen)
    while not running.done():
        await asyncio.wait({running}, timeout=REPORT_S)
        _report(load, is_last=False)
    if not running.cancelled():
        running.result()
        _report(load, is_last=True)


def _report(load: SoakLoad, *, is_last: bool) -> None:
    line = {
        "arrived": load.arrived.is_set(),
        "open": load.open_now,
        "tally": json.loads(tally_to_json(load.tally)),
    }
    if is_last:
        line["held"] = load.held
    print(json.dumps(line), flush=True)


def main(
    url: Annotated[str, typer.Option()],
    talkers: Annotated[int, typer.Option()] = 0,
    connections: Annotated[int, typer.Option()] = 0,
    ramp: Annotated[float, typer.Option()] = 500.0,
    ping_s: Annotated[float, typer.Option()] = 20.0,
    sources: Annotated[int, typer.Option()] = 1,
    first_source: Annotated[int, typer.Option()] = 1,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """For benchmarks.soak."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    recordings = speech(RATE_HZ) if talkers else ()
    plan = Plan(
        url, talkers, 0, connections, 0.0, ramp, int(ping_s * 1000), sources, first_source, seed, recordings
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(plan))


if __name__ == "__main__":
    try:
        typer.run(main)
    except KeyboardInterrupt:
        sys.exit(130)
