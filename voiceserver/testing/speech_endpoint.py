"""A real speech endpoint on a local port, for tests: OpenAI's ``/v1/audio/speech`` and ``/v1/audio/transcriptions`` by script.

It is a ``ChatEndpoint`` for audio: each request takes the next script, and the last one serves all requests after it. Without
scripts it speaks tones, whose length and pitch follow the text, and writes down how long the recording was that it was sent.

    async with SpeechEndpoint(Spoken(rate_hz=16_000, form="wav"), Status(429, retry_after="1")) as endpoint:
        ... endpoint.base_url ... endpoint.requests[0].body["input"]
"""

from __future__ import annotations

import array
import asyncio
import base64
import contextlib
import io
import json
import math
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from anyio.from_thread import start_blocking_portal

from voiceserver.testing.chat_endpoint import ChatEndpoint, Raw, Request, Silent, Status, _write, _write_chunk


@dataclass
class Spoken:
    """A tone in chunks. ``content_type``: another one than fits; ``sse``: as server-sent events."""

    rate_hz: int = 24_000
    form: Literal["pcm", "wav"] = "pcm"
    content_type: str = ""
    sse: bool = False
    chunk_bytes: int = 4_001  # odd, so that samples are cut
    # The chunk that waits for ``release``.
    hold_before: int | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)
    # The connection is dropped before this chunk.
    break_before: int | None = None


def tell_length(form: Form) -> str:
    """A transcript that tells one recording from another."""
    return f"I heard {form.seconds:.2f} seconds."


@dataclass
class Heard:
    """A transcript; ``deltas``: sent before it where the client asks for a stream."""

    text: str | Callable[[Form], str] = tell_length
    deltas: Sequence[str] = ()
    # As of an answer: all is held before it, or behind the deltas.
    hold: Literal["", "before", "behind"] = ""
    release: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Both:
    """What the path asks for."""

    spoken: Spoken = field(default_factory=Spoken)
    heard: Heard = field(default_factory=Heard)


Script = Spoken | Heard | Both | Status | Silent | Raw


@dataclass
class Form:
    """What a request for a transcript holds."""

    fields: dict[str, str]
    wav: bytes

    @classmethod
    def of(cls, request: Request) -> Form:
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        fields: dict[str, str] = {}
        wav = b""
        for part in request.raw.split(b"--" + boundary)[1:-1]:
            head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            name = head.partition(b'name="')[2].partition(b'"')[0].decode()
            if name == "file":
                wav = value.removesuffix(b"\r\n")
            else:
                fields[name] = value.removesuffix(b"\r\n").decode()
        return cls(fields, wav)

    @property
    def rate_hz(self) -> int:
        with wave.open(io.BytesIO(self.wav)) as sound:
            return int(sound.getframerate())

    @property
    def seconds(self) -> float:
        with wave.open(io.BytesIO(self.wav)) as sound:
            return float(sound.getnframes() / sound.getframerate())


def tone(text: str, rate_hz: int) -> bytes:
    """PCM, as long and as high as the text says: 0.2 s and 20 ms for each letter."""
    step = 2.0 * math.pi * (200 + sum(text.encode()) % 400) / rate_hz
    samples = array.array(
        "h", (round(8_000 * math.sin(step * at)) for at in range(tone_samples(text, rate_hz)))
    )
    return samples.tobytes()


def tone_samples(text: str, rate_hz: int) -> int:
    return rate_hz // 5 + rate_hz // 50 * len(text)


class SpeechEndpoint(ChatEndpoint):
    """See ``ChatEndpoint``."""

    def __init__(self, *scripts: Script, port: int = 0, models: int = 200) -> None:
        super().__init__(port=port, models=models)
        self.scripts = list(scripts or (Both(),))

    async def _play(
        self, script: Any, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if isinstance(script, Both):
            script = script.spoken if request.path.endswith("/speech") else script.heard
        if isinstance(script, Spoken):
            return await self._speak(script, request, reader, writer)
        if isinstance(script, Heard):
            return await self._transcribe(script, request, reader, writer)
        return await super()._play(script, request, reader, writer)

    async def _speak(
        self, script: Spoken, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        body = tone(request.body["input"], script.rate_hz)
        if script.form == "wav":
            body = _wav(body, script.rate_hz)
        kind = "audio/wav" if script.form == "wav" else f"audio/pcm;rate={script.rate_hz}"
        if script.sse:
            kind = "text/event-stream"
        _begin(writer, script.content_type or kind)
        size = script.chunk_bytes
        for index, at in enumerate(range(0, len(body), size)):
            if index == script.break_before:
                await writer.drain()
                return False
            if index == script.hold_before:
                await writer.drain()
                if not await self._hold(script.release, reader):
                    return False
            piece = body[at : at + size]
            _write_chunk(writer, _delta(piece) if script.sse else piece)
        if script.sse:
            _write_chunk(writer, 'event: speech.audio.done\ndata: {"type": "speech.audio.done"}\n\n')
        writer.write(b"0\r\n\r\n")
        return True

    async def _transcribe(
        self, script: Heard, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        form = Form.of(request)
        text = script.text(form) if callable(script.text) else script.text
        if script.hold == "before" and not await self._hold(script.release, reader):
            return False
        if form.fields.get("stream") != "true":
            _write(writer, 200, "application/json", json.dumps({"text": text}).encode())
            return True
        _begin(writer, "text/event-stream")
        for delta in script.deltas:
            _write_chunk(writer, _event({"type": "transcript.text.delta", "delta": delta}))
        await writer.drain()
        if script.hold == "behind" and not await self._hold(script.release, reader):
            return False
        _write_chunk(writer, _event({"type": "transcript.text.done", "text": text}))
        writer.write(b"0\r\n\r\n")
        return True


def _begin(writer: asyncio.StreamWriter, kind: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode())


def _event(value: object) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _delta(piece: bytes) -> str:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})


def _wav(pcm: bytes, rate_hz: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate_hz)
        sound.writeframes(pcm)
    return file.getvalue()


@contextlib.contextmanager
def speech_endpoint_in_thread(*scripts: Script) -> Iterator[SpeechEndpoint]:
    """A ``SpeechEndpoint`` on a loop of its own, for code that has none."""
    with start_blocking_portal() as portal:
        endpoint = SpeechEndpoint(*scripts)
        with portal.wrap_async_context_manager(endpoint):
            yield endpoint
