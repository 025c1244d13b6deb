"""How many words are understood wrongly: people's recordings through the whole server, as they are spoken.

``python -m benchmarks.words``. Callers of one server, one after the other, say the recordings of ``../shared/audio`` in real
time: as they are at 16 kHz, through a telephone line (8 kHz, mu-law), and in pink noise 10 dB below the speech. Detector,
turns and recogniser are those of the server; a recording with pauses is several turns, whose transcripts are joined. Numbers are
compared spelled out. Counted as well: partial transcripts that the transcript of their turn does not begin with.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import soundfile
import soxr
import typer

from benchmarks.report.results import print_table, store
from benchmarks.running import run_until_done
from voiceserver.events.events import SessionUpdate, TranscriptFinal, TranscriptPartial
from voiceserver_clients.command import complain
from voiceserver_clients.conversation import CHUNK_MS, Pacer
from voiceserver_clients.local_server import LocalServer
from voiceserver_clients.recording import BYTES_PER_SAMPLE
from voiceserver_clients.voice import VoiceClient
from voiceserver_workers.audio import Audio, float_to_pcm16

RECORDED = Path(__file__).resolve().parents[2] / "shared" / "audio"
RATE_HZ, LINE_RATE_HZ = 16_000, 8_000
# Silence behind a recording: the turn ends in it, and its transcript comes.
BEHIND_MS: Final = 2_000
NOISE_DB: Final = -10.0
WORDS: Final = {
    "jfk.flac": "and so my fellow americans ask not what your country can do for you "
    "ask what you can do for your country",
    "austen-0880.wav": "he was not an ill disposed young man",
    "austen-0890.wav": "unless to be rather cold hearted and rather selfish is to be ill disposed",
    "austen-0930.wav": "he might even have been made amiable himself",
    "goforward.wav": "go forward ten meters",
}
_SPELLED: Final = {"metres": "meters", "10": "ten"}


class Line(NamedTuple):
    """How the recordings reach the server. Percent of wrong words that are ``wanted`` at most."""

    name: str
    rate_hz: int
    change: Callable[[Audio], Audio]
    wanted: float


@dataclass(slots=True)
class Heard:
    """What the server told one caller, by turn."""

    partials: dict[int, list[str]] = field(default_factory=dict)
    finals: dict[int, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All that was said, whenever its transcript came."""
        return " ".join(self.finals[turn] for turn in sorted(self.finals))

    def contradicted(self) -> int:
        return sum(
            not self.finals.get(turn, "").startswith(partial)
            for turn, partials in self.partials.items()
            for partial in partials
        )


def words_of(text: str) -> list[str]:
    """Lower case, without punctuation, numbers spelled out."""
    found = re.sub(r"[^\w' ]", " ", text.lower()).split()
    return [_SPELLED.get(word, word) for word in found]


def wrong_words(said: Sequence[str], heard: Sequence[str]) -> int:
    """Words put in, left out or taken for others: the distance of Levenshtein."""
    row = list(range(len(heard) + 1))
    for count, word in enumerate(said, 1):
        above_left, row[0] = row[0], count
        for at, other in enumerate(heard, 1):
            above_left, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, above_left + (word != other))
    return row[-1]


def _mulaw(audio: Audio) -> Audio:
    """As a telephone line codes it: 255 steps, finer for what is soft."""
    loud = np.log1p(255 * np.abs(np.clip(audio, -1, 1))) / np.log(256)
    coded = np.sign(audio) * np.round(loud * 127) / 127
    heard: Audio = (np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255).astype(np.float32)
    return heard


def _in_noise(audio: Audio) -> Audio:
    """Pink noise with the power of the whole recording, ``NOISE_DB`` lower."""
    spectrum = np.fft.rfft(np.random.default_rng(1).standard_normal(len(audio)))
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(audio))
    scale = np.sqrt(np.mean(audio**2) / np.mean(noise**2)) * 10 ** (NOISE_DB / 20)
    noisy: Audio = (audio + noise * scale).astype(np.float32)
    return noisy


LINES: Final = (
    Line("16 kHz", RATE_HZ, lambda audio: audio, 2.0),
    Line("8 kHz mu-law", LINE_RATE_HZ, _mulaw, 5.0),
    Line("pink noise, 10 dB", RATE_HZ, _in_noise, 8.0),
)


def _read(path: Path, line: Line) -> bytes:
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    audio = soxr.resample(samples.mean(axis=1), rate_hz, line.rate_hz)
    return float_to_pcm16(line.change(audio)) + bytes(line.rate_hz * BEHIND_MS // 1000 * BYTES_PER_SAMPLE)


async def listen_to(server: LocalServer, line: Line, names: Sequence[str]) -> Heard:
    """One caller says all recordings, one after the other."""
    heard = Heard()
    async with VoiceClient.connect(server.url, rate_hz=line.rate_hz) as client:
        await client.send(SessionUpdate(replies=False))
        listening = asyncio.create_task(_listen(client, heard))
        pacer, position_ms = Pacer(asyncio.get_running_loop().time() * 1000), 0.0
        size = line.rate_hz * CHUNK_MS // 1000 * BYTES_PER_SAMPLE
        for name in names:
            pcm = _read(RECORDED / name, line)
            for at in range(0, len(pcm), size):
                position_ms += CHUNK_MS
                await pacer.until(position_ms)
                await client.send_audio(pcm[at : at + size].ljust(size, b"\0"))
        await client.finish()
        await listening
    return heard


async def _listen(client: VoiceClient, heard: Heard) -> None:
    async for event in client.events():
        if isinstance(event, TranscriptPartial):
            heard.partials.setdefault(event.turn, []).append(event.text.strip())
        elif isinstance(event, TranscriptFinal):
            heard.finals[event.turn] = event.text


async def measure(names: Sequence[str]) -> list[Heard]:
    """What was heard on each of ``LINES``."""
    async with LocalServer() as server:
        await server.wait_ready()
        return [await listen_to(server, line, names) for line in LINES]


def show(names: Sequence[str], found: Sequence[Heard]) -> Mapping[str, Mapping[str, float]]:
    """Print the table; the figures by line."""
    figures: dict[str, dict[str, float]] = {}
    for line, heard in zip(LINES, found, strict=True):
        said = [word for name in names for word in WORDS[name].split()]
        wrong, count = wrong_words(said, words_of(heard.text)), len(said)
        partials = sum(map(len, heard.partials.values()))
        figures[line.name] = {
            "words": count,
            "wrong": wrong,
            "percent": round(100 * wrong / count, 1),
            "wanted_percent": line.wanted,
            "partials": partials,
            "contradicted": heard.contradicted(),
        }
        print(f"{line.name}: {heard.text}")
    columns = ("line", "words", "wrong", "%", "wanted %", "partials", "contradicted")
    rows = [(name, *row.values()) for name, row in figures.items()]
    print_table("Words understood wrongly", columns, rows, "recordings of people at real-time pace")
    return figures


def words() -> None:
    """Count the words that are understood wrongly."""
    names = [name for name in WORDS if (RECORDED / name).is_file()]
    if not names:
        raise typer.Exit(complain(f"there are no recordings of people in {RECORDED}"))
    found = run_until_done(measure(names))
    print(f"stored in {store('words', {'lines': show(names, found)})}")


if __name__ == "__main__":
    typer.run(words)
