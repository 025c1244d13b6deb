"""Speaking into a reply, on a real server: how much speech it takes, what is left in the history, and what is no interruption.

The audio clock is held by the test: of the words that interrupt, the server is given 200 ms and then nothing, until it has
stopped the reply. How fast the machine is plays no part.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from tests import recordings
from tests.e2e.serving import STEADY, serving
from voiceserver.events import events as ev
from voiceserver.testing.chat_endpoint import Answer, ChatEndpoint
from voiceserver_clients.made_speech import make_speech
from voiceserver_clients.voice import VoiceClient

RATE_HZ = 16_000
STOPS_WITHIN_MS = 200
HEARD_MS = 1_500  # of the answer, as the client says
STORY = (
    "There was once a farmer who had a small field beside the river. ",
    "Every morning he walked along the water and counted the boats that passed. ",
    "One day there came a boat with a red sail, and nobody was on board. ",
    "He pulled it to the shore and found a letter under the seat. ",
)
Audio = npt.NDArray[np.float32]
E = TypeVar("E")


def silence(ms: int) -> Audio:
    return np.zeros(ms * RATE_HZ // 1000, np.float32)


def onset_ms(audio: Audio) -> int:
    """Where the voice first has a tenth of its greatest loudness."""
    loudness = np.abs(audio[: len(audio) // 160 * 160]).reshape(-1, 160).max(axis=1)
    return int(np.flatnonzero(loudness > loudness.max() / 10)[0]) * 10


class Person:
    """Somebody on the line, who remembers every event."""

    def __init__(self, client: VoiceClient) -> None:
        self._client = client
        self._events = client.events()
        self.heard: list[ev.ServerEvent] = []

    async def send(self, audio: Audio) -> None:
        await self._client.send_audio((audio * 32_767).astype("<i2").tobytes())

    async def until(self, kind: type[E], turn: int = 0) -> E:
        async for event in self._events:
            self.heard.append(event)
            if isinstance(event, kind) and turn in (0, getattr(event, "turn", 0)):
                return event
        raise AssertionError(f"the call ended without {kind.__name__}")

    async def ask(self) -> None:
        """A question, and a second and a half of the answer."""
        await self._client.send(ev.ItemAppend(item=ev.HistoryItem(role="user", text="Tell me a story.")))
        await self._client.send(ev.ReplyCreate())
        await self.until(ev.ReplyAudio)
        await self.send(silence(HEARD_MS))
        await self._client.send(ev.ReplyPlayed(turn=1, played_ms=HEARD_MS))

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.heard if isinstance(event, kind)]


@asynccontextmanager
async def calling(*settings: str) -> AsyncIterator[tuple[ChatEndpoint, str, asyncio.Event]]:
    answer = Answer(STORY, hold_before=len(STORY) - 1)
    async with ChatEndpoint(answer) as endpoint:
        chat = (
            "stages.reply.engine=chat",
            f"stages.reply.params.base_url={endpoint.base_url}",
            "stages.reply.params.model=story",
            "stages.reply.params.stall_timeout_ms=60000",
            "stages.reply.params.uses_proxy=false",
            *STEADY,
            *(f"stages.{stage}.step_timeout_ms=60000" for stage in ("vad", "stt", "tts")),
            "session.reply_timeout_ms=60000",
            "session.false_interruption_ms=30000",  # the transcript decides
        )
        manager = serving(*chat, *settings)
        server = await asyncio.to_thread(manager.__enter__)
        try:
            async with asyncio.timeout(170):
                yield endpoint, server.url, answer.release
        finally:
            answer.release.set()
            await asyncio.to_thread(manager.__exit__, None, None, None)


def told(endpoint: ChatEndpoint, role: str) -> str:
    """What the messages of the last request say in this role."""
    messages = endpoint.requests[-1].body["messages"]
    return " ".join(message["content"] for message in messages if message["role"] == role)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("is_preemptive", [False, True])
async def test_speech_stops_a_reply_within_200_ms_of_its_start(is_preemptive: bool) -> None:
    names = recordings.names()[:1] if is_preemptive else recordings.names()
    async with calling(f"session.preemptive={str(is_preemptive).lower()}") as (endpoint, url, _):
        for name in names:
            speech = recordings.recording(name)
            async with VoiceClient.connect(url, rate_hz=RATE_HZ) as client:
                person = Person(client)
                await person.ask()
                cut = (onset_ms(speech.audio) + STOPS_WITHIN_MS) * RATE_HZ // 1000
                await person.send(speech.audio[:cut])
                started = await person.until(ev.SpeechStarted, turn=2)
                assert started.interrupted_turn == 1, name
                # Nothing of the reply comes after the event that explains its end.
                done = await person.until(ev.ReplyDone)
                assert done.reason == "interrupted"
                assert person.heard[-2:] == [started, done]

                if name != names[0]:
                    continue
                await person.send(np.concatenate((speech.audio[cut:], silence(800))))
                final = await person.until(ev.TranscriptFinal, turn=2)
                await person.until(ev.ReplyText, turn=2)
                heard = told(endpoint, "assistant")
                assert 0 < len(heard) < len(STORY[0]), heard
                assert STORY[0].startswith(heard)
                assert told(endpoint, "user").endswith(final.text)


def vowel(ms: int, pitch_hz: float = 180.0) -> Audio:
    """A sustained "ah" with a little vibrato: speech to the voice detector, and no word."""
    at_s = np.arange(ms * RATE_HZ // 1000) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.08 * np.sin(2 * np.pi * 3 * at_s))) / RATE_HZ
    formants = ((700, 100), (1_100, 120), (2_500, 160))
    sound = np.zeros_like(at_s)
    for harmonic in range(1, 30):
        loudness = sum(1 / (1 + ((pitch_hz * harmonic - hz) / width) ** 2) for hz, width in formants)
        sound += loudness * np.sin(harmonic * phase)
    fade = np.minimum(1.0, np.minimum(at_s / 0.03, (at_s[-1] - at_s) / 0.05))
    return np.asarray(0.4 * sound / np.abs(sound).max() * fade, np.float32)


def noise(ms: int) -> Audio:
    return (0.3 * np.random.default_rng(1).standard_normal(ms * RATE_HZ // 1000)).astype(np.float32)


async def interrupted_for_nothing(
    endpoint: ChatEndpoint, url: str, gate: asyncio.Event, sound: Audio, transcript: str
) -> None:
    """``sound`` stops the story while its last sentence is not produced yet; then the story goes on to its end."""
    async with VoiceClient.connect(url, rate_hz=RATE_HZ) as client:
        person = Person(client)
        began_s = time.monotonic()
        await person.ask()
        await person.send(np.concatenate((sound, silence(800))))
        assert (await person.until(ev.SpeechStarted, turn=2)).interrupted_turn == 1
        assert (await person.until(ev.ReplyDone, turn=1)).reason == "interrupted"
        heard_s = time.monotonic() - began_s
        assert recordings.plain((await person.until(ev.TranscriptFinal, turn=2)).text) == transcript
        resumed = await person.until(ev.ReplyStarted)
        cut = len(person.heard)
        gate.set()
        done = await person.until(ev.ReplyDone, turn=resumed.turn)
        assert done.reason == "completed"
        story = "".join(STORY).strip()
        assert story.endswith(done.text)
        spoken_s = sum(len(one.pcm) for one in person.heard[cut:] if isinstance(one, ev.ReplyAudio)) / 48_000
        assert spoken_s > 5
        left_out_s = (len(story) - len(done.text)) * spoken_s / len(done.text)
        assert left_out_s < heard_s + HEARD_MS / 1000, "what was not said again was not played either"
        first, again = endpoint.requests
        assert again.body["messages"] == first.body["messages"]


@pytest.mark.timeout(180)
async def test_a_voice_without_words_stops_the_reply_which_then_goes_on_and_loses_nothing() -> None:
    async with calling() as (endpoint, url, gate):
        await interrupted_for_nothing(endpoint, url, gate, vowel(350), "")


@pytest.mark.timeout(180)
async def test_an_interjection_that_was_named_does_not_end_the_reply() -> None:
    said = make_speech("okay", RATE_HZ)
    speech = np.asarray(np.frombuffer(said.pcm, np.int16) / 32_768, np.float32)
    async with calling("session.backchannels=mm-hm, okay") as (endpoint, url, gate):
        await interrupted_for_nothing(endpoint, url, gate, speech, "okay")


@pytest.mark.timeout(180)
async def test_a_burst_of_noise_interrupts_nothing() -> None:
    async with calling() as (_, url, gate), VoiceClient.connect(url, rate_hz=RATE_HZ) as client:
        person = Person(client)
        await person.ask()
        await person.send(np.concatenate((noise(350), silence(800))))
        gate.set()
        done = await person.until(ev.ReplyDone, turn=1)
        assert (done.reason, done.text) == ("completed", "".join(STORY).strip())
        assert not person.all(ev.SpeechStarted)
