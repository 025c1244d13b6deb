"""A reply that is late, on a real server: the line that was made at its start is heard in the meantime, on every wire."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests import recordings
from tests.e2e.serving import STEADY, ServerProcess, serving
from voiceserver.events import events as ev
from voiceserver.testing.chat_endpoint import Answer, ChatEndpoint
from voiceserver.wire.samples import G711_BYTES_PER_MS, MULAW_SILENCE, mulaw_to_pcm, pcm_to_mulaw
from voiceserver_clients.voice import VoiceClient

LINE = "One moment, please."
ANSWER = "Here I am."
TRIES = 200  # the line is made as soon as tts is there; until then it is a tone


@asynccontextmanager
async def late(*settings: str) -> AsyncIterator[tuple[ServerProcess, asyncio.Event]]:
    """A server whose endpoint answers when the gate is opened."""
    answer = Answer((ANSWER,), hold_before=0)
    async with ChatEndpoint(answer) as endpoint:
        manager = serving(
            "stages.reply.engine=chat",
            f"stages.reply.params.base_url={endpoint.base_url}",
            "stages.reply.params.model=late",
            "stages.reply.params.uses_proxy=false",
            *STEADY,
            "stages.stt.engine=none",
            f"session.filler={LINE}",
            "session.filler_after_ms=100",
            *settings,
        )
        server = await asyncio.to_thread(manager.__enter__)
        try:
            async with asyncio.timeout(110):
                yield server, answer.release
        finally:
            answer.release.set()
            await asyncio.to_thread(manager.__exit__, None, None, None)


def is_speech(pcm: bytes) -> bool:
    samples = np.frombuffer(pcm, np.int16).astype(np.float64)
    return bool(np.sqrt(np.mean(samples**2)) > 300) and len(np.unique(samples)) > 500


@pytest.mark.timeout(120)
async def test_on_the_native_wire_it_is_told_and_heard_before_the_answer() -> None:
    async with late() as (server, gate), VoiceClient.connect(server.url, rate_hz=16_000) as client:
        events = client.events()
        filler = None
        for _ in range(TRIES):
            await client.send(ev.ReplyCreate())
            while not isinstance(filler := await anext(events), ev.ReplyFiller):
                pass
            if filler.text:
                break
            await client.send(ev.ReplyCancel())
            while not isinstance(await anext(events), ev.ReplyDone):
                pass
        assert isinstance(filler, ev.ReplyFiller)
        assert filler.text == LINE
        audio = await anext(events)
        assert isinstance(audio, ev.ReplyAudio)
        assert is_speech(audio.pcm)
        assert len(audio.pcm) == pytest.approx(filler.audio_ms * 48, abs=48 * 0.1)
        gate.set()
        while not isinstance(done := await anext(events), ev.ReplyDone):
            assert not isinstance(done, ev.ReplyFiller)
        assert (done.reason, done.text) == ("completed", ANSWER)
        assert "voiceserver_fillers_total" in server.get("/metrics")[1]


async def read(socket: ClientConnection, *kinds: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Messages up to the first of one of ``kinds``."""
    heard: list[dict[str, Any]] = []
    while True:
        message = json.loads(await socket.recv())
        heard.append(message)
        if message.get("type", message.get("event")) in kinds:
            return message, heard


@pytest.mark.timeout(120)
async def test_on_the_realtime_wire_it_is_audio_and_transcript_of_the_response() -> None:
    async with (
        late() as (server, gate),
        connect(f"ws://127.0.0.1:{server.port}/v1/realtime", proxy=None) as socket,
    ):
        heard: list[dict[str, Any]] = []
        for _ in range(TRIES):
            await socket.send(json.dumps({"type": "response.create"}))
            _, heard = await read(socket, "response.output_audio.delta")
            if any(one["type"] == "response.output_audio_transcript.delta" for one in heard):
                break
            await socket.send(json.dumps({"type": "response.cancel"}))
            await read(socket, "response.done")
        assert heard[-2]["delta"] == LINE
        assert is_speech(base64.b64decode(heard[-1]["delta"]))
        gate.set()
        done, rest = await read(socket, "response.done")
        assert done["response"]["status"] == "completed"
        assert done["response"]["output"][0]["content"][0]["transcript"] == f"{LINE} {ANSWER}"
        assert len({one["item_id"] for one in [*heard, *rest] if "delta" in one}) == 1


@pytest.mark.timeout(120)
async def test_on_the_telephone_it_is_heard_marked_and_cleared_by_speech() -> None:
    spoken = recordings.goforward().audio
    half = len(spoken) // 2 * 2
    narrow = (spoken[:half].reshape(-1, 2).mean(axis=1) * 32_767).astype("<i2")
    call = pcm_to_mulaw(narrow.tobytes()) + MULAW_SILENCE * 8_000

    async def say(audio: bytes) -> None:
        for at in range(0, len(audio), 800):
            payload = base64.b64encode(audio[at : at + 800]).decode()
            await socket.send(json.dumps({"event": "media", "media": {"payload": payload}}))

    async with (
        late("stages.stt.engine=pocketsphinx") as (server, _),
        connect(f"ws://127.0.0.1:{server.port}/v1/twilio", proxy=None) as socket,
    ):
        await socket.send(json.dumps({"event": "start", "start": {"streamSid": "MZ1"}}))
        await say(call)
        media = b""
        while True:
            one, _ = await read(socket, "media", "mark")
            if one["event"] == "media":
                media = base64.b64decode(one["media"]["payload"])
            elif one["mark"]["name"].startswith(
                "1."
            ):  # of the reply; signals of a busy server have other names
                break
        assert len(np.unique(np.frombuffer(mulaw_to_pcm(media), np.int16))) > 50
        assert len(media) > 200 * G711_BYTES_PER_MS
        await say(call)
        await read(socket, "clear")
