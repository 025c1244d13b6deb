"""A recording that is sent at once, by a client that heeds nothing, is transcribed to its end."""

from __future__ import annotations

import asyncio
import base64
import json

import numpy as np
import pytest
from websockets.asyncio.client import connect

from tests import recordings
from tests.e2e.serving import ServerProcess, serving
from voiceserver.events.events import ServerBusy, TranscriptFinal
from voiceserver_clients.voice import VoiceClient

# A recogniser that takes its time and writes down how much it has heard: not a sample may be missing.
LISTENS = (
    "stages.stt.engine=tests.engines_for_tests:Slow",
    "stages.stt.params.stage=stt",
    "stages.stt.params.step_ms=10",
    "stages.stt.workers=1",
    "backpressure.max_talkers=16",
    "stages.reply.engine=none",
    "stages.tts.engine=none",
)
RATE_HZ = 16_000
TIMES = 7
BY_HAND = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


def sentence() -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """At 16 kHz, with a second of silence behind it."""
    return (np.append(recordings.goforward().audio, np.zeros(16_000)) * 32_767).astype("<i2")


def samples_of(transcript: str) -> int:
    count, unit = transcript.split()
    assert unit == "samples"
    return int(count)


async def transcribe(server: ServerProcess, is_by_hand: bool) -> list[str]:
    pcm = np.tile(sentence(), TIMES)
    at = np.arange(len(pcm) * 3 // 2) / 1.5
    pcm = np.interp(at, np.arange(len(pcm)), pcm).astype("<i2")
    heard: list[str] = []
    async with connect(f"ws://127.0.0.1:{server.port}/v1/realtime", proxy=None) as socket:
        if is_by_hand:
            await socket.send(json.dumps({"type": "session.update", "session": BY_HAND}))
        for begin in range(0, len(pcm), 2_400):
            chunk = base64.b64encode(pcm[begin : begin + 2_400].tobytes()).decode()
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": chunk}))
        if is_by_hand:
            await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        async for message in socket:
            event = json.loads(message)
            assert event["type"] != "error", event
            if event["type"] == "conversation.item.input_audio_transcription.completed":
                heard.append(event["transcript"])
                if len(heard) == (1 if is_by_hand else TIMES):
                    break
    return heard


async def talk(server: ServerProcess) -> str:
    """Live, beside it; no audio of this caller may be dropped."""
    pcm = sentence().tobytes()
    async with VoiceClient.connect(server.url, rate_hz=16_000) as client:

        async def speak() -> None:
            for begin in range(0, len(pcm), 640):
                await client.send_audio(pcm[begin : begin + 640])
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            group.create_task(speak())
            async for event in client.events():
                assert not isinstance(event, ServerBusy) or not event.dropped_ms
                if isinstance(event, TranscriptFinal):
                    return event.text
    raise AssertionError("no transcript")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("is_by_hand", [True, False], ids=["by hand", "server_vad"])
async def test_all_of_it_is_heard_and_a_bystander_too(is_by_hand: bool) -> None:
    with serving(*LISTENS) as server:
        async with asyncio.timeout(150):
            said, beside = await asyncio.gather(transcribe(server, is_by_hand), talk(server))
        closed = await asyncio.to_thread(server.wait_for, "session closed")
        heard, spoken = [samples_of(text) for text in said], len(recordings.goforward().audio)
        if is_by_hand:
            assert heard == [pytest.approx(TIMES * len(sentence()), abs=RATE_HZ // 10)]
        else:
            assert all(0.7 * spoken < one < len(sentence()) for one in heard)
        assert 0.7 * spoken < samples_of(beside) < len(sentence())
        assert closed["received_ms"] > 0
        books = [entry for entry in server.log if entry["event"] == "session closed"]
        assert [entry["dropped_ms"] for entry in books] == [0.0] * len(books)
