"""Whatever a peer puts into one message, the loop has it behind itself after bounded work. Work is counted, not timed: every call
of a function, Python's or C's, is one, and a decoder's work is the memory of the values that it makes."""

from __future__ import annotations

import base64
import json
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType

import pytest

from tests.conformance.wires import WIRES
from voiceserver.errors import ProtocolError
from voiceserver.testing.codec_suite import CodecCase
from voiceserver.wire import read_text

MESSAGE_BYTES = 1_048_576  # server.max_message_bytes
# Some 2 ms of a machine of today.
MOST_CALLS = 8_000
# Besides the message and its copies: a megabyte of values that were all made takes 30 and more.
MOST_BYTES = 12 * MESSAGE_BYTES


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


def bytes_of(work: Callable[[], object]) -> int:
    """The most that is in use at a time."""
    tracemalloc.start()
    try:
        work()
    except ProtocolError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


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
    "parameters of a tool": fill(
        "[]", '{"type":"session.update","tools":[{"name":"f","parameters":{"x":[', "]}}]}"
    ),
    "realtime parameters of a tool": fill(
        '{"a":[]}',
        '{"type":"session.update","session":{"type":"realtime","tools":[{"type":"function","name":"f","parameters":{"x":[',
        "]}}]}}",
    ),
    "realtime variables of a prompt": fill(
        "[]",
        '{"type":"session.update","session":{"type":"realtime","prompt":{"id":"a","variables":{"x":[',
        "]}}}}",
    ),
    "realtime metadata": fill('"a":"b"', '{"type":"response.create","response":{"metadata":{', "}}}"),
    "realtime include": fill(
        '"a"', '{"type":"session.update","session":{"type":"realtime","include":[', "]}}"
    ),
    "names that differ": json.dumps({f"k{n}": 0 for n in range(75_000)}).encode(),
    "a long item": json.dumps(
        {"type": "item.append", "item": {"role": "user", "text": "1,2\u0100" * 100_000}}
    ).encode(),
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


# One of each kind of wire.
KINDS = tuple({type(case.open()): case for case in WIRES}.values())


def test_the_input_of_a_response_has_a_bound_that_is_told() -> None:
    (case,) = (one for one in WIRES if str(one) == "openai-ga-pcm16")
    with pytest.raises(ProtocolError, match=r"'response\.input': array too long. Expected at most 500 items"):
        case.open().receive_text(HOSTILE["realtime input"])


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("case", WIRES, ids=str)
def test_a_message_costs_a_bounded_number_of_calls(case: CodecCase, name: str) -> None:
    codec, message = case.open(), HOSTILE[name]
    assert len(message) <= MESSAGE_BYTES
    assert calls_of(lambda: read_text(codec, message)) <= MOST_CALLS
    assert calls_of(lambda: codec.receive_binary(message)) <= MOST_CALLS


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("case", KINDS, ids=str)
def test_a_message_makes_a_bounded_number_of_values(case: CodecCase, name: str) -> None:
    codec, message = case.open(), HOSTILE[name]
    assert bytes_of(lambda: read_text(codec, message)) <= MOST_BYTES


def test_too_many_values_are_told_with_their_bound() -> None:
    (case,) = (one for one in WIRES if str(one) == "native-16000")
    with pytest.raises(ProtocolError, match=r"too many values: there may be 16384"):
        read_text(case.open(), HOSTILE["parameters of a tool"])
