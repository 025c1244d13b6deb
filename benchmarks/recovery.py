"""How long does a caller feel that a worker has died? Kills and hangs them under speaking callers, many times.

``python -m benchmarks.recovery [--quick]``. Each round: callers say a sentence at a person's pace, in the middle of it (for reply
and tts: when the answer begins) one stage's only worker gets SIGKILL or SIGSTOP. Counted from the signal: until the server
knows (``detected``), until a caller is told (``signalled``), until a new worker is ready (``respawned``). ``delayed`` is what a
caller feels: how much later its answer was complete than in calls that nobody disturbed, after replay and all. Words are
counted against those calls: one lost or doubled would be a fault.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Final

import typer

from benchmarks.callers.speech import speech
from benchmarks.report.results import percentiles, print_table, store
from benchmarks.running import run_until_done
from voiceserver.events.events import (
    ReplyDone,
    ReplyText,
    ServerBusy,
    ServerEvent,
    SpeechStarted,
    TranscriptFinal,
)
from voiceserver_clients.local_server import LocalServer
from voiceserver_clients.voice import VoiceClient

RATE_HZ: Final = 16_000
CHUNK_MS: Final = 40
SILENCE_MS: Final = 1_200
CALL_TIMEOUT_S: Final = 60.0
FAULTS: Final = (
    ("vad", signal.SIGKILL),
    ("stt", signal.SIGKILL),
    ("reply", signal.SIGKILL),
    ("tts", signal.SIGKILL),
    ("vad", signal.SIGSTOP),
    ("stt", signal.SIGSTOP),
)
SETTINGS: Final[Mapping[str, str | int | float]] = {
    "stages.stt.workers": 1,  # so that everybody meets the worker that dies
    # Words are counted, so the recogniser must write the same sentence the same way wherever its segment begins. A hung VAD
    # moves that beginning by some frames, and moonshine then writes "meters" for "metres": a spelling, not a lost word.
    "stages.stt.engine": "pocketsphinx",
    "backpressure.max_talkers": 1_000,
    "session.reply_timeout_ms": 30_000,
    "server.check_laws": "true",
    "server.log_format": "json",
}
PARTS: Final = ("detected", "signalled", "respawned", "delayed")


@dataclass(slots=True)
class Caller:
    """What one caller heard, with times of ``time.time``."""

    heard: list[tuple[float, ServerEvent]] = field(default_factory=list)

    def words(self) -> Counter[str]:
        """Of the transcripts and of the answers."""
        said = [event.text for _, event in self.heard if isinstance(event, TranscriptFinal | ReplyText)]
        return Counter(" ".join(said).lower().split())

    @property
    def took_ms(self) -> float:
        """From the beginning to the end of the answer."""
        done = next(at for at, event in self.heard if isinstance(event, ReplyDone))
        return (done - self.heard[0][0]) * 1000.0

    def has(self, kind: type) -> bool:
        return any(isinstance(event, kind) for _, event in self.heard)

    async def until(self, kind: type) -> None:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            while not self.has(kind):
                await asyncio.sleep(0.001)

    def after(self, at: float, kind: type, stage: str = "") -> float | None:
        """The first signal of ``kind`` (about ``stage``) after ``at``, in ms since then."""
        for when, event in self.heard:
            if when >= at and isinstance(event, kind) and stage in ("", getattr(event, "stage", "")):
                return (when - at) * 1000.0
        return None


@dataclass(frozen=True, slots=True)
class Round:
    """One fault. Times in ms since the signal; None where that caller or worker had no part in it."""

    stage: str
    kind: str
    detected: float | None
    signalled: tuple[float, ...]
    respawned: float | None
    delayed: tuple[float, ...]
    lost: int
    doubled: int


async def call(url: str, pcm: bytes, caller: Caller) -> None:
    """Say it at a person's pace, hear the answer out, leave."""

    async def say(client: VoiceClient) -> None:
        step = RATE_HZ * CHUNK_MS // 1000 * 2
        begun = time.monotonic()
        for index, start in enumerate(range(0, len(pcm), step)):
            await asyncio.sleep(begun + index * CHUNK_MS / 1000 - time.monotonic())
            await client.send_audio(pcm[start : start + step])

    async with asyncio.timeout(CALL_TIMEOUT_S), VoiceClient.connect(url, rate_hz=RATE_HZ) as client:
        saying = asyncio.create_task(say(client))
        async for event in client.events():
            caller.heard.append((time.time(), event))
            if isinstance(event, ReplyDone):
                await saying
                await client.finish()
        await saying


