"""Every codec, held to ``CodecSuite``."""

from __future__ import annotations

import pytest

from tests.conformance.wires import WIRES
from voiceserver.testing import CodecSuite


@pytest.mark.parametrize("case", WIRES, ids=str)
class TestCodec(CodecSuite):
    pass
