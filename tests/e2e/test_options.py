"""A session's wishes reach the engines that can grant them, and fail nobody else's turn."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.serving import serving
from tests.neural_cases import model
from voiceserver.events.events import (
    HistoryItem,
    ItemAppend,
    ReplyAudio,
    ReplyCreate,
    ReplyDone,
    SessionUpdate,
)
from voiceserver_clients.voice import VoiceClient


@pytest.mark.timeout(120)
async def test_piper_speaks_for_a_session_that_wants_a_voice_and_a_language_which_it_has_not() -> None:
    pytest.importorskip("piper")
    heard_ms: dict[float, float] = {}
    with serving(
        "stages.vad.engine=none",
        "stages.stt.engine=none",
        "stages.tts.engine=piper",
        f"stages.tts.params.voice={model('piper')}",
    ) as server:
        async with asyncio.timeout(90):
            for speed in (1.0, 1.4):
                async with VoiceClient.connect(server.url, rate_hz=16_000) as client:
                    await client.send(SessionUpdate(voice="marin", language="de", speed=speed))
                    await client.send(ItemAppend(item=HistoryItem(role="user", text="two plus two")))
                    await client.send(ReplyCreate())
                    size = 0
                    async for event in client.events():
                        if isinstance(event, ReplyAudio):
                            size += len(event.pcm)
                        elif isinstance(event, ReplyDone):
                            assert event.reason == "completed"
                            break
                    heard_ms[speed] = size / 48
    assert heard_ms[1.0] > 300
    assert heard_ms[1.4] < heard_ms[1.0] * 0.9
