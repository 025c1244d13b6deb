"""Talking with one's own voice, on a sound device that the test plays: what PortAudio would call back, from a thread."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tests.clients.native_server import Caller, native_server
from voiceserver.events.events import (
    ReplyAudio,
    ReplyDone,
    ReplyStarted,
    ServerEvent,
    SessionReady,
    SpeechStarted,
)
from voiceserver_clients import microphone
from voiceserver_clients.microphone import (
    BLOCK_MS,
    MAX_WAITING_BLOCKS,
    Microphone,
    MicrophoneMissing,
    converse_live,
)

RATE_HZ, OUTPUT_RATE_HZ = 16_000, 24_000
READY = SessionReady("s1", RATE_HZ, OUTPUT_RATE_HZ, resume_token="token-1")
BLOCK = b"\x07\x00" * (RATE_HZ * BLOCK_MS // 1000)


class Device:
    """The part of sounddevice that is used."""

    def __init__(self) -> None:
        self.open = 0
        self.record: Callable[..., None] | None = None
        self.play: Callable[..., None] | None = None

    def RawInputStream(
        self, *, blocksize: int, callback: Callable[..., None], **_: object
    ) -> SimpleNamespace:
        assert blocksize * 2 == len(BLOCK)
        self.record = callback
        return self._stream()

    def RawOutputStream(
        self, *, samplerate: int, callback: Callable[..., None], **_: object
    ) -> SimpleNamespace:
        assert samplerate == OUTPUT_RATE_HZ
        self.play = callback
        return self._stream()

    def _stream(self) -> SimpleNamespace:
        def start() -> None:
            self.open += 1

        def close() -> None:
            self.open -= 1

        return SimpleNamespace(start=start, stop=lambda: None, close=close)

    def speak(self, blocks: int) -> None:
        """On a thread of its own, as PortAudio does."""
        assert self.record is not None
        for _ in range(blocks):
            self.record(memoryview(BLOCK), len(BLOCK) // 2, None, None)

    def heard(self, samples: int) -> bytes:
        assert self.play is not None
        block = bytearray(samples * 2)
        self.play(memoryview(block), samples, None, None)
        return bytes(block)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    return device


async def test_blocks_go_out_and_the_reply_is_played_until_the_caller_interrupts(device: Device) -> None:
    reply = b"\x01\x02" * 480
    said = asyncio.Event()

    async def script(caller: Caller) -> None:
        await caller.say(READY)
        await caller.receive_audio(len(BLOCK) * 10)
        await caller.say(ReplyStarted(1), reply, reply)
        await said.wait()
        await caller.say(SpeechStarted(2, 0.0, interrupted_turn=1), ReplyDone(1, "cancelled"))
        await caller.socket.close()

    played: list[bytes] = []
    seen: list[ServerEvent] = []

    def on_event(at_ms: float, event: ServerEvent) -> None:
        seen.append(event)
        if isinstance(event, ReplyAudio) and len([one for one in seen if isinstance(one, ReplyAudio)]) == 2:
            played.append(device.heard(480))
            said.set()
        elif isinstance(event, ReplyDone):
            played.append(device.heard(480))

    async with native_server(script) as server:
        talking = asyncio.create_task(converse_live(server.url, RATE_HZ, on_event, pytest.fail))
        while device.open < 2:
            await asyncio.sleep(0.01)
        thread = threading.Thread(target=device.speak, args=(10,))
        thread.start()
        await asyncio.to_thread(thread.join)
        await asyncio.wait_for(talking, 10)
    assert played == [reply, bytes(960)]  # the rest of the reply fell silent with the caller's first word
    assert device.open == 0


async def test_what_the_server_took_too_late_is_told_in_ms() -> None:
    lost: list[float] = []
    blocks = Microphone(lost.append)
    for _ in range(MAX_WAITING_BLOCKS + 3):
        blocks.on_block(BLOCK)
    await asyncio.sleep(0)
    assert await blocks.read() == BLOCK
    assert lost == [3 * BLOCK_MS]
    for _ in range(MAX_WAITING_BLOCKS - 1):
        await blocks.read()
    assert lost == [3 * BLOCK_MS]


async def test_a_machine_without_a_sound_device_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, device: Device
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("Error querying device -1")

    monkeypatch.setattr(device, "RawInputStream", fail)

    async def script(caller: Caller) -> None:
        await caller.say(READY)
        await caller.receive()

    async with native_server(script) as server:
        with pytest.raises(MicrophoneMissing, match=r"no usable microphone .* querying device"):
            await converse_live(server.url, RATE_HZ, lambda at_ms, event: None, pytest.fail)


def test_without_the_package_the_command_that_helps_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MicrophoneMissing, match=r"pip install 'voiceserver\[mic\]'"):
        microphone.load_sounddevice()
