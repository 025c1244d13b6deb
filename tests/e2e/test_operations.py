"""What an operator does to a server that people talk to: reload it, put another in its place, let long calls end, watch it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.e2e.serving import ENVIRONMENT, SMALL, serving
from voiceserver.config.loader import load
from voiceserver.config.schema import Config, ServerConfig
from voiceserver.server.reloading import differences

pytestmark = pytest.mark.timeout(120)


def ask(caller: ClientConnection, words: str) -> str:
    """What the server answers to a typed question."""
    caller.send(json.dumps({"type": "item.append", "item": {"role": "user", "text": words}}))
    caller.send(json.dumps({"type": "reply.create"}))
    while True:
        event = json.loads(caller.recv(timeout=30))
        if event["type"] == "reply.done":
            return str(event["reason"])


def test_sighup_takes_up_what_it_can_says_the_rest_and_ends_no_call(tmp_path: Path) -> None:
    file = tmp_path / "voiceserver.toml"
    environment = {**ENVIRONMENT, "VOICESERVER_CONFIG": str(file)}
    file.write_text('[server]\nlog_level = "info"\n')
    with serving(*SMALL, environment=environment) as server, connect(server.url) as caller:
        caller.recv()
        file.write_text('[server]\nlog_level = "debug"\nbacklog = 99\n')
        server.process.send_signal(signal.SIGHUP)
        told = server.wait_for("configuration reloaded")
        assert (told["changed"], told["needs_restart"]) == (["server.log_level"], ["server.backlog"])
        assert ask(caller, "Are you still there?") == "completed"
        file.write_text('[server]\nlog_level = "loud"\n')
        server.process.send_signal(signal.SIGHUP)
        assert "log_level" in server.wait_for("reload failed")["reason"]
        assert ask(caller, "And now?") == "completed"


def test_sighup_of_several_processes_ends_no_call() -> None:
    with serving(*SMALL, "server.processes=2") as server:
        server.wait_for("all processes started")
        with connect(server.url) as caller:
            caller.recv()
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("reloaded")
            assert ask(caller, "Are you still there?") == "completed"


def test_another_server_takes_the_port_over_and_no_caller_is_refused() -> None:
    chat = ("server.reuse_port=true", "server.drain_until_idle_ms=20000")
    with serving(*SMALL, *chat) as old, connect(old.url) as caller:
        caller.recv()
        old.wait_for("started")
        with serving(*SMALL, "server.reuse_port=true", port=old.port) as new:
            new.wait_for("started")
            old.process.send_signal(signal.SIGTERM)
            old.wait_for("draining")
            for _ in range(30):
                with connect(new.url) as other:
                    assert json.loads(other.recv())["type"] == "session.ready"
            new.wait_ready()  # its calibration may go on
            assert ask(caller, "Did you notice?") == "completed"  # the old server, still
            caller.close()
            assert old.wait() == 0


def test_without_reuse_port_a_second_server_does_not_start() -> None:
    with serving(*SMALL) as server:
        flags = [part for one in (*SMALL, "server.reuse_port=true") for part in ("--set", one)]
        second = subprocess.run(
            [sys.executable, "-m", "voiceserver", "serve", "--port", str(server.port), *flags],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 2
        assert "Address already in use" in second.stderr


def test_a_call_may_outlast_the_drain_time_where_drains_wait_for_idle() -> None:
    with serving(*SMALL, "server.drain_timeout_ms=200", "server.drain_until_idle_ms=60000") as server:
        with connect(server.url) as caller:
            caller.recv()
            server.process.send_signal(signal.SIGTERM)
            assert server.wait_for("draining")["until_idle_ms"] == 60_000
            time.sleep(1.0)
            assert ask(caller, "May I finish?") == "completed"
        assert server.wait() == 0
        assert server.wait_for("stopped")["code"] == 0
        assert server.log[-1]["event"] == "stopped"


def test_systemd_hears_when_the_server_is_ready_and_when_it_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(60)
        with serving(
            *SMALL, environment={**ENVIRONMENT, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        ) as server:
            assert told.recv(100) == b"READY=1"
            server.process.send_signal(signal.SIGTERM)
            assert told.recv(100) == b"STOPPING=1"
            assert server.wait() == 0


def test_ready_is_a_command_for_health_checks() -> None:
    with serving(*SMALL) as server:
        server.wait_for("started")
        command = [sys.executable, "-m", "voiceserver", "ready", "--port", str(server.port)]
        asked = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
        assert (asked.returncode, asked.stderr) == (0, "")
    asked = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert asked.returncode == 2
    assert "does not answer" in asked.stderr


def test_a_server_that_anybody_may_use_says_so() -> None:
    with serving(*SMALL, "server.host=0.0.0.0") as server:
        assert server.wait_for("serves without keys on all addresses")["level"] == "warning"


def test_what_is_different_is_named() -> None:
    before = load(None, {}).config
    assert differences(before, before) == []
    after = load(None, {}, [("server.port", "1", "--port"), ("stages.stt.params.x", "1", "--set")]).config
    assert differences(before, after) == ["server.port", "stages.stt.params.x"]
    assert differences(Config(), Config(server=ServerConfig(log_level="debug"))) == ["server.log_level"]


def wake_ups(pids: list[int]) -> int:
    """How often the main threads of these processes have gone to sleep of their own accord, so far."""
    fields = [line.split() for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(field[1]) for field in fields if field[0] == "voluntary_ctxt_switches:")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_server_without_callers_is_quiet_and_answers_at_once_all_the_same() -> None:
    with serving(*SMALL) as server:
        worker = int(server.wait_for("worker ready")["pid"])
        server.wait_for("started")
        pids = [server.process.pid, worker]
        for _ in range(10):
            before = wake_ups(pids)
            time.sleep(3.0)
            woken = wake_ups(pids) - before
            if woken <= 9:
                break
        assert woken <= 9, "it never rests"
        with connect(server.url) as caller:
            caller.recv()
            assert ask(caller, "Are you still there?") == "completed"
