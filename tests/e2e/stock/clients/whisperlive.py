"""``whisper-live``: its TranscriptionClient, given a host and a port, as its documentation shows."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from scenarios import FULL_URL, URL, Facts, play
from whisper_live import client as client_module
from whisper_live.client import Client, TranscriptionClient


def transcribe(url: str) -> dict[str, object]:
    where = urlsplit(url)
    heard: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        subtitles = Path(folder) / "output.srt"
        client = TranscriptionClient(
            where.hostname,
            where.port,
            lang="en",
            log_transcription=False,
            mute_audio_playback=True,
            output_transcription_path=str(subtitles),
            transcription_callback=lambda text, segments: heard.append(text),
        )
        client.client.disconnect_if_no_response_for = 10  # it spins for 15 s to wait for the last words
        client(os.environ["STOCK_SPEECH_WAV"])
        return {
            "transcript": heard[-1] if heard else "",
            "segments": client.client.transcript,
            "subtitles": subtitles.read_text() if subtitles.exists() else "",
            "waiting": client.client.waiting,
            "server_error": client.client.server_error,
        }


async def voice() -> Facts:
    return await asyncio.to_thread(transcribe, URL)


class ListeningClient(Client):
    """The stock one, and what it is told."""

    def handle_status_messages(self, message_data) -> None:
        told.append(message_data)
        super().handle_status_messages(message_data)


told: list[dict[str, object]] = []
client_module.Client = ListeningClient


async def busy() -> Facts:
    began = time.monotonic()
    facts = await asyncio.to_thread(transcribe, FULL_URL)
    return {**facts, "error": str(told), "told": told[-1], "seconds": time.monotonic() - began}


if __name__ == "__main__":
    play(voice, busy)
