"""A real server that is late retreats to its lighter engine, and tells whom that concerns and ``/metrics``. The way back is a
matter of the clock alone: tests/voiceserver/capacity and the simulation have it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.e2e.serving import ServerProcess, serving
from tests.faults.chatting import NO_VOICE, Chat

SETTINGS = {
    **NO_VOICE,
    "stages.reply.engine": "tests.faults.fault_engines:Answering",
    "stages.reply.lighter.engine": "tests.faults.fault_engines:Light",
    "session.reply_timeout_ms": "60000",
    "stages.reply.step_timeout_ms": "60000",
    "server.check_laws": "true",
}


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with serving(*(f"{key}={value}" for key, value in SETTINGS.items())) as server:
        yield server


def figure(server: ServerProcess, name: str) -> float:
    _, text = server.get("/metrics")
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def wait_until_level(server: ServerProcess, level: int, timeout_s: float = 60.0) -> None:
    give_up_s = time.monotonic() + timeout_s
    while figure(server, "voiceserver_degrade_level ") != level:
        assert time.monotonic() < give_up_s, f"never at step {level}"
        time.sleep(0.05)


class Sleeper(threading.Thread):
    """Keeps the stage's only worker from its work, and others waiting."""

    def __init__(self, url: str, seconds: float) -> None:
        super().__init__(daemon=True)
        self.chat, self.waiting = Chat(url), Chat(url)
        self.seconds = seconds
        self.answers: list[str] = []

    def run(self) -> None:
        self.chat.ask(f"sleep {self.seconds}")
        time.sleep(0.3)
        self.waiting.ask("patience")
        for chat in (self.chat, self.waiting):
            chat.read_type("reply.done", 60.0)
            self.answers += [event["text"] for event in chat.said("reply.text")]
            chat.socket.close()


def test_new_turns_go_to_the_lighter_engine_while_the_stage_is_late(
    server: ServerProcess,
) -> None:
    sleeper = Sleeper(server.url, 5.0)
    with Chat(server.url) as before, Chat(server.url) as during:
        assert before.talk("hello") == "You said hello."
        sleeper.start()
        wait_until_level(server, 3)
        during.ask("hold on")
        done = during.read_type("reply.done")
        during.read_type("server.ready")
        assert done["text"] == "Light: hold on."
        (busy,) = (event for event in during.said("server.busy") if event["reason"] == "lighter_engine")
        assert (busy["stage"], busy["step"], busy["degraded"]) == ("reply", "degraded", ["reply engine"])
        steps = [entry["step"] for entry in server.log if entry["event"] == "degrade"]
        assert steps == ["fewer_partials", "wider_batches", "lighter_engines"]
        sleeper.join(60)
        # Who was there before is served by the engine that began, however late.
        assert sleeper.answers == ["You said sleep 5.0.", "You said patience."]
        assert figure(server, 'voiceserver_busy_signals_total{reason="lighter_engine"') == 1
