"""What the tests of the page share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.browser import BROWSERS, chromium, write_microphone


@pytest.fixture(scope="module", autouse=True)
def _browsers() -> Iterator[None]:
    """Those of a module end with it."""
    yield
    BROWSERS.close()


@pytest.fixture(scope="module")
def silence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A microphone into which nobody speaks. Skips the test where there is no browser."""
    chromium()
    path = tmp_path_factory.mktemp("microphone") / "silence.wav"
    return write_microphone(path, np.zeros(16_000, np.float32), 16_000, 0.0, 1.0)
