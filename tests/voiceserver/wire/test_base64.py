"""base64 as clients send it: without padding, with line breaks, in the alphabet for addresses."""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.errors import ProtocolError
from voiceserver.wire.decoding import decode_base64
from voiceserver.wire.openai.audio import decode_audio
from voiceserver.wire.samples import mulaw_to_pcm
from voiceserver.wire.traits import Audio
from voiceserver.wire.twilio import TwilioCodec

SHAPES: dict[str, Callable[[bytes], str]] = {
    "RFC 4648, 4": lambda data: base64.b64encode(data).decode(),
    "no padding": lambda data: base64.b64encode(data).decode().rstrip("="),
    "MIME": lambda data: base64.encodebytes(data).decode(),
    "CR LF": lambda data: "\r\n".join(textwrap.wrap(base64.b64encode(data).decode(), 64)),
    "RFC 4648, 5": lambda data: base64.urlsafe_b64encode(data).decode(),
    "JWT": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    "a space at the end": lambda data: base64.b64encode(data).decode() + " ",
}


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.binary(max_size=300))
def test_every_shape_is_the_same_bytes(shape: str, data: bytes) -> None:
    assert decode_base64(SHAPES[shape](data)) == data
    assert decode_audio(SHAPES[shape](data), "audio") == data


@pytest.mark.parametrize(
    "text",
    ["A", "AAAAA", "AA=A", "A\u00e9==", "data:audio/pcm;base64,AAAA", "AAAA=====" * 3, "{}", "====", "=" * 9],
)
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the library's own
        decode_base64(text)
    with pytest.raises(ProtocolError, match="base64"):
        decode_audio(text, "audio")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_telephone_call_is_heard_in_every_shape(shape: str) -> None:
    codec, data = TwilioCodec(), bytes(range(160))
    start = {
        "streamSid": "MZ1",
        "callSid": "CA1",
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
    }
    codec.receive_text(json.dumps({"event": "start", "streamSid": "MZ1", "start": start}).encode())
    media = {"track": "inbound", "payload": SHAPES[shape](data)}
    received = codec.receive_text(json.dumps({"event": "media", "streamSid": "MZ1", "media": media}).encode())
    assert received == [Audio(mulaw_to_pcm(data))]
