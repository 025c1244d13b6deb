"""The real server process over real sockets: its pages, its errors, its end."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.e2e.serving import ENVIRONMENT, SMALL, ServerProcess, serving

TLS = Path(__file__).with_name("tls")  # a key that guards nothing: for localhost, self-signed


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(*SMALL, "server.max_message_bytes=65536") as server:
        yield server


def events_until_close(caller: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """Every JSON event up to the end, and the close code."""
    events: list[dict[str, Any]] = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            message = caller.recv(timeout=30)
            if isinstance(message, str):
                events.append(json.loads(message))
    assert caller.close_code is not None
    return events, caller.close_code


def test_pages(server: ServerProcess) -> None:
    assert server.get("/healthz") == (200, {"status": "ok"})
    server.wait_ready()
    assert server.get("/readyz") == (200, {"status": "ready", "why": []})
    status, capacity = server.get("/v1/capacity")
    assert (status, capacity["stages"]["reply"]["workers"], capacity["stages"]["reply"]["ready"]) == (
        200,
        1,
        1,
    )
    status, metrics = server.get("/metrics")
    assert status == 200
    assert 'voiceserver_workers{stage="reply",state="ready"} 1.0' in metrics
    assert server.get("/nope")[0] == 404
    assert server.get("/v1/stream")[0] == 426
    assert server.get("/healthz", "DELETE")[0] == 405


def test_a_conversation_in_text(server: ServerProcess) -> None:
    with connect(f"{server.url}?rate=8000&reply_rate=16000", compression="deflate") as caller:
        assert caller.protocol.extensions == []  # offered, and not taken
        ready = json.loads(caller.recv())
        assert (ready["input_rate_hz"], ready["output_rate_hz"]) == (8_000, 16_000)
        item = {"role": "user", "text": "How much is two plus three?"}
        caller.send(json.dumps({"type": "item.append", "item": item}))
        caller.send([json.dumps({"type": "reply.create"})[:7], json.dumps({"type": "reply.create"})[7:]])
        caller.send(json.dumps({"type": "session.close"}))
        events, code = events_until_close(caller)
    assert code == 1000
    said = "".join(event["text"] for event in events if event["type"] == "reply.text")
    assert "5" in said or "five" in said
    assert [event["type"] for event in events][-2:] == ["reply.done", "session.closing"]


def test_one_callers_mistakes_are_answered_and_disturb_nobody(server: ServerProcess) -> None:
    with connect(server.url) as other, connect(server.url) as caller:
        other.recv()
        caller.recv()
        for message, code in [
            (b"odd", "audio_misaligned"),
            ("{", "invalid_json"),
            ('{"type": "x"}', "unknown_type"),
        ]:
            caller.send(message)
            assert json.loads(caller.recv())["code"] == code
        caller.send(b"\x00" * 65_538)
        events, close_code = events_until_close(caller)
        assert [event["type"] for event in events] == ["error", "session.closing"]
        assert events[0]["code"] == "message_too_big"
        assert close_code == 1009
        assert other.ping().wait(10)


@pytest.mark.parametrize("query", ["?rate=100", "?rate=fast", "?reply_rate=96000", "?rte=8000"])
def test_a_bad_query_is_refused_before_the_upgrade(server: ServerProcess, query: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        connect(server.url + query)
    assert caught.value.response.status_code == 400
    assert json.loads(caught.value.response.body)["error"]["param"] in query


def test_invalid_utf8_and_unmasked_frames_close_with_the_right_code(server: ServerProcess) -> None:
    with connect(server.url) as caller:
        caller.recv()
        caller.send(b"\xff", text=True)
        assert events_until_close(caller)[1] == 1007
    with connect(server.url) as caller:
        caller.recv()
        caller.socket.sendall(b"\x82\x02ab")
        assert events_until_close(caller)[1] == 1002


def test_a_tls_client_on_the_plain_port_is_one_line_in_the_log(server: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"\x16\x03\x01\x00\x05hello")
        client.settimeout(30)
        assert client.recv(100) == b""
    assert server.wait_for("a client speaks TLS to the plain port")["level"] == "warning"
    assert server.plain == []


def test_tls_serves_pages_and_callers_and_closes_with_the_last_word() -> None:
    cert, key = TLS / "cert.pem", TLS / "key.pem"
    trust = ssl.create_default_context(cafile=str(cert))
    with serving(*SMALL, f"server.tls_cert={cert}", f"server.tls_key={key}") as server:
        with urllib.request.urlopen(
            f"https://127.0.0.1:{server.port}/healthz", context=trust, timeout=30
        ) as page:
            assert json.load(page) == {"status": "ok"}
        with connect(server.url.replace("ws:", "wss:"), ssl=trust) as caller:
            caller.recv()
            caller.send(b"odd")
            assert json.loads(caller.recv())["code"] == "audio_misaligned"
            caller.send(json.dumps({"type": "session.close"}))
            events, code = events_until_close(caller)
        assert (events[-1]["type"], code) == ("session.closing", 1000)


def test_a_full_server_refuses_with_503_and_tells_browsers_in_band() -> None:
    with serving(*SMALL, "backpressure.max_connections=1") as server, connect(server.url) as first:
        first.recv()
        with pytest.raises(InvalidStatus) as caught:
            connect(server.url)
        assert caught.value.response.status_code == 503
        assert int(caught.value.response.headers["Retry-After"]) >= 2
        began = time.monotonic()
        with connect(server.url, origin="https://example.test") as browser:  # type: ignore[arg-type]
            assert json.loads(browser.recv())["code"] == "at_capacity"
            assert events_until_close(browser) == ([], 1013)
        assert time.monotonic() - began >= 1.0
        assert first.ping().wait(10)


def test_sigterm_drains_and_exits_0_with_one_closing_line_per_session() -> None:
    with serving(*SMALL) as server, connect(server.url) as caller:
        session_id = json.loads(caller.recv())["session_id"]
        server.signal(signal.SIGTERM)
        events, code = events_until_close(caller)
        assert [event["type"] for event in events] == ["server.draining", "session.closing"]
        assert code == 1012
        assert server.wait() == 0
        closing = [entry for entry in server.log if entry["event"] == "session closed"]
        assert [entry["session"] for entry in closing] == [session_id]
        assert closing[0]["code"] == 1012
        assert server.plain == []


def test_a_second_signal_ends_a_drain_at_once() -> None:
    # A chat endpoint that accepts and never answers keeps the turn unfinished.
    with socket.create_server(("127.0.0.1", 0)) as endpoint:
        url = f"http://127.0.0.1:{endpoint.getsockname()[1]}/v1"
        chat = (
            "stages.reply.engine=chat",
            f"stages.reply.params.base_url={url}",
            "stages.reply.params.model=m",
        )
        with serving(*SMALL, *chat, "server.drain_timeout_ms=60000") as server, connect(server.url) as caller:
            caller.recv()
            caller.send(json.dumps({"type": "reply.create"}))
            assert json.loads(caller.recv())["type"] == "reply.started"
            server.signal(signal.SIGTERM)
            server.wait_for("draining")
            assert server.get("/readyz")[0] == 503
            with pytest.raises(InvalidStatus) as caught:
                connect(server.url)
            assert caught.value.response.status_code == 503
            server.signal(signal.SIGINT)
            assert server.wait() == 128 + signal.SIGINT


def test_the_same_port_can_be_served_again_at_once() -> None:
    with serving(*SMALL) as server, connect(server.url) as caller:
        caller.recv()
        port = server.port
        server.process.kill()
        server.wait()
        with serving(*SMALL, f"server.port={port}", program=("-c", _ON_PORT.format(port=port))) as again:
            assert again.port == port
            assert again.get("/healthz")[0] == 200


_ON_PORT = """
import sys
sys.argv[sys.argv.index("--port") + 1] = "{port}"
from voiceserver.cli import main
main()
"""

_INSPECT = """
import asyncio, sys
from voiceserver import cli
from voiceserver.server import server
start = server.Server.start
async def inspected(self):
    print("loop", type(asyncio.get_running_loop()).__module__, file=sys.stderr)
    await start(self)
