"""The recovery benchmark runs, and loses no word."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.e2e.serving import ENVIRONMENT


@pytest.mark.timeout(240)
def test_the_recovery_benchmark_loses_no_word() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.recovery", "--quick"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=220, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in ran.stdout.splitlines() if "│" in line
    ]
    assert [row[0] for row in rows] == ["stt, SIGKILL", "vad, SIGSTOP"]
    for row in rows:
        assert "-" not in row[2:5], "nobody noticed"
        assert row[6:] == ["0", "0"], "words were lost or doubled"
