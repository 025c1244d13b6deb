"""Speech to speech over the wire: what a caller says comes back in the caller's own voice, sample for sample."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests import recordings
from tests.e2e.serving import serving
from voiceserver.events.events import (
    InputCommit,
    InputCommitted,
    ReplyAudio,
    ReplyCreate,
    ReplyDone,
    SessionUpdate,
    SpeechStopped,
    TranscriptFinal,
)
from voiceserver_clients.voice import VoiceClient

ECHO = (
    "stages.vad.engine=silero",
    "stages.stt.engine=none",
    "stages.tts.engine=none",
)


@recordings.spoken_by_people
@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", ["echo", "voiceserver_workers.engines.echo:Echo"])
async def test_the_caller_hears_itself(engine: str) -> None:
    speech = (recordings.goforward().audio * 32_767).astype("<i2").tobytes()
    sent = speech + bytes(16_000 * 2)
    reply = bytearray()
    names = []
    with serving(*ECHO, f"stages.reply.engine={engine}") as server:
        async with (
            asyncio.timeout(60),
            VoiceClient.connect(f"{server.url}?reply_rate=16000", rate_hz=16_000) as client,
        ):
            await client.send_audio(sent)
            async for event in client.events():
                names.append(type(event))
                if isinstance(event, ReplyAudio):
                    reply += event.pcm
                elif isinstance(event, ReplyDone):
                    assert event.reason == "completed"
                    assert event.timings.audio_ms == len(reply) / 32
                    break
    assert SpeechStopped in names
    assert TranscriptFinal not in names
    at = sent.find(bytes(reply[:3_200]))
    assert at >= 0
    assert sent[at : at + len(reply)] == bytes(reply)
    # All of what was said, from the padding before it to the silence that ended it.
    loudness = np.abs(np.frombuffer(speech, "<i2"))
    loud = np.flatnonzero(loudness > loudness.max() // 2)
    assert at // 2 < loud[0]
    assert at // 2 + len(reply) // 2 > loud[-1]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("asks", [False, True])
async def test_a_turn_that_the_caller_ends_by_hand_comes_back_whole(*, asks: bool) -> None:
    sent = np.random.default_rng(1).integers(-9_000, 9_000, 16_000, "<i2").tobytes()
    reply = bytearray()
    with serving(*ECHO, "stages.reply.engine=echo") as server:
        async with (
            asyncio.timeout(60),
            VoiceClient.connect(f"{server.url}?reply_rate=16000", rate_hz=16_000) as client,
        ):
            await client.send(SessionUpdate(turn_detection=None))
            await client.send_audio(sent)
            await client.send(InputCommit(creates_reply=not asks))
            async for event in client.events():
                if isinstance(event, ReplyAudio):
                    reply += event.pcm
                elif isinstance(event, InputCommitted) and asks:
                    await client.send(ReplyCreate())
                elif isinstance(event, ReplyDone):
                    assert event.reason == "completed"
                    break
    assert bytes(reply) == sent
