"""Full, over real sockets: a place, a wait with a position, a refusal with a time; and what a storm of callers hears."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from tests.e2e.serving import ENVIRONMENT, SMALL, serving

FULL = (*SMALL, "backpressure.max_talkers=1", "backpressure.waiting_room=2")


async def hear(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next event of ``kind``."""
    while True:
        event: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 20))
        if event["type"] == kind:
            return event


async def test_one_talks_two_wait_the_fourth_is_refused_and_places_are_handed_on() -> None:
    with serving(*FULL) as server:
        async with connect(server.url) as first, connect(server.url) as second, connect(server.url) as third:
            await hear(first, "session.ready")
            assert (await hear(second, "server.busy"))["position"] == 1
            assert (await hear(third, "server.busy"))["position"] == 2
            with pytest.raises(InvalidStatus) as refused:
                await connect(server.url)
            assert refused.value.response.status_code == 503
            assert int(refused.value.response.headers["Retry-After"]) >= 2
            _, capacity = server.get("/v1/capacity")
            assert (capacity["talkers"], capacity["talkers_limit"], capacity["waiting"]) == (1, 1, 2)
            await first.close()
            await hear(second, "server.ready")
            assert (await hear(third, "server.busy"))["position"] == 1
            await second.send(b"\0" * 640)  # 20 ms at 16 kHz
            await second.send('{"type":"session.close"}')
            assert (await hear(second, "session.closing"))["accounting"]["received_ms"] == pytest.approx(
                20, abs=10
            )
            await hear(third, "server.ready")
        _, metrics = server.get("/metrics")
        assert "voiceserver_talkers 0.0" in metrics
        assert "voiceserver_talkers_limit 1.0" in metrics


async def test_every_caller_of_a_storm_hears_something_and_no_place_is_lost() -> None:
    async def call(url: str) -> str:
        try:
            async with connect(url, open_timeout=30) as socket:
                while True:
                    event = json.loads(await asyncio.wait_for(socket.recv(), 30))
                    if event["type"] == "server.busy":
                        return "waits"
                    if event["type"] == "session.ready":
                        ready = event
                        break
                try:
                    event = json.loads(await asyncio.wait_for(socket.recv(), 0.3))
                except TimeoutError:
                    return "talks" if ready else ""
                return "waits" if event["type"] == "server.busy" else event["type"]
        except InvalidStatus as refused:
            return str(refused.response.status_code)

    with serving(*FULL) as server:
        heard = await asyncio.gather(*(call(server.url) for _ in range(200)))
        assert set(heard) <= {"talks", "waits", "503"}
        assert heard.count("503") >= 150
        assert heard.count("talks") + heard.count("waits") >= 3
        _, capacity = await asyncio.to_thread(server.get, "/v1/capacity")
        assert (capacity["connections"], capacity["talkers"], capacity["waiting"]) == (0, 0, 0)


@pytest.mark.timeout(400)
def test_the_overload_benchmark_runs_and_its_books_are_closed() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.overload", "--quick", "--alone", "--stt=pocketsphinx"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=380, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in ran.stdout.splitlines() if "│" in line
    ]
    (ours,) = rows
    assert ours[0] == "4x"
    assert float(ours[2]) < int(ours[1]), "nobody waited or was refused at four times the capacity"
    assert float(ours[14]) == 0, "audio that was sent and that no book tells of"
