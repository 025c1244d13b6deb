"""Property tests behave the same on every machine: no deadlines, the same examples each run.

``HYPOTHESIS_PROFILE=explore pytest`` looks for new examples; a failing one is printed so that it can be replayed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# The fixtures of the kit; pytest finds them by itself where the installation is newer than the entry point.
from voiceserver.testing.plugin import chat_endpoint, manual_clock, voice_server, voice_server_config

__all__ = ["chat_endpoint", "manual_clock", "voice_server", "voice_server_config"]

settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


HERE = Path(__file__).parent
# Tests of these start servers and use all that the machine has: never two of them at a time.
SERVERS = ("e2e", "faults", "benchmarks", "clients", "test_wheel.py")


# A temporary folder for each process of tests (``pytest -n 2``), so that what one test leaves is not blamed on another. It is set
# before any module of tests copies the environment for the servers that it starts.
if WORKER := os.environ.get("PYTEST_XDIST_WORKER"):
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix=f"tests-{WORKER}-")


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist declares its marker by itself, where it is installed."""
    config.addinivalue_line(
        "markers", "xdist_group(name): tests of one group run in one process, in their order"
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    if WORKER:
        shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``pytest -n 2 --dist loadgroup``, one process runs the tests with servers in their order, the other one the rest,
    a file at a time."""
    for item in items:
        first = item.path.relative_to(HERE).parts[0]
        item.add_marker(pytest.mark.xdist_group("servers" if first in SERVERS else str(item.path)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=400, help="how many worlds the simulation plays")
    parser.addoption("--seed", type=int, default=None, help="replay this world of the simulation only")
