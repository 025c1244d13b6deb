"""What callers of the benchmarks say: people's recordings beside the project, or speech made by espeak where there are none."""

from __future__ import annotations

from pathlib import Path

from voiceserver_clients.made_speech import LINES, make_speech
from voiceserver_clients.recording import Recording, read_recording

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "audio"
FILES = ("goforward.wav", "austen-0880.wav", "austen-0890.wav", "austen-0930.wav")


def speech(rate_hz: int) -> tuple[Recording, ...]:
    """Four recordings at ``rate_hz``."""
    paths = [RECORDED / name for name in FILES]
    if all(path.is_file() for path in paths):
        return tuple(read_recording(path, rate_hz) for path in paths)
    return tuple(make_speech(text, rate_hz) for text in LINES)
