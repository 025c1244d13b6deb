"""Clients that people already have, unmodified, against a running server with its real engines.

Each client is a program of its own (``clients/*.py`` in the environment of ``make clients-venv``, ``js/*.mjs`` with node) that
goes through the scenarios and prints what it saw; the tests judge that. The JavaScript ones speak TLS, because ``openai`` does
nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from websockets.sync.client import connect

from tests import recordings
from tests.e2e.serving import SMALL, ServerProcess, serving
from tests.e2e.stock.servers import LATE, answering, settings_for, waiting
from tests.recordings import plain
from voiceserver_clients.made_speech import LINES, make_speech

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
NODE_MODULES = HERE / "js" / "node_modules"
TLS = HERE.parent / "tls"
RECORDED = ROOT.parent / "shared" / "audio" / "goforward.wav"
RATE_HZ = 24_000
PROGRAM_LIMIT_S = 110


@dataclass(frozen=True)
class Client:
    """``needs``: what has to be installed. ``scenarios``: those that its protocol has."""

    program: str
    needs: str
    scenarios: tuple[str, ...] = ("voice", "text", "barge_in", "function", "error", "busy")

    @property
    def is_script(self) -> bool:
        return self.program.endswith(".mjs")

    def missing(self) -> str:
        """Why it cannot run here; empty when it can."""
        if self.is_script:
            if shutil.which("node") is None:
                return "node is not installed"
            return (
                "" if (NODE_MODULES / self.needs).is_dir() else f"{self.needs}: make clients-venv installs it"
            )
        return "" if self.needs in installed() else f"{self.needs}: make clients-venv installs it"


CLIENTS = (
    Client("openai_sdk.py", "openai"),
    Client("openai_agents.py", "openai-agents"),
    Client("pipecat_realtime.py", "pipecat-ai"),
    Client("livekit_plugin.py", "livekit-plugins-openai"),
    Client("twilio_serializer.py", "pipecat-ai", ("voice", "barge_in", "error", "busy")),
    Client("whisperlive.py", "whisper-live", ("voice", "busy")),
    Client("openai_ws.mjs", "openai"),
    Client("agents.mjs", "@openai/agents-realtime"),
)
CASES = [pytest.param(one, name, id=f"{one.program}-{name}") for one in CLIENTS for name in one.scenarios]


@functools.cache
def installed() -> frozenset[str]:
    """The packages of the clients' environment."""
    if not PYTHON.exists():
        return frozenset()
    code = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    names = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout
    return frozenset(names.lower().replace("_", "-").split())


class Speech:
    """The same words as the Realtime wire takes them and as a file; ``words`` are what a person would write down."""

    def __init__(self, folder: Path) -> None:
        if RECORDED.exists():
            pcm, rate_hz = soundfile.read(RECORDED, dtype="int16")
            self.words = "go forward ten meters"
        else:
            made = make_speech(LINES[0], 16_000)
            pcm, rate_hz, self.words = np.frombuffer(made.pcm, np.int16), 16_000, LINES[0]
        self.raw, self.wav = folder / "speech.raw", folder / "speech.wav"
        self.raw.write_bytes(soxr.resample(pcm, rate_hz, RATE_HZ).astype("<i2").tobytes())
        soundfile.write(self.wav, np.concatenate([pcm, np.zeros(rate_hz, np.int16)]), rate_hz)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    return Speech(tmp_path_factory.mktemp("speech"))


class Stage:
    """The servers, started when the first client needs them; TLS and plain never run at the same time."""

    def __init__(self, speech: Speech) -> None:
        self.speech = speech
        self.results: dict[str, dict[str, dict[str, Any]]] = {}
        self._open = contextlib.ExitStack()
        self._is_tls: bool | None = None
        self._servers: tuple[ServerProcess, ServerProcess]

    def close(self) -> None:
        self._open.close()

    def servers(self, *, is_tls: bool) -> tuple[ServerProcess, ServerProcess]:
        """An idle server, and one whose only place is taken."""
        if self._is_tls is not is_tls:
            self._open.close()
            self._is_tls = is_tls
            tls = (
                (f"server.tls_cert={TLS / 'cert.pem'}", f"server.tls_key={TLS / 'key.pem'}") if is_tls else ()
            )
            endpoint = self._open.enter_context(answering())
            idle = self._open.enter_context(serving(*settings_for(endpoint), *tls))
            full = self._open.enter_context(
                serving(*SMALL, "backpressure.max_connections=1", "backpressure.waiting_room=0", *tls)
            )
            trust = ssl.create_default_context(cafile=str(TLS / "cert.pem")) if is_tls else None
            url = full.url.replace("ws:", "wss:") if is_tls else full.url
            self._open.enter_context(connect(url, ssl=trust))
            self._servers = idle, full
        return self._servers

    def result(self, client: Client, scenario: str) -> dict[str, Any]:
        if client.program not in self.results:
            self.results[client.program] = self._run(client)
        found = self.results[client.program]
        assert scenario in found, f"the program ended before it: {found}"
        line = found[scenario]
        assert "facts" in line, line["failure"]
        server_snapshot: dict[str, Any] = line["facts"]
        return server_snapshot

    def _run(self, client: Client) -> dict[str, dict[str, Any]]:
        idle, full = self.servers(is_tls=client.is_script)
        scheme = "https" if client.is_script else "http"
        environment = {
            **os.environ,
            "STOCK_URL": f"{scheme}://127.0.0.1:{idle.port}",
            "STOCK_FULL_URL": f"{scheme}://127.0.0.1:{full.port}",
            "STOCK_SPEECH": str(self.speech.raw),
            "STOCK_SPEECH_WAV": str(self.speech.wav),
            "NODE_EXTRA_CA_CERTS": str(TLS / "cert.pem"),
            "NO_PROXY": "127.0.0.1",
        }
        folder = HERE / ("js" if client.is_script else "clients")
        run = ["node" if client.is_script else str(PYTHON), str(folder / client.program)]
        done = subprocess.run(
            run, env=environment, capture_output=True, text=True, timeout=PROGRAM_LIMIT_S, check=False
        )
        assert idle.plain == [], "the server met a fault"
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"scenario"')]
        assert lines, done.stdout + done.stderr
        return {line["scenario"]: line for line in lines}


