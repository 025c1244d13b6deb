"""Programs and commands of README and docs, run as they stand against a server with real engines.

Only the port is another one. ``talk`` makes ``reply.wav``, as the pages say, and the programs send it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.documents import samples
from tests.e2e.serving import ENVIRONMENT, ROOT, STEADY, serving

STOCK = ROOT / ".venv-clients" / "bin" / "python"
# whisper-live's client imports PyAudio, which needs a sound card to be built.
NO_SOUND_CARD = ROOT / "tests" / "e2e" / "stock" / "clients"
LIMIT_S = 60
OUR_PORT = "8765"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(*STEADY) as server:
        server.wait_ready()
        yield server.port


@pytest.fixture(scope="module")
def folder(port: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ``reply.wav`` in it, made by README's command."""
    folder = tmp_path_factory.mktemp("docs")
    where = ["--url", f"ws://127.0.0.1:{port}/v1/stream"]
    line = ["--say", "what time is it", "--out", "reply.wav"]
    run([sys.executable, "-m", "voiceserver_clients.talk", *line, *where], folder)
    return folder


def run(command: list[str], folder: Path, environment: dict[str, str] = ENVIRONMENT) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program(title: str, port: int, folder: Path) -> str:
    """The path of a sample, as a file that asks this server."""
    text = next(sample.text for sample in samples("python") if sample.title == title)
    path = folder / title
    path.write_text(text.replace(OUR_PORT, str(port)))
    return str(path)


def run_stock(title: str, needs: str, port: int, folder: Path) -> str:
    """In the environment of the stock clients, which has none of our packages."""
    if not STOCK.exists() or not list(STOCK.parents[1].glob(f"lib/*/site-packages/{needs}")):
        pytest.skip(f"{needs} is not installed: make clients-venv")
    environment = {**os.environ, "PYTHONPATH": str(NO_SOUND_CARD)}
    return run([str(STOCK), program(title, port, folder)], folder, environment)


def test_the_client_of_readme_hears_an_answer(port: int, folder: Path) -> None:
    said = run([sys.executable, program("ask.py", port, folder)], folder)
    assert "heard:" in said
    assert float(said.split()[-4]) > 0.3


def test_the_openai_sdk_hears_an_answer(port: int, folder: Path) -> None:
    said = run_stock("openai_sdk.py", "openai", port, folder)
    assert "said:" in said
    assert "s of speech" in said


def test_openai_agents_hear_an_answer(port: int, folder: Path) -> None:
    run_stock("openai_agents.py", "agents", port, folder)


def test_livekit_takes_the_address(port: int, folder: Path) -> None:
    run_stock("livekit_agent.py", "livekit/plugins/openai", port, folder)


def test_pipecat_takes_the_address(port: int, folder: Path) -> None:
    run_stock("pipecat_agent.py", "pipecat", port, folder)


def test_whisperlive_transcribes(port: int, folder: Path) -> None:
    run_stock("whisperlive_client.py", "whisper_live", port, folder)
    assert list(folder.glob("*.srt"))
