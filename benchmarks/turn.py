"""How long a caller waits: from the end-of-turn decision to the first byte of the spoken answer on the socket.

``python -m benchmarks.turn [--turns 100] [--pace 1]``. One caller, one turn after the other, every engine real (silero,
pocketsphinx, concierge, espeak), on a machine with nothing else to do. The server measures the split (``reply.done``); the
client measures the time between the two messages as they arrive. Endpointing (the silence that is waited for) is a setting, not
a cost: it comes before the decision. ``--pace`` above 1 is quicker to run, but the recogniser may then not keep up, and its
backlog shows.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.progress import Progress

from benchmarks.report import percentiles, print_table, store
from clients.conversation import CHUNK_MS, Exchange, Pacer, TurnReport
from clients.local_server import LocalServer, ServerFailed
from clients.made_speech import LINES, make_speech
from clients.recording import BYTES_PER_SAMPLE, Recording, read_recording
from clients.voice import VoiceClient

RECORDED = Path(__file__).resolve().parents[2] / "shared" / "audio"
RATE_HZ = 16_000
WARM_UP_TURNS = 3
TURN_TIMEOUT_S = 30.0
PARTS = {
    "stt_ms": "final transcript",
    "reply_ms": "reply's first sentence",
    "tts_ms": "first audio of the sentence",
    "first_audio_ms": "decision to first audio (server)",
}


async def measure(recording: Recording, turns: int, pace: float) -> list[TurnReport]:
    """Reports of ``turns`` turns after the warm-up. Raises TimeoutError for a turn without an answer."""
    async with LocalServer() as server:
        await server.wait_ready()
        async with VoiceClient.connect(server.url, rate_hz=RATE_HZ) as client:
            exchange = Exchange()
            done = asyncio.Event()
            listening = asyncio.create_task(_listen(client, exchange, done))
            with Progress(transient=True) as progress:
                task = progress.add_task("turns", total=turns + WARM_UP_TURNS)
                pacer, position_ms = Pacer(asyncio.get_running_loop().time() * 1000), 0.0
                for _ in range(turns + WARM_UP_TURNS):
                    done.clear()
                    async with asyncio.timeout(TURN_TIMEOUT_S):
                        position_ms = await _speak_until(client, recording, done, pacer, position_ms, pace)
                    progress.advance(task)
            await client.finish()
            await listening
    reports = [exchange.turns[turn] for turn in sorted(exchange.turns)]
    return [report for report in reports if report.answer_ms is not None][WARM_UP_TURNS:]


async def _listen(client: VoiceClient, exchange: Exchange, done: asyncio.Event) -> None:
    async for event in client.events():
        now_ms = time.monotonic() * 1000
        exchange.receive_event(event, now_ms)
        if exchange.turns and exchange.is_settled(now_ms):
            done.set()


async def _speak_until(
    client: VoiceClient,
    recording: Recording,
    done: asyncio.Event,
    pacer: Pacer,
    position_ms: float,
    pace: float,
) -> float:
    """Say it, then silence until it is answered. Returns where the audio clock stands."""
    size = RATE_HZ * CHUNK_MS // 1000 * BYTES_PER_SAMPLE
    chunks = [
        recording.pcm[start : start + size].ljust(size, b"\0") for start in range(0, len(recording.pcm), size)
    ]
    sent = 0
    while sent < len(chunks) or not done.is_set():
        position_ms += CHUNK_MS / pace
        await pacer.until(position_ms)
        await client.send_audio(chunks[sent] if sent < len(chunks) else bytes(size))
        sent += 1
    return position_ms


def show(reports: list[TurnReport], pace: float, recording: Recording) -> dict[str, dict[str, float]]:
    """Print the table; the figures by part."""
    values: dict[str, list[float]] = {name: [] for name in PARTS}
    for report in reports:
        for name in PARTS:
            value = getattr(report.done.timings, name) if report.done else None
            if value is not None:
                values[name].append(value)
    figures = {
        title: percentiles(values[name], (50, 95, 99)) for name, title in PARTS.items() if values[name]
    }
    seen = [report.answer_ms for report in reports if report.answer_ms is not None]
    figures["decision to first audio (client)"] = percentiles(seen, (50, 95, 99))
    rows = [
        (name, int(row["count"]), row["p50"], row["p95"], row["p99"], row["max"])
        for name, row in figures.items()
    ]
    note = f"{recording.name} at {pace:g} times real time; one caller"
    print_table("End of turn to first audio (ms)", ("part", "turns", "p50", "p95", "p99", "max"), rows, note)
    return figures


def turn(
    turns: Annotated[int, typer.Option(min=1)] = 100,
    pace: Annotated[float, typer.Option(min=0.1, help="1: as a person speaks.")] = 1.0,
    file: Annotated[Path | None, typer.Option(help="What is said; default: a short command.")] = None,
) -> None:
    """Measure the wait for an answer."""
    path = file or RECORDED / "goforward.wav"
    recording = read_recording(path, RATE_HZ) if path.is_file() else make_speech(LINES[1], RATE_HZ)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            reports = runner.run(measure(recording, turns, pace))
    except ServerFailed as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    figures = show(reports, pace, recording)
    print(f"stored in {store('turn', {'recording': recording.name, 'pace': pace, 'milliseconds': figures})}")


if __name__ == "__main__":
    typer.run(turn)
