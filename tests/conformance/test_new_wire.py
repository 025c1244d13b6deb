"""A new wire is one module and one line in ``voiceserver.wire.registry``: here is one, from codec to registry to a caller.

Binary messages are PCM16 at 16 kHz in network byte order, both ways; the client's only text message is ``"bye"``; events
leave as ``{"event": TYPE}``.
"""

from __future__ import annotations

import array
import json
from collections.abc import Iterable

import pytest

from tests.voiceserver.shell import Shell, audio, upgrade
from voiceserver.config.schema import BackpressureConfig
from voiceserver.errors import Forbidden, ProtocolError
from voiceserver.events import events as ev
from voiceserver.testing import CodecCase, CodecSuite
from voiceserver.wire import Audio, Codec, CodecTraits, Frame, Received
from voiceserver.wire.registry import WIRES
from voiceserver.wire.request import Wire, WireRequest
from voiceserver_workers.ipc.messages import RequestKind, ResultKind


def swapped(pcm: bytes) -> bytes:
    samples = array.array("h", pcm)
    samples.byteswap()
    return samples.tobytes()


class NetworkOrderCodec(Codec):
    __slots__ = ()

    traits = CodecTraits(name="network_order", tells_refusal=True)
    input_rate_hz = output_rate_hz = 16_000

    def receive_text(self, message: bytes) -> Received:
        if message != b'"bye"':
            raise ProtocolError("unknown_message", 'The only text message is "bye".')
        return [ev.SessionClose()]

    def receive_binary(self, message: bytes) -> Received:
        if len(message) & 1:
            raise ProtocolError("audio_misaligned", "Half a sample.")
        return [Audio(swapped(message))] if message else []

    def encode(self, event: ev.ServerEvent) -> list[Frame]:
        if isinstance(event, ev.ReplyAudio):
            return [swapped(event.pcm)]
        return [json.dumps({"event": type(event).__name__})]

    def encode_protocol_error(self, error: ProtocolError) -> list[Frame]:
        return [json.dumps({"event": "mistake", "code": error.code})]


def make_codec(request: WireRequest) -> Codec:
    if request.headers.get("X-Colour", "blue") != "blue":
        raise Forbidden("wrong_colour", "Only blue callers are let in.")
    if "volume" in request.query:
        raise ProtocolError("bad_parameter", "There is no volume here.", param="volume")
    return NetworkOrderCodec()


WIRE = Wire(name="network_order", paths=("/v1/network-order",), make_codec=make_codec)


def heard(frames: Iterable[Frame]) -> bytes:
    return swapped(b"".join(frame for frame in frames if isinstance(frame, bytes)))


CASE = CodecCase(
    name="network-order",
    make=NetworkOrderCodec,
    rate_hz=16_000,
    audio_message=bytes,
    reply_audio=heard,
    encode_audio=swapped,
    goodbye=('"bye"',),
    valid_messages=('"bye"',),
)


@pytest.mark.parametrize("case", [CASE], ids=str)
class TestNewCodec(CodecSuite):
    pass


def test_audio_goes_in_and_events_come_out_of_a_new_wire() -> None:
    shell = Shell("stt", wires=(*WIRES, WIRE))
    line = shell.call(upgrade("/v1/network-order"))
    assert line.status == 101
    line.receive(audio(b"\x01\x02\x03\x04"))
    stream = shell.pools["stt"].streams[0]
    kind, turn, seq, payload = stream.sent[0]
    assert (kind, payload) == (RequestKind.DATA, b"\x02\x01\x04\x03")
    stream.answer(ResultKind.CONSUMED, turn, seq)
    stream.answer(ResultKind.TEXT, turn, seq, b"hi")
    shell.loop.settle()
    assert [event["event"] for event in line.events()] == ["SessionReady", "TranscriptPartial"]
    assert "network_order" in shell.metrics.to_text().decode()


def test_the_other_wires_are_still_there() -> None:
    shell = Shell("stt", wires=(*WIRES, WIRE))
    assert shell.call(upgrade("/v1/stream")).status == 101


def test_a_new_wire_says_who_may_come_in() -> None:
    shell = Shell("stt", wires=(WIRE,))
    refused = shell.call(upgrade("/v1/network-order", "X-Colour: red\r\n"))
    assert (refused.status, refused.body["error"]["code"]) == (403, "wrong_colour")
    wrong = shell.call(upgrade("/v1/network-order?volume=11"))
    assert (wrong.status, wrong.body["error"]["param"]) == (400, "volume")
    assert shell.call(upgrade("/v1/stream")).status == 404


def test_a_new_wire_tells_in_its_own_way_that_there_is_no_room() -> None:
    shell = Shell("stt", wires=(WIRE,), limits=BackpressureConfig(max_connections=1))
    shell.call(upgrade("/v1/network-order"))
    refused = shell.call(upgrade("/v1/network-order"))
    assert refused.status == 101
    assert [event["event"] for event in refused.events()] == ["ServerBusy", "BusyCue"]
