"""The locustfile's smallest scenario, driven by Locust against a real server. ``make bench-venv`` installs Locust."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.serving import serving

ROOT = Path(__file__).resolve().parents[2]
LOCUST = ROOT / ".venv-bench" / "bin" / "locust"
VAD_ONLY = ("stages.stt.engine=none", "stages.reply.engine=none", "stages.tts.engine=none")


def run_locust(scenario: str, users: int, port: int) -> dict[str, Any]:
    """The statistics by name."""
    flags = [
        "--headless",
        "--users",
        str(users),
        "--run-time",
        "5s",
        "--json",
        "--host",
        f"ws://127.0.0.1:{port}",
    ]
    command = [str(LOCUST), "--locustfile", "benchmarks/callers/locustfile.py", scenario, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


@pytest.mark.skipif(not LOCUST.exists(), reason="Locust is not installed: make bench-venv")
def test_a_caller_of_locust_talks_pings_and_is_counted() -> None:
    with serving(*VAD_ONLY) as server:
        found = run_locust("Chunks10", 1, server.port)
        _, capacity = server.get("/v1/capacity")
    assert set(found) <= {"connect", "chunk", "ping", "end of turn", "busy"}
    assert found["connect"]["num_requests"] == 1
    assert found["chunk"]["num_requests"] >= 20
    assert found["ping"]["num_requests"] >= 2
    assert sum(row["num_failures"] for row in found.values()) == 0
    assert capacity["stages"]["vad"]["mean_batch"] > 0
