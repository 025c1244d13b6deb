"""What a user sees: the default server, the bundled client, real speech, a spoken answer about it.

Uses the recordings in ../shared/audio; where they are absent, speech that the default voice makes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.recordings import WORDS, likeness
from voiceserver_clients.local_server import LocalServer
from voiceserver_clients.made_speech import LINES, make_speech
from voiceserver_clients.recording import write_wav
from voiceserver_clients.talk import EXIT_REFUSED

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT.parent / "shared" / "audio"
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    if RECORDED.is_dir():
        yield {
            name: RECORDED / name
            for name in ("goforward.wav", "austen-0890.wav", "austen-0930.wav", "jfk.flac")
        }
        return
    print("no recordings in ../shared/audio: speech is made by espeak")
    folder = tmp_path_factory.mktemp("speech")
    made = {line: folder / f"{index}.wav" for index, line in enumerate(LINES)}
    for line, path in made.items():
        write_wav(path, make_speech(line, RATE_HZ).pcm, RATE_HZ)
    yield made


async def run_talk(url: str, *arguments: str | Path) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "voiceserver_clients.talk", f"--url={url}", *map(str, arguments),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


def transcripts(output: str) -> list[str]:
    lines = [json.loads(line) for line in output.splitlines()]
    return [line["text"] for line in lines if line["type"] == "transcript.final"]


@pytest.mark.timeout(240)
async def test_a_conversation_from_files_to_an_audible_answer(
    speech: dict[str, Path], tmp_path: Path
) -> None:
    first = next(iter(speech.values()))
    async with LocalServer({"backpressure.max_talkers": 1, "backpressure.waiting_room": 0}) as server:
        await server.wait_ready()
        reply = tmp_path / "reply.wav"

        # The same recording in real time, with the timeline that a person reads.
        code, shown, errors = await run_talk(server.url, first, "--out", reply)
        assert code == 0, shown + errors
        assert "Where the time went" in shown
        samples, rate_hz = soundfile.read(reply, dtype="float32")
        assert rate_hz == 24_000
        assert len(samples) / rate_hz > 0.8
        assert float(np.sqrt(np.mean(samples**2))) > 0.01  # speech, not silence

        # All of them at full speed, as events.
        code, shown, errors = await run_talk(server.url, *speech.values(), "--fast", "--json")
        assert code == 0, shown + errors
        events = [json.loads(line) for line in shown.splitlines()]
        closing = events[-1]
        assert closing["type"] == "session.closing"
        sums = closing["accounting"]
        assert sums["received_ms"] == pytest.approx(
            sums["consumed_ms"] + sums["dropped_ms"] + sums["discarded_ms"]
        )
        assert sums["dropped_ms"] == 0
        # How much silence comes before a recording, and so where the detector's windows lie, depends on how fast the answer
        # was: a word may be another one then.
        heard = transcripts(shown)
        said = [WORDS[name] for name in speech] if RECORDED.is_dir() else list(speech)
        for text, words in zip(heard, said[:3], strict=False):
            assert likeness(text, words) > 0.6
        assert likeness(" ".join(heard), " ".join(said)) > 0.6
        spoken = " ".join(event["text"] for event in events if event["type"] == "reply.text")
        assert likeness(spoken, said[0]) > 0.6

        # The only place is taken: a second caller is told when to come back.
        holder = asyncio.create_task(run_talk(server.url, first, "--json"))
        while json.loads((await server.get("/v1/capacity"))[1])["free"]:
            await asyncio.sleep(0.02)
        code, _, errors = await run_talk(server.url, first)
        assert code == EXIT_REFUSED
        assert "try again in" in errors
        assert (await holder)[0] == 0
