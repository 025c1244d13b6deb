"""The plug-in of pytest: fixtures of the testing kit, which load nothing of the server before a test asks for them.

==================== ===========================================================================================
voice_server         a running server: ``.url``, ``.http_url``, ``.port``, ``.log``; for tests with or without a loop
voice_server_config  its configuration; override it in your conftest or test module
chat_endpoint        a ``ChatEndpoint`` on a free port, which repeats what it is asked until ``scripts`` say otherwise
manual_clock         a ``ManualClock``
==================== ===========================================================================================

``pytest -p no:voiceserver`` turns it off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from voiceserver.config.schema import Config
    from voiceserver.testing.chat_endpoint import ChatEndpoint
    from voiceserver.testing.clock import ManualClock
    from voiceserver.testing.server import RunningServer

# A failed assertion in a suite shows its values, as one in a test does.
pytest.register_assert_rewrite(
    "voiceserver.testing.codec_suite", "voiceserver.testing.engine_suite", "voiceserver.testing.pool_suite"
)


@pytest.fixture
def voice_server_config() -> Config:
    from voiceserver.testing.server import small_config

    return small_config()


@pytest.fixture
def voice_server(voice_server_config: Config) -> Iterator[RunningServer]:
    from voiceserver.testing.server import server_in_thread

    with server_in_thread(voice_server_config) as server:
        yield server


@pytest.fixture
def chat_endpoint() -> Iterator[ChatEndpoint]:
    from voiceserver.testing.chat_endpoint import endpoint_in_thread

    with endpoint_in_thread() as endpoint:
        yield endpoint


@pytest.fixture
def manual_clock() -> ManualClock:
    from voiceserver.testing.clock import ManualClock

    return ManualClock()
