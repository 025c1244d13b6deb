"""Property tests behave the same on every machine: no deadlines, the same examples each run.

``HYPOTHESIS_PROFILE=explore pytest`` looks for new examples; a failing one is printed so that it can be replayed.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# The fixtures of the kit; pytest finds them by itself where the installation is newer than the entry point.
from voiceserver.testing.plugin import chat_endpoint, manual_clock, voice_server, voice_server_config

__all__ = ["chat_endpoint", "manual_clock", "voice_server", "voice_server_config"]

settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=400, help="how many worlds the simulation plays")
    parser.addoption("--seed", type=int, default=None, help="replay this world of the simulation only")
