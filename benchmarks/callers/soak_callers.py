"""One process of the soak's callers: ``voiceserver_clients.load``, watched from outside and gone when its parent is.

Prints one short JSON line every second (``arrived``, ``open``, ``lost``, ``ping_p99_ms``) and a last one with ``held``, how many
connections answered a roll call at the very end, and the ``tally``. With ``{"seconds": ...}`` on standard input (everybody is in,
also in the other processes) talkers begin to talk and the clock starts; at its end everybody leaves. So they do, at once, when
standard input ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from typing import Annotated

import typer
import uvloop

from benchmarks.callers.speech import speech
from voiceserver_clients.callers import Caller, Talker
from voiceserver_clients.command import raise_file_limit
from voiceserver_clients.histogram import Histogram
from voiceserver_clients.load import RATE_HZ, Load, Plan, tally_to_json

REPORT_S = 1.0
ROLL_CALL_S = 20.0
ROLL_PER_TICK = 30  # of 10 ms
CHUNK_MS = 100  # of a talker's audio, as most clients send it


class SoakLoad(Load):
    """Holds everybody until ``go``; asks everybody for a sign of life before they leave."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.held = 0
        self._silent: list[Caller] = []
        self.go: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    @property
    def open_now(self) -> int:
        counts = self.tally.counts
        return int(counts["connected"] - counts["lost"] - counts["closed"])

    def _begin(self, caller: Caller) -> None:
        if isinstance(caller, Talker) and not self.go.done():
            self._silent.append(caller)
        else:
            super()._begin(caller)

    async def _stay(self) -> None:
        # Whoever is here is here to stay: a full collection over all of them would hold up every pong for long.
        gc.enable()
        gc.collect()
        gc.freeze()
        seconds = await self.go
        for caller in self._silent:
            super()._begin(caller)
        for histogram in self.tally.latencies.values():
            histogram.clear()
        await asyncio.sleep(seconds)

    async def _leave(self) -> None:
        pings, self.tally.latencies["ping"] = self.tally.latencies["ping"], Histogram()
        self.held = await self._call_roll()
        await super()._leave()
        self.tally.latencies["ping"] = pings  # what was measured while everybody stayed

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
    gc.disable()  # until everybody is in
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
    pings = load.tally.latencies["ping"]
    line: dict[str, object] = {
        "arrived": load.arrived.is_set(),
        "open": load.open_now,
        "lost": load.tally.counts["lost"],
        "ping_p99_ms": pings.percentile(99) if pings.count else 0.0,
    }
    if is_last:
        line |= {"held": load.held, "tally": json.loads(tally_to_json(load.tally))}
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
    raise_file_limit()
    recordings = speech(RATE_HZ) if talkers else ()
    plan = Plan(
        url,
        talkers,
        0,
        connections,
        0.0,
        ramp,
        int(ping_s * 1000),
        sources,
        first_source,
        seed,
        recordings,
        CHUNK_MS,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(plan))


if __name__ == "__main__":
    try:
        typer.run(main)
    except KeyboardInterrupt:
        sys.exit(130)
