"""Callers who speak OpenAI Realtime instead of the native wire, for ``turn --wire openai`` and ``sessions --wire openai``.

Their audio is PCM16 at 24 kHz in base64 in JSON, a third more bytes than the samples, which the server decodes on its loop: what
this costs is the question.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection

from voiceserver_clients.callers import LISTENER_CHUNK_MS, Caller, Script, Speaker
from voiceserver_clients.load import Load, Plan
from voiceserver_clients.raw import CLOSE, TEXT, build_frame
from voiceserver_clients.recording import BYTES_PER_SAMPLE, Recording

PATH = "/v1/realtime"
RATE_HZ = 24_000
GAP_MS = 4_000
# Boundaries of speech only, as the native listeners of ``voiceserver_clients.load``.
GREETING = json.dumps(
    {
        "type": "session.update",
        "session": {
            "type": "realtime",
            "audio": {
                "input": {
                    "transcription": None,
                    "turn_detection": {"type": "server_vad", "create_response": False},
                }
            },
        },
    }
).encode()


def realtime_url(url: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=PATH, query=""))


def append_event(pcm: bytes) -> bytes:
    return b'{"type":"input_audio_buffer.append","audio":"' + base64.b64encode(pcm) + b'"}'


class Listener(Speaker):
    """Is listened to and not answered."""

    __slots__ = ()

    greeting = GREETING

    def leave(self) -> None:
        self.is_leaving = True
        self.send(build_frame(CLOSE, (1000).to_bytes(2, "big")))

    def on_text(self, payload: bytes) -> None:  # hot
        kind = payload[9 : payload.index(b'"', 9)]
        if kind == b"input_audio_buffer.speech_stopped":
            self._tally.count("turns")
            self._decided(json.loads(payload)["audio_end_ms"])
        elif kind == b"error":
            self._tally.count("errors")
        elif kind == b"rate_limits.updated":
            self._tally.count("busy")

    def _decided(self, end_ms: float) -> None:
        chunks = math.ceil((end_ms + 512) / self._script.chunk_ms)  # 500 ms of silence, in windows of 32 ms
        due_ms = self._start_ms + chunks * self._script.chunk_ms
        self._tally.latencies["turn_end"].record(self._now_ms() - due_ms)


class RealtimeLoad(Load):
    """``plan.listeners`` callers, with recordings at 24 kHz."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._target = PATH
        self._scripts = {LISTENER_CHUNK_MS: build_script(plan.recordings, LISTENER_CHUNK_MS)}

    def _listener(self, index: int, due_ms: float) -> Caller:
        script = self._scripts[LISTENER_CHUNK_MS]
        return Listener(*self._basics(), due_ms, script, self._first_frame(index, script))

    def _period_ms(self, caller: Caller) -> int:
        return LISTENER_CHUNK_MS


def build_script(recordings: Sequence[Recording], chunk_ms: int) -> Script:
    size = RATE_HZ * chunk_ms // 1000 * BYTES_PER_SAMPLE
    chunks: list[bytes] = []
    for recording in recordings:
        pcm = recording.pcm + bytes(RATE_HZ * GAP_MS // 1000 * BYTES_PER_SAMPLE)
        chunks += [pcm[start : start + size].ljust(size, b"\0") for start in range(0, len(pcm), size)]
    return Script(tuple(build_frame(TEXT, append_event(chunk)) for chunk in chunks), chunk_ms)


class TurnTaker:
    """One caller who holds a conversation. ``answers_ms``: from speech_stopped to the first audio of the answer."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.done = asyncio.Event()
        self.answers_ms: list[float] = []

    async def send_audio(self, pcm: bytes) -> None:
        await self._socket.send(append_event(pcm).decode())

    async def listen(self) -> None:
        stopped_ms: float | None = None
        first_ms, audio_ms = 0.0, 0.0
        async for message in self._socket:
            now_ms = time.monotonic() * 1000
            event = json.loads(message)
            match event["type"]:
                case "input_audio_buffer.speech_stopped":
                    stopped_ms = now_ms
                case "response.output_audio.delta":
                    audio_ms += len(event["delta"]) * 3 / 4 / BYTES_PER_SAMPLE * 1000 / RATE_HZ
                    if stopped_ms is not None:
                        self.answers_ms.append(now_ms - stopped_ms)
                        first_ms, stopped_ms = now_ms, None
                case "response.done":
                    # The next turn begins when this answer was heard.
                    rest_ms = first_ms + audio_ms - now_ms
                    asyncio.get_running_loop().call_later(max(rest_ms, 0.0) / 1000, self.done.set)
                    audio_ms = 0.0
