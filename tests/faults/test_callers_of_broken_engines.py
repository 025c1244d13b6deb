"""Engines that die, hang, raise and eat memory, behind a real server: who hears what, and who notices nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.serving import ServerProcess, serving
from tests.faults.chatting import NO_VOICE, Chat
from tests.faults.workers_of import pid_of

ENGINE = "tests.faults.fault_engines:Answering"
SETTINGS = [f"{key}={value}" for key, value in {**NO_VOICE, "stages.reply.engine": ENGINE}.items()]


@pytest.fixture(scope="module")
def broken() -> Iterator[ServerProcess]:
    with serving(*SETTINGS, "stages.reply.step_timeout_ms=500", "server.check_laws=true") as server:
        yield server


class Witness(threading.Thread):
    """Asks all the time, and remembers what it had to wait."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._is_over = threading.Event()
        self.chat = Chat(url)
        self.answers: list[str] = []
        self.waits_s: list[float] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._is_over.is_set():
                begun = time.monotonic()
                self.answers.append(self.chat.talk(f"number {len(self.answers)}"))
                self.waits_s.append(time.monotonic() - begun)
                time.sleep(0.005)
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        self._is_over.set()
        self.join(30)
        self.chat.socket.close()
        assert self.error is None
        assert self.answers == [f"You said number {index}." for index in range(len(self.answers))]


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
def test_poison_is_told_twice_and_closed_and_the_others_notice_a_hiccup_at_most(
    broken: ServerProcess, word: str, reason: str
) -> None:
    """The first crash may be anybody's fault; after the second, on a worker of its own kind, it is known whose."""
    witness = Witness(broken.url)
    witness.start()
    with Chat(broken.url) as culprit:
        culprit.ask(word)
        assert culprit.read_end() == 1011
        lost = [event["reason"] for event in culprit.said("server.busy") if event["step"] == "lost"]
        assert lost[0] in (reason, "worker_hung")  # memory may take longer to fill than a step may last
        assert [event["code"] for event in culprit.said("error")] == ["quarantined"]
        assert culprit.events[-1]["type"] == "session.closing"
        assert culprit.events[-1]["reason"] == "quarantined"
    witness.finish()
    hiccups = {event["turn"] for event in witness.chat.said("server.busy") if event["step"] == "lost"}
    assert len(hiccups) <= 1  # one answer came late
    with Chat(broken.url) as after:
        assert after.talk("hello") == "You said hello."


@pytest.mark.parametrize("word", ["raise", "bug"])
def test_an_engine_that_raises_fails_one_reply_and_nothing_else(broken: ServerProcess, word: str) -> None:
    pid = pid_of(broken, "reply")
    with Chat(broken.url) as chat:
        chat.ask(word)
        done = chat.read_type("reply.done")
        assert (done["reason"], done["code"]) == ("failed", "refused" if word == "raise" else "engine_failed")
        assert "secret" not in str(chat.events)
        assert chat.talk("and now") == "You said and now."
    assert pid_of(broken, "reply") == pid


def test_with_no_worker_left_the_server_stays_and_says_so(tmp_path: Path) -> None:
    flag = tmp_path / "no-worker"
    with serving(*SETTINGS, f"stages.reply.params.flag={flag}") as server, Chat(server.url) as before:
        assert before.talk("hello") == "You said hello."
        flag.touch()
        before.ask("kill")
        busy = before.read_type("server.busy")
        assert (busy["stage"], busy["step"]) == ("reply", "lost")
        while server.get("/readyz")[0] != 503:
            time.sleep(0.01)
        assert server.get("/readyz")[1]["why"][0]["stage"] == "reply"
        assert server.get("/healthz")[0] == 200
        with Chat(server.url) as new:
            new.ask("is anybody there")
            begun = time.monotonic()
            busy = new.read_type("server.busy")
            assert busy["retry_after_ms"] > 0
            again = new.read_type("server.busy")  # and goes on saying so
            assert again["lag_ms"] > busy["lag_ms"]
            tries = server.get("/v1/capacity")[1]["stages"]["reply"]["restarts"]
            assert tries < 40 * (time.monotonic() - begun + 1)  # backoff, not a loop
            assert 'voiceserver_worker_restarts_total{stage="reply"}' in server.get("/metrics")[1]
            flag.unlink()
            new.read_until(lambda event: event["type"] == "reply.done", 60)
            assert new.events[-1]["text"] == "You said is anybody there."
        while server.get("/readyz")[0] != 200:
            time.sleep(0.01)


def test_with_no_worker_left_the_silent_are_told_too(tmp_path: Path) -> None:
    flag = tmp_path / "no-worker"
    # Longer than a worker needs to come back, on a machine with ten times the load too.
    patient = "backpressure.busy_after_ms=5000"
    with serving(*SETTINGS, f"stages.reply.params.flag={flag}", patient) as server, Chat(server.url) as idle:
        with Chat(server.url) as killer:
            # Another worker is there before anybody who waits for nothing needs to know.
            killer.ask("kill")
            assert killer.read_end() == 1011
        with Chat(server.url) as killer:
            assert killer.talk("hello") == "You said hello."
            flag.touch()
            killer.ask("kill")
            told = idle.read_type("server.busy")
            assert (told["stage"], told["reason"], told["lag_ms"]) == ("reply", "no_worker", 0)
            assert told["retry_after_ms"] > 0
            assert idle.events[0]["type"] == "session.ready"
            assert len(idle.events) == 2, "the first deaths were nobody's business"
        with Chat(server.url) as silent:
            assert silent.read_type("server.busy")["reason"] == "no_worker"
            assert [event["type"] for event in silent.events] == ["session.ready", "server.busy"]
            flag.unlink()
            for chat in (idle, silent):
                assert chat.read_type("server.ready")["stage"] == "reply"
            assert silent.talk("are you back") == "You said are you back."
            assert idle.talk("and for me") == "You said and for me."
