"""How a client of each wire speaks and listens: the cases that ``CodecSuite`` tests."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable

from voiceserver.testing.codec_suite import COMPANDED, EXACT, CodecCase, samples_of
from voiceserver.wire import Frame
from voiceserver.wire.native import NativeCodec
from voiceserver.wire.openai import Dialect, OpenAICodec
from voiceserver.wire.openai.audio import AudioFormat
from voiceserver.wire.samples import mulaw_to_pcm, pcm_to_mulaw
from voiceserver.wire.twilio import TwilioCodec
from voiceserver.wire.whisperlive import WhisperLiveCodec


def native_wire(rate_hz: int) -> CodecCase:
    return CodecCase(
        name=f"native-{rate_hz}",
        make=lambda: NativeCodec(rate_hz, rate_hz),
        rate_hz=rate_hz,
        audio_message=bytes,
        reply_audio=lambda frames: b"".join(frame for frame in frames if isinstance(frame, bytes)),
        goodbye=('{"type":"session.close"}',),
        valid_messages=(
            '{"type":"session.update","instructions":"x"}',
            '{"type":"input.commit"}',
            '{"type":"reply.cancel"}',
        ),
    )


def openai_wire(dialect: Dialect, audio_format: AudioFormat) -> CodecCase:
    is_pcm = audio_format is AudioFormat.PCM
    named: object = audio_format.describe() if dialect is Dialect.GA else audio_format.beta_name
    both = {"input": {"format": named}, "output": {"format": named}}
    flat = {"input_audio_format": named, "output_audio_format": named}
    update = {"type": "session.update", "session": {"audio": both} if dialect is Dialect.GA else flat}
    delta = "response.output_audio.delta" if dialect is Dialect.GA else "response.audio.delta"

    def audio_message(data: bytes) -> str:
        return json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()})

    def reply_audio(frames: Iterable[Frame]) -> bytes:
        events = [json.loads(frame) for frame in frames]
        return b"".join(
            audio_format.to_pcm(base64.b64decode(one["delta"])) for one in events if one["type"] == delta
        )

    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    return CodecCase(
        name=f"openai-{dialect.value}-{audio_format.beta_name}",
        make=lambda: OpenAICodec("s", dialect),
        rate_hz=audio_format.rate_hz,
        audio_message=audio_message,
        reply_audio=reply_audio,
        encode_audio=audio_format.from_pcm,
        unit_bytes=1,
        tolerance=EXACT if is_pcm else COMPANDED,
        hello=(json.dumps(update),),
        goodbye=('{"type":"input_audio_buffer.commit"}',),
        valid_messages=(
            json.dumps(update),
            json.dumps({"type": "conversation.item.create", "event_id": "e", "item": item}),
            '{"type":"conversation.item.truncate","item_id":"i","content_index":0,"audio_end_ms":5}',
            '{"type":"response.create","response":{"conversation":"none","input":[],"metadata":{"a":"b"}}}',
            '{"type":"response.cancel"}',
            '{"type":"input_audio_buffer.append","audio":"AAAA"}',
        ),
    )


def twilio_wire() -> CodecCase:
    start = {
        "streamSid": "MZ1",
        "callSid": "CA1",
        "accountSid": "AC1",
        "customParameters": {"language": "en"},
    }

    def message(event: str, **fields: object) -> str:
        return json.dumps({"event": event, "sequenceNumber": "2", "streamSid": "MZ1", **fields})

    def audio_message(data: bytes) -> str:
        payload = base64.b64encode(data).decode()
        return message(
            "media", media={"track": "inbound", "chunk": "1", "timestamp": "20", "payload": payload}
        )

    def reply_audio(frames: Iterable[Frame]) -> bytes:
        events = [json.loads(frame) for frame in frames]
        payloads = [one["media"]["payload"] for one in events if one["event"] == "media"]
        return mulaw_to_pcm(b"".join(base64.b64decode(payload) for payload in payloads))

    return CodecCase(
        name="twilio",
        make=TwilioCodec,
        rate_hz=8_000,
        audio_message=audio_message,
        reply_audio=reply_audio,
        encode_audio=pcm_to_mulaw,
        unit_bytes=1,
        tolerance=COMPANDED,
        hello=(message("start", start=start),),
        goodbye=(message("stop", stop={"accountSid": "AC1", "callSid": "CA1"}),),
        sends_first=False,
        valid_messages=(
            '{"event":"connected","protocol":"Call","version":"1.0.0"}',
            message("dtmf", dtmf={"track": "inbound_track", "digit": "5"}),
            message("mark", mark={"name": "1.1"}),
        ),
    )


def whisperlive_wire(audio_format: str) -> CodecCase:
    def floats(pcm: bytes) -> bytes:
        return struct.pack(f"<{len(pcm) // 2}f", *(sample / 32768.0 for sample in samples_of(pcm)))

    is_float = audio_format == "float32"
    options = {"uid": "u", "language": "en", "task": "transcribe", "model": "small", "use_vad": True}
    if not is_float:
        options["audio_format"] = audio_format
    return CodecCase(
        name=f"whisperlive-{audio_format}",
        make=WhisperLiveCodec,
        rate_hz=16_000,
        audio_message=bytes,
        reply_audio=lambda frames: b"",
        encode_audio=floats if is_float else bytes,
        unit_bytes=4 if is_float else 2,
        hello=(json.dumps(options),),
        goodbye=(b"END_OF_AUDIO",),
        has_reply_audio=False,
        sends_first=False,
        valid_messages=(b"\0" * 64,),
    )


WIRES: list[CodecCase] = [
    native_wire(16_000),
    native_wire(8_000),
    *(openai_wire(dialect, audio_format) for dialect in Dialect for audio_format in AudioFormat),
    twilio_wire(),
    whisperlive_wire("float32"),
    whisperlive_wire("int16"),
]
