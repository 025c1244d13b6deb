"""A caller who says a recording at a person's pace (or faster) and writes down what the server says, with times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from tests import recordings
from voiceserver.events.events import (
    ReplyAudio,
    ReplyDone,
    ReplyText,
    ServerBusy,
    ServerEvent,
    SessionClosing,
    SessionReady,
    SpeechStarted,
    TranscriptFinal,
)
from voiceserver_clients.voice import Reconnect, VoiceClient

RATE_HZ = 16_000
CHUNK_MS = 40
SILENCE_MS = 1_200


def speech(name: str = "goforward.wav") -> bytes:
    """PCM16 of a recording, with the silence after it that ends the turn."""
    found = recordings.recording(name) if name in recordings.names() else recordings.goforward()
    audio = np.concatenate((found.audio, np.zeros(RATE_HZ * SILENCE_MS // 1000, np.float32)))
    return (np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()


@dataclass
class Call:
    """What one caller heard. Times are monotonic seconds."""

    heard: list[tuple[float, ServerEvent]] = field(default_factory=list)
    said_ms: float = 0.0
    reconnects: int = 0
    lost_ms: float = 0.0
    is_over: bool = False

    def of(self, kind: type) -> list[ServerEvent]:
        return [event for _, event in self.heard if isinstance(event, kind)]

    def when(self, is_it: Callable[[ServerEvent], bool]) -> float:
        """When the first such event came; fails when none did."""
        return next(at for at, event in self.heard if is_it(event))

    @property
    def finals(self) -> list[str]:
        return [event.text for _, event in self.heard if isinstance(event, TranscriptFinal)]

    @property
    def reply_text(self) -> str:
        return "".join(event.text for _, event in self.heard if isinstance(event, ReplyText))

    @property
    def reply_bytes(self) -> int:
        return sum(len(event.pcm) for _, event in self.heard if isinstance(event, ReplyAudio))

    @property
    def endings(self) -> list[str]:
        return [event.reason for _, event in self.heard if isinstance(event, ReplyDone)]

    @property
    def busy(self) -> list[ServerBusy]:
        return [event for _, event in self.heard if isinstance(event, ServerBusy)]

    @property
    def readies(self) -> list[SessionReady]:
        return [event for _, event in self.heard if isinstance(event, SessionReady)]

    @property
    def turns(self) -> int:
        return len(self.of(SpeechStarted))

    def assert_books_balance(self) -> None:
        (closing,) = (event for _, event in self.heard if isinstance(event, SessionClosing))
        sums = closing.accounting
        assert abs(sums.received_ms - sums.consumed_ms - sums.dropped_ms - sums.discarded_ms) < 0.01
        assert sums.dropped_ms == 0

    async def until(self, is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not is_so():
                assert not self.is_over or is_so(), f"it was over before: {self.heard}"
                await asyncio.sleep(0.002)


async def hold(
    url: str,
    pcm: bytes,
    call: Call,
    *,
    pace: float = 2.0,
    reconnect: Reconnect | None = None,
    timeout_s: float = 60.0,
) -> Call:
    """The whole call: say ``pcm`` at ``pace`` times a person's, wait for the answer (however slow the machine), say goodbye."""
    async with asyncio.timeout(timeout_s), VoiceClient.connect(url, reconnect=reconnect) as client:
        sending = asyncio.create_task(_say(client, pcm, call, pace))
        try:
            async for event in client.events():
                call.heard.append((time.monotonic(), event))
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            call.reconnects, call.lost_ms, call.is_over = client.reconnects, client.lost_ms, True
    return call


async def _say(client: VoiceClient, pcm: bytes, call: Call, pace: float) -> None:
    step = RATE_HZ * CHUNK_MS // 1000 * 2
    begun = time.monotonic()
    for index, start in enumerate(range(0, len(pcm), step)):
        await asyncio.sleep(begun + index * CHUNK_MS / 1000 / pace - time.monotonic())
        await client.send_audio(pcm[start : start + step])
        call.said_ms += CHUNK_MS
    await call.until(lambda: bool(call.endings) or call.is_over, 60.0)
    await client.finish()


async def with_fault(
    url: str,
    pcm: bytes,
    fault: Callable[[Call], Awaitable[None]],
    *,
    pace: float = 2.0,
    reconnect: Reconnect | None = None,
    call: Call | None = None,
) -> Call:
    """One call, with ``fault`` running beside it."""
    call = call or Call()
    holding = asyncio.create_task(hold(url, pcm, call, pace=pace, reconnect=reconnect))
    try:
        await fault(call)
        return await holding
    finally:
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