server.Server.start = inspected
try:
    cli.main()
finally:
    print("heavy", [name for name in ("torch", "numpy", "soxr") if name in sys.modules], file=sys.stderr)
"""


def test_the_loop_is_uvloop_and_the_server_loads_neither_torch_nor_numpy() -> None:
    with serving("stages.stt.engine=none", program=("-c", _INSPECT)) as server:
        with connect(server.url) as caller:
            caller.recv()
            caller.send(b"\x00" * 3_200)
            caller.send(json.dumps({"type": "session.close"}))
            assert events_until_close(caller)[1] == 1000
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.plain == ["loop uvloop\n", "heavy []\n"]


# ------------------------------------------------------------------------------------------------- the command line


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voiceserver", *args],
        capture_output=True,
        text=True,
        # A machine with ten times the load needs many seconds to start a program.
        timeout=110,
        cwd=cwd,
        env=ENVIRONMENT,
        check=False,
    )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "server.prot=1",
            "server.prot: there is no such setting; did you mean server.port? (from --set server.prot)",
        ),
        ("server.port=http", "server.port: must be a whole number, not 'http' (from --set server.port)"),
        (
            "stages.vad.engine=silera",
            "stages.vad.engine: no engine is called 'silera'. Did you mean 'silero'?",
        ),
        ("stages.vad.engine=espeak", "stages.vad.engine: engine 'espeak' serves tts, not vad"),
        ("stages.vad.engine=no_such:Engine", "there is no module 'no_such'"),
        ("server.tls_cert=/nowhere.pem", "server.tls_cert: '/nowhere.pem'"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(setting: str, words: str, tmp_path: Path) -> None:
    done = run("serve", "--port", "0", "--set", setting, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_parameter_that_an_engine_refuses_is_named_with_what_it_may_be(tmp_path: Path) -> None:
    small = [part for setting in SMALL for part in ("--set", setting)]
    wrong = ("--set", "stages.tts.engine=espeak", "--set", "stages.tts.params.voice=nobody")
    done = run("serve", "--port", "0", *small, *wrong, cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "voiceserver: error: stages.tts.params.voice: espeak has no voice 'nobody'; there is "
    )
    assert last.endswith("(from --set stages.tts.params.voice)")
    assert "Traceback" not in done.stderr
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert {one["level"] for one in told if one["event"] == "bad engine"} == {"error"}


def test_a_port_in_use_is_one_line_and_exit_code_2(server: ServerProcess, tmp_path: Path) -> None:
    done = run("serve", "--port", str(server.port), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f"cannot listen on 127.0.0.1:{server.port}: Address already in use")
    assert "Traceback" not in done.stderr


def test_config_engines_and_version_print(tmp_path: Path) -> None:
    (tmp_path / "voiceserver.toml").write_text("[server]\nport = 4321\n")
    shown = run("config", "--set", "stages.stt.workers=7", cwd=tmp_path)
    assert "port = 4321" in shown.stdout
    assert "# voiceserver.toml" in shown.stdout
    assert "# --set stages.stt.workers" in shown.stdout
    listed = run("engines", cwd=tmp_path)
    assert "silero" in listed.stdout
    assert "pocketsphinx" in listed.stdout
    assert run("version", cwd=tmp_path).stdout.startswith("voiceserver ")