class Workers:
    """What the server's log says of its workers."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server

    def entries(self, *names: str) -> list[dict[str, object]]:
        found = []
        for line in self._server.log_path.read_text().splitlines():
            if line.startswith("{"):
                entry = json.loads(line)
                if entry["event"] in names:
                    found.append(entry)
        return found

    def pid(self, stage: str) -> int:
        of_stage = [
            one for one in self.entries("worker ready") if (one["stage"], one["worker"]) == (stage, 0)
        ]
        return int(str(of_stage[-1]["pid"]))

    def after(self, at: float, stage: str, *names: str) -> float | None:
        """The first such entry about worker 0 of ``stage`` after ``at``, in ms since then."""
        for entry in self.entries(*names):
            when = datetime.fromisoformat(str(entry["timestamp"])).timestamp()
            if when >= at and (entry["stage"], entry["worker"]) == (stage, 0):
                return (when - at) * 1000.0
        return None


async def disturb(
    server: LocalServer,
    pcm: bytes,
    callers: int,
    stage: str,
    number: signal.Signals,
    due_ms: float,
    usual_ms: float,
) -> tuple[list[Caller], Round]:
    """One round: ``callers`` at once, one fault ``due_ms`` after the first began to speak."""
    workers = Workers(server)
    crowd = [Caller() for _ in range(callers)]
    calls = [asyncio.create_task(call(server.url, pcm, caller)) for caller in crowd]
    try:
        await crowd[0].until(SpeechStarted if stage in ("vad", "stt") else TranscriptFinal)
        if stage in ("vad", "stt"):
            await asyncio.sleep(due_ms / 1000)
        pid, at = workers.pid(stage), time.time()
        os.kill(pid, number)
        await asyncio.gather(*calls)
    finally:
        for one in calls:
            one.cancel()
    async with asyncio.timeout(CALL_TIMEOUT_S):
        while workers.after(at, stage, "worker ready") is None:
            await asyncio.sleep(0.02)
    told = [caller.after(at, ServerBusy, stage) for caller in crowd]
    return crowd, Round(
        stage,
        number.name,
        workers.after(at, stage, "worker lost", "worker hung"),
        tuple(one for one in told if one is not None),
        workers.after(at, stage, "worker ready"),
        tuple(max(caller.took_ms - usual_ms, 0.0) for caller in crowd),
        0,
        0,
    )


async def undisturbed(server: LocalServer, pcm: bytes, callers: int) -> list[Caller]:
    """As many calls at once, twice, and no fault."""
    done: list[Caller] = []
    for _ in range(2):
        crowd = [Caller() for _ in range(callers)]
        await asyncio.gather(*(call(server.url, pcm, caller) for caller in crowd))
        done += crowd
    return done


async def measure(
    rounds: int, callers: int, faults: Sequence[tuple[str, signal.Signals]], within_s: float = 0.0
) -> list[Round]:
    """``within_s``: no round begins that would end later than that, as far as the ones before tell; 0: all are played."""
    rng = random.Random(1)
    begun_s = time.monotonic()
    pcm = speech(RATE_HZ)[0].pcm + bytes(RATE_HZ * SILENCE_MS // 1000 * 2)
    found = []
    async with LocalServer(SETTINGS) as server:
        await server.wait_ready()
        usual = await undisturbed(server, pcm, callers)
        expected, usual_ms = usual[0].words(), statistics.median(caller.took_ms for caller in usual)
        first_s = time.monotonic()
        for count in range(rounds):
            now_s = time.monotonic()
            if within_s and count and now_s - begun_s + (now_s - first_s) / count > within_s:
                break
            for stage, number in faults:
                due_ms = rng.uniform(200, 1_800)
                crowd, one = await disturb(server, pcm, callers, stage, number, due_ms, usual_ms)
                lost = sum((expected - caller.words()).total() for caller in crowd)
                doubled = sum((caller.words() - expected).total() for caller in crowd)
                found.append(replace(one, lost=lost, doubled=doubled))
    return found


def summary(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Percentiles of each part over all rounds, in ms; a part that never happened is left out."""
    parts = {}
    for name in PARTS:
        values: list[float] = []
        for one in rounds:
            value = getattr(one, name)
            values += value if isinstance(value, tuple) else [value] if value is not None else []
        if values:
            parts[name] = percentiles(values, (50, 99))
    return parts


def recovery(
    rounds: Annotated[int, typer.Option(help="Of each kind of fault.")] = 10,
    callers: Annotated[int, typer.Option(help="At once.")] = 2,
    within: Annotated[float, typer.Option(help="Seconds, after which no round begins; 0: any time.")] = 0.0,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke: one kill and one hang.")] = False,
) -> None:
    """Kill and hang workers under callers who are speaking."""
    faults = FAULTS[1:2] + FAULTS[4:5] if quick else FAULTS
    found = run_until_done(measure(1 if quick else rounds, 1 if quick else callers, faults, within))
    rows, kinds = [], {}
    for stage, number in faults:
        of_kind = [one for one in found if (one.stage, one.kind) == (stage, number.name)]
        parts = summary(of_kind)
        lost, doubled = sum(one.lost for one in of_kind), sum(one.doubled for one in of_kind)
        kinds[f"{stage} {number.name}"] = {"ms": parts, "lost_words": lost, "doubled_words": doubled}
        cells = [
            f"{parts[name]['p50']:.0f} / {parts[name]['p99']:.0f}" if name in parts else "-" for name in PARTS
        ]
        rows.append((f"{stage}, {number.name}", len(of_kind), *cells, lost, doubled))
    columns = ("fault", "rounds", *(f"{name} p50/p99" for name in PARTS), "words lost", "doubled")
    note = "ms since the signal; delayed: the complete answer, against calls that nobody disturbed"
    print_table("A worker dies or hangs under callers who are speaking", columns, rows, note)
    if not quick:
        played = len(found) // len(faults)
        print(store("recovery", {"rounds": played, "callers": callers, "faults": kinds}))
    if any(one.lost or one.doubled for one in found):
        raise SystemExit("words were lost or doubled")


if __name__ == "__main__":
    typer.run(recovery)
