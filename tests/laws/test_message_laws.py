"""Whatever a peer puts into one message, the loop has it behind itself after a bounded number of calls. Work is counted, not
timed: every call of a function, Python's or C's, is one."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from types import FrameType

import pytest

from tests.conformance.wires import WIRES
from voiceserver.errors import ProtocolError
from voiceserver.testing.codec_suite import CodecCase

MESSAGE_BYTES = 1_048_576  # server.max_message_bytes
# Some 2 ms of a machine of today.
MOST_CALLS = 8_000


def calls_of(work: Callable[[], object]) -> int:
    calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    was = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    except ProtocolError:
        pass
    finally:
        sys.setprofile(was)
    return calls


def fill(unit: str, begin: str = "", end: str = "") -> bytes:
    """As many units as a message takes."""
    room = MESSAGE_BYTES - len(begin) - len(end)
    return (begin + ",".join([unit] * (room // (len(unit) + 1))) + end).encode()


AUDIO = base64.b64encode(bytes(700_000)).decode()
PART = '{"type":"input_text","text":"a"}'
TOOL = '{"type":"function","name":"f","description":"d","parameters":{}}'
HOSTILE = {
    "no JSON": b"x" * MESSAGE_BYTES,
    "bytes that are no UTF-8": b"\xff" * MESSAGE_BYTES,
    "brackets": b"[" * MESSAGE_BYTES,
    "empty objects": fill("{}", "[", "]"),
    "a key many times": fill('"type":"x"', "{", "}"),
    "unknown fields": fill('"a":[]', '{"type":"session.update",', "}"),
    "items": fill('{"role":"user","text":"a"}', '{"type":"reply.create","items":[', "]}"),
    "tools": fill('{"name":"f","parameters":{}}', '{"type":"session.update","tools":[', "]}"),
    "realtime parts": fill(
        PART, '{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[', "]}}"
    ),
    "realtime tools": fill(TOOL, '{"type":"session.update","session":{"type":"realtime","tools":[', "]}}"),
    "realtime input": fill(
        '{"type":"message","role":"user","content":[]}',
        '{"type":"response.create","response":{"input":[',
        "]}}",
    ),
    "realtime audio": json.dumps({"type": "input_audio_buffer.append", "audio": AUDIO}).encode(),
    "realtime audio that is none": json.dumps(
        {"type": "input_audio_buffer.append", "audio": "=" * 1_000_000}
    ).encode(),
    "realtime lines of audio": json.dumps(
        {"type": "input_audio_buffer.append", "audio": "AAAA\n" * 170_000}
    ).encode(),
    "twilio media": json.dumps({"event": "media", "streamSid": "MZ", "media": {"payload": AUDIO}}).encode(),
    "twilio parameters": fill('"a":"b"', '{"event":"start","start":{"customParameters":{', "}}}"),
    "whisperlive options": fill('"a":1', '{"uid":"u",', "}"),
}


def test_the_input_of_a_response_has_a_bound_that_is_told() -> None:
    (case,) = (one for one in WIRES if str(one) == "openai-ga-pcm16")
    with pytest.raises(ProtocolError, match=r"'response\.input': array too long. Expected at most 500 items"):
        case.open().receive_text(HOSTILE["realtime input"])


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("case", WIRES, ids=str)
def test_a_message_costs_a_bounded_number_of_calls(case: CodecCase, name: str) -> None:
    codec, message = case.open(), HOSTILE[name]
    assert len(message) <= MESSAGE_BYTES
    assert calls_of(lambda: codec.receive_text(message)) <= MOST_CALLS
    assert calls_of(lambda: codec.receive_binary(message)) <= MOST_CALLS