@pytest.fixture(scope="module")
def stage(speech: Speech) -> Iterator[Stage]:
    stage = Stage(speech)
    yield stage
    stage.close()


def check_voice(client: Client, server_snapshot: dict[str, Any], words: str) -> None:
    if "transcript" in server_snapshot:
        assert words in plain(server_snapshot["transcript"])
    if client.program == "whisperlive.py":
        assert words in plain(server_snapshot["subtitles"])
        assert all(segment["completed"] for segment in server_snapshot["segments"])
        return
    if client.program == "twilio_serializer.py":
        assert server_snapshot["loudness"] > 300
    else:
        assert plain(server_snapshot["reply"]) == f"you said {words}"
    assert server_snapshot["audio_ms"] > 1_000


def check_text(client: Client, server_snapshot: dict[str, Any], words: str) -> None:
    assert plain(server_snapshot["reply"]) == "you said good morning"
    assert server_snapshot["audio_ms"] == 0


def check_barge_in(client: Client, server_snapshot: dict[str, Any], words: str) -> None:
    assert server_snapshot["interrupted"] in (True, "cancelled")
    assert server_snapshot.get("errors", []) == []
    check_voice(client, server_snapshot, words)


def check_function(client: Client, server_snapshot: dict[str, Any], words: str) -> None:
    assert server_snapshot["name"] == "get_weather"
    assert server_snapshot.get("arguments", {"city": "Paris"}) == {"city": "Paris"}
    assert "rainy" in server_snapshot["reply"]
    assert server_snapshot["audio_ms"] > 500


def check_error(client: Client, server_snapshot: dict[str, Any], words: str) -> None:
    """It is told, and the conversation goes on."""
    if "reply" not in server_snapshot:
        check_voice(client, server_snapshot, words)
        return
    assert server_snapshot["errors"]
    assert plain(server_snapshot["reply"]) in ("you said good morning", f"you said {words}")
    assert server_snapshot["audio_ms"] > 500


def check_busy(client: Client, server_snapshot: dict[str, Any], words: str) -> None:
    if client.program == "whisperlive.py":
        assert server_snapshot["told"]["status"] == "WAIT"
        assert server_snapshot["told"]["message"] > 0
    elif client.program == "twilio_serializer.py":
        assert server_snapshot["code"] == 1013
        assert server_snapshot["audio_ms"] > 900
        assert server_snapshot["loudness"] > 300
    else:
        assert re.search(r"\b503\b", server_snapshot["error"])


CHECKS: dict[str, Callable[[Client, dict[str, Any], str], None]] = {
    "voice": check_voice,
    "text": check_text,
    "barge_in": check_barge_in,
    "function": check_function,
    "error": check_error,
    "busy": check_busy,
}
SPOKEN = ("voice", "barge_in", "error")  # their words are a person's


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("client", "scenario"), CASES)
def test_a_stock_client(client: Client, scenario: str, stage: Stage) -> None:
    missing = client.missing()
    if missing:
        pytest.skip(missing)
    if scenario in SPOKEN and not (recordings.FOLDER / "goforward.wav").is_file():
        pytest.skip("the recordings in ../shared/audio are not here")
    server_snapshot = stage.result(client, scenario)
    CHECKS[scenario](client, server_snapshot, stage.speech.words)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("client", CLIENTS[:4], ids=lambda client: client.program)
def test_a_client_is_bridged_while_the_answer_is_late_and_hears_it_to_its_end_while_the_server_drains(
    client: Client, speech: Speech
) -> None:
    missing = client.missing()
    if missing:
        pytest.skip(missing)
    fillers = ("session.filler=One moment.|tone", "session.filler_after_ms=200")
    with waiting() as (endpoint, answer), serving(*settings_for(endpoint), *fillers) as server:
        url = f"http://127.0.0.1:{server.port}"
        environment = {
            **os.environ,
            "STOCK_URL": url,
            "STOCK_FULL_URL": url,
            "STOCK_SPEECH": str(speech.raw),
            "NO_PROXY": "127.0.0.1",
        }
        run = [str(PYTHON), str(HERE / "clients" / client.program), "drain"]
        with subprocess.Popen(
            run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as program:
            assert program.stdout is not None
            lines = (json.loads(line) for line in program.stdout if line.startswith('{"scenario"'))
            assert next(lines)["scenario"] == "begun"
            server.signal(signal.SIGTERM)
            server.wait_for("draining")
            answer()
            line = next(lines)
        assert "facts" in line, line["failure"]
        server_snapshot = line["facts"]
        assert server_snapshot["reply"].endswith("".join(LATE))
        assert server_snapshot["audio_ms"] > 2_000
        assert not server_snapshot.get("errors")
        assert "error" not in server_snapshot
        assert server.wait() == 0
        assert server.plain == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("path", "needs"),
    [
        ("tests/voiceserver/wire/test_openai_sdk.py", "openai-agents"),
        ("tests/workers/engines/test_smart_turn_pipecat.py", "pipecat-ai"),
    ],
)
def test_packages_judge_in_their_own_environment_what_is_skipped_in_this_one(path: str, needs: str) -> None:
    missing = Client(path, needs).missing()
    if missing:
        pytest.skip(missing)
    run = [str(PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider", path]
    done = subprocess.run(
        run,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
