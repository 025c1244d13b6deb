"""What every stock client is asked to do, and how it tells the test what came of it. Imported by the client programs only.

A program has one coroutine a scenario; ``play`` runs each and prints one JSON line for it. The environment says where:
``STOCK_URL`` (an idle server), ``STOCK_FULL_URL`` (one with every place taken), ``STOCK_SPEECH`` (PCM16 mono at 24 kHz: somebody
says something).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path

RATE_HZ = 24_000
CHUNK_MS = 100
URL = os.environ["STOCK_URL"]
FULL_URL = os.environ["STOCK_FULL_URL"]
STORY = "Please tell me a story."
WEATHER = "How is the weather in Paris?"
LIMIT_S = 25.0

Facts = Mapping[str, object]


def speech() -> bytes:
    """Speech and a second of silence, so that the turn ends."""
    return Path(os.environ["STOCK_SPEECH"]).read_bytes() + bytes(2 * RATE_HZ)


def chunks(pcm: bytes) -> Iterator[bytes]:
    size = RATE_HZ * CHUNK_MS // 1000 * 2
    for at in range(0, len(pcm), size):
        yield pcm[at : at + size]


async def spoken() -> AsyncIterator[bytes]:
    """The chunks of ``speech``, four times as fast as a person."""
    for chunk in chunks(speech()):
        yield chunk
        await asyncio.sleep(CHUNK_MS / 4000)


async def _run(scenarios: tuple[Callable[[], Awaitable[Facts]], ...]) -> None:
    for scenario in scenarios:
        began = time.monotonic()
        line: dict[str, object] = {"scenario": scenario.__name__}
        try:
            line["facts"] = await asyncio.wait_for(scenario(), LIMIT_S)
        except BaseException:
            line["failure"] = traceback.format_exc()
        line["seconds"] = round(time.monotonic() - began, 2)
        sys.__stdout__.write("\n" + json.dumps(line) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


def has_begun() -> None:
    """Tell the test that the answer is being heard: it acts now."""
    sys.__stdout__.write('\n{"scenario": "begun"}\n')  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def play(*scenarios: Callable[[], Awaitable[Facts]]) -> None:
    """All of them, or those that are named as arguments. ``drain`` is only for who names it: it is the end of its server."""
    assert all(inspect.iscoroutinefunction(one) for one in scenarios)
    wanted = sys.argv[1:] or [one.__name__ for one in scenarios if one.__name__ != "drain"]
    scenarios = tuple(one for one in scenarios if one.__name__ in wanted)
    asyncio.run(_run(scenarios))
    # Some clients leave threads or tasks behind that would keep the process.
    os._exit(0)
