"""A call whose transcripts and speech both come by URL: real worker processes, a real HTTP server, the bundled client."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.recordings import goforward
from tests.sources import ROOT
from voiceserver.testing.chat_endpoint import Status
from voiceserver.testing.speech_endpoint import Both, Form, Heard, SpeechEndpoint, Spoken, tone_samples
from voiceserver_clients.local_server import LocalServer

QUESTION = "What is two plus two?"


async def talk(url: str, *arguments: str | Path) -> list[dict[str, object]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "voiceserver_clients.talk", f"--url={url}", "--fast", "--json", *map(str, arguments),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode in (0, 1), errors.decode()
    return [json.loads(line) for line in output.decode().splitlines()]


@pytest.mark.timeout(120)
async def test_a_call_whose_transcripts_and_speech_come_by_url(tmp_path: Path) -> None:
    wav, reply = tmp_path / "asked.wav", tmp_path / "reply.wav"
    soundfile.write(wav, goforward().audio, 16_000)
    # The endpoint speaks at another rate than it was expected to.
    async with SpeechEndpoint(Both(Spoken(16_000, "wav"), Heard(QUESTION))) as endpoint:
        settings = {
            "stages.stt.engine": "transcription",
            "stages.stt.params.base_url": endpoint.base_url,
            "stages.stt.workers": 1,
            "stages.reply.engine": "concierge",
            "stages.tts.engine": "speech",
            "stages.tts.params.base_url": endpoint.base_url,
            "stages.tts.workers": 1,
        }
        async with LocalServer(settings) as server:
            await server.wait_ready()
            events = await talk(server.url, wav, "--out", reply)
            finals = [event["text"] for event in events if event["type"] == "transcript.final"]
            assert finals == [QUESTION]
            spoken = [str(request.body["input"]) for request in endpoint.requests if request.body]
            answers = [text for text in spoken if "4" in text or "four" in text.lower()]
            assert answers
            samples, rate_hz = soundfile.read(reply, dtype="float32")
            sound = samples[np.abs(samples) > 0.001]
            assert len(sound) / rate_hz >= 0.9 * tone_samples(answers[-1], 1_000) / 1_000
            forms = [Form.of(request) for request in endpoint.requests if not request.body]
            assert forms
            assert all(form.rate_hz == 16_000 for form in forms)

            # The endpoint is down now: the caller is told, and is not left in silence.
            endpoint.scripts = [Status(503)]
            events = await talk(server.url, wav)
            told = [event for event in events if event["type"] == "transcript.failed"]
            assert [event["code"] for event in told] == ["stt_http_error"]
            assert "HTTP 503" in str(told[0]["message"])
