"""How long a caller waits: from the end-of-turn decision to the first byte of the spoken answer on the socket.

``python -m benchmarks.turn [--turns 100] [--pace 1] [--wire openai | --ahead]``. One caller, one turn after the other, every
engine real (silero, moonshine, concierge, hibari), on a machine with nothing else to do. The server measures the split
(``reply.done``); the client measures the time between the two messages as they arrive. Endpointing (the silence that is waited
for) is a setting, not a cost: it comes before the decision. ``--pace`` above 1 is quicker to run, but the recogniser may then
not keep up, and its backlog shows. ``--wire openai``: native and Realtime callers take turns on one server, so that both meet
the same machine. ``--ahead``: what ``session.preemptive`` saves where answers come from a language model. The wait for its first
token is simulated (``--llm-ms``); callers of a server with the setting and of one without it take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

import typer
from rich.progress import Progress
from websockets.asyncio.client import connect

from benchmarks.callers import realtime_callers as realtime
from benchmarks.report.results import percentiles, print_table, store
from benchmarks.running import run_until_done
from benchmarks.sides.slow_llm import SlowLlm
from voiceserver_clients.conversation import CHUNK_MS, ConversationState, Pacer, TurnReport
from voiceserver_clients.local_server import LocalServer
from voiceserver_clients.made_speech import LINES, make_speech
from voiceserver_clients.recording import BYTES_PER_SAMPLE, Recording, read_recording
from voiceserver_clients.voice import VoiceClient

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


class Caller(Protocol):
    async def send_audio(self, pcm: bytes) -> None: ...


class Found(NamedTuple):
    """``reports`` of native turns; ``others_ms``: to first audio of the turns between them, by name."""

    reports: list[TurnReport]
    others_ms: dict[str, list[float]]


class NativeCaller:
    """One caller who holds a conversation."""

    def __init__(self, client: VoiceClient) -> None:
        self.client = client
        self.state = ConversationState()
        self.done = asyncio.Event()

    async def listen(self) -> None:
        async for event in self.client.events():
            now_ms = time.monotonic() * 1000
            self.state.receive_event(event, now_ms)
            if self.state.turns and self.state.is_settled(now_ms):
                self.done.set()

    def reports(self) -> list[TurnReport]:
        """Of the turns after the warm-up that were answered."""
        reports = [self.state.turns[turn] for turn in sorted(self.state.turns)]
        return [report for report in reports if report.answer_ms is not None][WARM_UP_TURNS:]

    def answers_ms(self) -> list[float]:
        return [report.answer_ms for report in self.reports() if report.answer_ms is not None]


@contextlib.asynccontextmanager
async def _native_caller(server: LocalServer) -> AsyncIterator[NativeCaller]:
    await server.wait_ready()
    async with VoiceClient.connect(server.url, rate_hz=RATE_HZ) as client:
        caller = NativeCaller(client)
        listening = asyncio.create_task(caller.listen())
        yield caller
        await client.finish()
        await listening


async def measure(
    recording: Recording, turns: int, pace: float, realtime_recording: Recording | None = None
) -> Found:
    """``turns`` turns after the warm-up, and as many Realtime turns between them if there is a recording for them. Raises
    TimeoutError for a turn without an answer."""
    async with LocalServer() as server, contextlib.AsyncExitStack() as stack:
        native = await stack.enter_async_context(_native_caller(server))
        callers: list[tuple[Caller, Recording, asyncio.Event]] = [(native.client, recording, native.done)]
        if realtime_recording is None:
            await _take_turns(callers, turns, pace)
            return Found(native.reports(), {})
        taker = await stack.enter_async_context(_realtime_caller(server.url))
        await _take_turns([*callers, (taker, realtime_recording, taker.done)], turns, pace)
        return Found(native.reports(), {"Realtime client": taker.answers_ms[WARM_UP_TURNS:]})


async def measure_ahead(recording: Recording, turns: int, pace: float, llm_ms: float) -> Found:
    """Turns of a caller whose server asks the language model at the end of the turn, and between them of one whose server asks it
    at the pause before."""
    async with SlowLlm(llm_ms) as llm, contextlib.AsyncExitStack() as stack:
        usual = await stack.enter_async_context(LocalServer(llm.settings))
        early = await stack.enter_async_context(LocalServer({**llm.settings, "session.preemptive": "true"}))
        callers = [await stack.enter_async_context(_native_caller(server)) for server in (usual, early)]
        await _take_turns([(one.client, recording, one.done) for one in callers], turns, pace)
        return Found(callers[0].reports(), {"asked ahead": callers[1].answers_ms()})


async def _take_turns(
    callers: Sequence[tuple[Caller, Recording, asyncio.Event]], turns: int, pace: float
) -> None:
    with Progress(transient=True) as progress:
        task = progress.add_task("turns", total=turns + WARM_UP_TURNS)
        for _ in range(turns + WARM_UP_TURNS):
            for caller, said, answered in callers:
                answered.clear()
                async with asyncio.timeout(TURN_TIMEOUT_S):
                    await _speak_until(caller, said, answered, pace)
            progress.advance(task)


@contextlib.asynccontextmanager
async def _realtime_caller(url: str) -> AsyncIterator[realtime.TurnTaker]:
    async with connect(realtime.realtime_url(url), compression=None, max_size=None) as socket:
        taker = realtime.TurnTaker(socket)
        listening = asyncio.create_task(taker.listen())
        yield taker
        await socket.close()
        await listening


async def _speak_until(
    client: Caller,
    recording: Recording,
    done: asyncio.Event,
    pace: float,
) -> None:
    """Say it, then silence until it is answered."""
    pacer, position_ms = Pacer(asyncio.get_running_loop().time() * 1000), 0.0
    size = recording.rate_hz * CHUNK_MS // 1000 * BYTES_PER_SAMPLE
    chunks = [
        recording.pcm[start : start + size].ljust(size, b"\0") for start in range(0, len(recording.pcm), size)
    ]
    sent = 0
    while sent < len(chunks) or not done.is_set():
        position_ms += CHUNK_MS / pace
        await pacer.until(position_ms)
        await client.send_audio(chunks[sent] if sent < len(chunks) else bytes(size))
        sent += 1


def show(found: Found, pace: float, recording: Recording) -> dict[str, dict[str, float]]:
    """Print the table; the figures by part."""
    reports = found.reports
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
    for name, answers_ms in found.others_ms.items():
        figures[f"decision to first audio ({name})"] = percentiles(answers_ms, (50, 95, 99))
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
    wire: Annotated[
        Literal["native", "openai"], typer.Option(help="openai: Realtime turns between native ones.")
    ] = "native",
    ahead: Annotated[bool, typer.Option("--ahead", help="With and without preemptive replies.")] = False,
    llm_ms: Annotated[float, typer.Option(min=0, help="--ahead: wait for a first token.")] = 300.0,
    file: Annotated[Path | None, typer.Option(help="What is said; default: a short command.")] = None,
) -> None:
    """Measure the wait for an answer."""
    path = file or RECORDED / "goforward.wav"

    def said(rate_hz: int) -> Recording:
        return read_recording(path, rate_hz) if path.is_file() else make_speech(LINES[1], rate_hz)

    if ahead and wire != "native":
        raise typer.BadParameter("--ahead is measured on the native wire")
    recording = said(RATE_HZ)
    measured = (
        measure_ahead(recording, turns, pace, llm_ms)
        if ahead
        else measure(recording, turns, pace, said(realtime.RATE_HZ) if wire == "openai" else None)
    )
    found = run_until_done(measured)
    figures = show(found, pace, recording)
    document = {"recording": recording.name, "pace": pace, "milliseconds": figures}
    if ahead:
        document["llm_first_token_ms"] = llm_ms
    name = "turn-ahead" if ahead else "turn" if wire == "native" else f"turn-{wire}"
    print(f"stored in {store(name, document)}")


if __name__ == "__main__":
    typer.run(turn)
