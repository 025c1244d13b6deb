"""Every codec, held to ``codec_suite``."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.conformance.codec_suite")

from tests.conformance.codec_suite import WIRES, CodecSuite  # noqa: E402


@pytest.mark.parametrize("wire", WIRES, ids=str)
class TestCodec(CodecSuite):
    pass
