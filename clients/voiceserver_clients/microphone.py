"""Talking with one's own voice: microphone in, loudspeaker out, through the optional sounddevice package.

PortAudio calls back on its own thread; the two callbacks only move bytes between bounded queues and the event loop. What does
not fit is told, never waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from voiceserver.events.events import PlaybackStop, ReplyAudio, ServerEvent, SpeechStarted
from voiceserver.installation import missing_message
from voiceserver_clients.connecting import Reconnect
from voiceserver_clients.recording import BYTES_PER_SAMPLE
from voiceserver_clients.voice import VoiceClient

BLOCK_MS = 20
MAX_WAITING_BLOCKS = 500  # 10 s of microphone while the server is out of credit


class MicrophoneMissing(Exception):
    """No way to record or play here. The message says what to install."""


class _Stream(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


class _SoundDevice(Protocol):
    """The part of the sounddevice module that is used."""

    def RawInputStream(
        self, *, samplerate: int, channels: int, dtype: str, blocksize: int, callback: Callable[..., None]
    ) -> _Stream: ...
    def RawOutputStream(
        self, *, samplerate: int, channels: int, dtype: str, blocksize: int, callback: Callable[..., None]
    ) -> _Stream: ...


def load_sounddevice() -> _SoundDevice:
    """Raises MicrophoneMissing with the command that helps."""
    try:
        import sounddevice
    except ModuleNotFoundError:
        raise MicrophoneMissing(missing_message("--mic needs", ("sounddevice",), ("mic",))) from None
    except OSError as error:
        raise MicrophoneMissing(
            f"--mic needs the PortAudio library ({error}): apt install libportaudio2, or brew install portaudio"
        ) from None
    device: _SoundDevice = sounddevice
    return device


class Loudspeaker:
    """What waits to be played. Filled on the loop, emptied on PortAudio's thread; a barge-in empties it at once."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def play(self, pcm: bytes) -> None:
        self._waiting += pcm

    def stop(self) -> None:
        self._waiting = bytearray()

    def fill(self, block: memoryview) -> None:
        """PortAudio's callback: give what there is, silence for the rest."""
        waiting = self._waiting
        taken = bytes(waiting[: len(block)])
        del waiting[: len(taken)]
        block[: len(taken)] = taken
        block[len(taken) :] = bytes(len(block) - len(taken))


class Microphone:
    """Blocks from PortAudio's thread, for the loop. on_lost: told the ms of what came while the queue was full, once there is
    room again."""

    def __init__(self, on_lost: Callable[[float], object]) -> None:
        self._on_lost = on_lost
        self._lost_blocks = 0
        self._loop = asyncio.get_running_loop()
        self._blocks: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING_BLOCKS)

    def on_block(self, block: bytes) -> None:
        """Called on PortAudio's thread."""
        with suppress(RuntimeError):  # the loop may be closing
            self._loop.call_soon_threadsafe(self._put, block)

    def _put(self, block: bytes) -> None:
        if self._blocks.full():
            self._lost_blocks += 1
        else:
            self._blocks.put_nowait(block)

    async def read(self) -> bytes:
        block = await self._blocks.get()
        if self._lost_blocks:
            lost, self._lost_blocks = self._lost_blocks, 0
            self._on_lost(lost * BLOCK_MS)
        return block


async def converse_live(
    url: str,
    rate_hz: int,
    on_event: Callable[[float, ServerEvent], None],
    on_lost: Callable[[float], object],
    headers: dict[str, str] | None = None,
) -> None:
    """Until the session ends or the task is cancelled (Ctrl-C). on_lost: see ``Microphone``. Raises MicrophoneMissing,
    ConnectionLost, Refused."""
    device = load_sounddevice()
    loop = asyncio.get_running_loop()
    speaker, microphone = Loudspeaker(), Microphone(on_lost)
    streams: list[_Stream] = []
    async with VoiceClient.connect(url, rate_hz=rate_hz, reconnect=Reconnect(), headers=headers) as client:
        ready = await client.wait_ready()
        try:
            streams += _open_streams(device, microphone, speaker, rate_hz, ready.output_rate_hz)
            sending = asyncio.create_task(_send(client, microphone), name="microphone")
            start_s = loop.time()
            try:
                async for event in client.events():
                    _hear(event, speaker)
                    on_event((loop.time() - start_s) * 1000, event)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        finally:
            for stream in streams:
                stream.stop()
                stream.close()


def _open_streams(
    device: _SoundDevice, microphone: Microphone, speaker: Loudspeaker, rate_hz: int, output_rate_hz: int
) -> list[_Stream]:
    def record(block: memoryview, frames: int, *_: object) -> None:
        microphone.on_block(bytes(block)[: frames * BYTES_PER_SAMPLE])

    def play(block: memoryview, *_: object) -> None:
        speaker.fill(memoryview(block).cast("B"))

    try:
        streams = [
            device.RawInputStream(
                samplerate=rate_hz,
                channels=1,
                dtype="int16",
                blocksize=rate_hz * BLOCK_MS // 1000,
                callback=record,
            ),
            device.RawOutputStream(
                samplerate=output_rate_hz,
                channels=1,
                dtype="int16",
                blocksize=output_rate_hz * BLOCK_MS // 1000,
                callback=play,
            ),
        ]
        for stream in streams:
            stream.start()
    except Exception as error:  # PortAudioError cannot be named without importing the optional package
        raise MicrophoneMissing(f"no usable microphone and loudspeaker: {error}") from error
    return streams


async def _send(client: VoiceClient, microphone: Microphone) -> None:
    while True:
        await client.send_audio(await microphone.read())


def _hear(event: ServerEvent, speaker: Loudspeaker) -> None:
    match event:
        case ReplyAudio(pcm=pcm):
            speaker.play(pcm)
        case PlaybackStop():
            speaker.stop()
        case SpeechStarted(interrupted_turn=turn) if turn:
            speaker.stop()
        case _:
            pass
