"""The engine ``transcription`` against a real HTTP server that speaks OpenAI's API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from tests import recordings
from tests.workers.engines.asking import answer, failure, kinds, until
from voiceserver.testing.chat_endpoint import Raw, Silent, Status
from voiceserver.testing.engine_suite import EngineCase, EngineSuite, audio_script
from voiceserver.testing.speech_endpoint import (
    Form,
    Heard,
    Script,
    SpeechEndpoint,
    speech_endpoint_in_thread,
)
from voiceserver_workers import registry
from voiceserver_workers.audio import Audio
from voiceserver_workers.engine import Engine, Item, Piece
from voiceserver_workers.engines.transcription import Transcription
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

SPEECH: Audio = recordings.goforward().audio[8_000:32_000]
SILENCE: Audio = np.zeros(8_000, np.float32)
NOTHING: Audio = np.empty(0, np.float32)


def heard(audio: Audio = SPEECH, *, stream: int = 1, turn: int = 1, is_final_only: bool = False) -> Item:
    """A whole utterance."""
    return Item(stream, turn, audio, is_flush=True, is_final_only=is_final_only)


@asynccontextmanager
async def transcription(
    *scripts: Script, **params: object
) -> AsyncIterator[tuple[Transcription, SpeechEndpoint]]:
    async with SpeechEndpoint(*scripts) as endpoint:
        engine = Transcription({"base_url": endpoint.base_url, **params})
        engine.open(1, StreamParams())
        yield engine, endpoint
        engine.close(1)


def final(text: str) -> list[Piece]:
    return [Piece(ResultKind.FINAL, text)]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with speech_endpoint_in_thread() as endpoint:
        yield endpoint.base_url


@pytest.fixture(scope="module")
def asking(base_url: str) -> Engine:
    engine: Engine = registry.load("transcription")({"base_url": base_url})
    return engine


class TestConformance(EngineSuite):
    @pytest.fixture
    def engine(self, asking: Engine) -> Engine:
        return asking

    @pytest.fixture
    def case(self, base_url: str) -> EngineCase:
        return EngineCase(
            "transcription",
            registry.load("transcription"),
            lambda: [audio_script(SPEECH, 1600, flush=True), audio_script(SPEECH[6000:], 4000, flush=True)],
            {"base_url": base_url},
            bad_params=(
                {"base_url": "localhost"},
                {"works_ahead": 1, "base_url": base_url},
                {"silence_db": 3, "base_url": base_url},
                {"wheels": 4, "base_url": base_url},
            ),
            bad_options=({"language": 7}, {"voice": "x"}),
        )


async def test_the_utterance_is_sent_as_a_wav_in_a_form() -> None:
    async with transcription(model="m", prompt="Voiceserver", api_key="sk-secret") as (engine, endpoint):
        engine.open(2, StreamParams(options={"language": "de-AT"}))
        assert await answer(engine, heard(stream=2)) == final("I heard 1.50 seconds.")
        (request,) = endpoint.requests
        form = Form.of(request)
        assert request.path == "/v1/audio/transcriptions"
        assert request.headers["authorization"] == "Bearer sk-secret"
        assert form.fields == {
            "model": "m",
            "response_format": "json",
            "language": "de",
            "prompt": "Voiceserver",
        }
        assert (form.rate_hz, form.seconds) == (16_000, 1.5)
        samples = np.frombuffer(form.wav[44:], "<i2") / 32768.0
        np.testing.assert_allclose(samples, SPEECH, atol=1e-4)


async def test_silence_is_sent_nowhere() -> None:
    async with transcription() as (engine, endpoint):
        assert await answer(engine, heard(SILENCE)) == final("")
        assert await answer(engine, heard(SPEECH[:800], turn=2)) == final("")
        assert not endpoint.requests


async def test_deltas_are_told_as_they_come() -> None:
    script = Heard("Go forward ten meters.", (" Go", " forward"), "behind")
    async with transcription(script, streams=True) as (engine, endpoint):
        told = await answer(
            engine, heard(), enough=lambda pieces: pieces[-1:] == [Piece(ResultKind.TEXT, "Go forward")]
        )
        assert {piece.kind for piece in told} == {ResultKind.TEXT}
        script.release.set()
        rest = await answer(engine, Item(1, 1, NOTHING, is_flush=True, is_continued=True))
        assert rest[-1:] == final("Go forward ten meters.")
        assert Form.of(endpoint.requests[0]).fields["stream"] == "true"


async def test_nobody_is_told_of_deltas_who_does_not_read_them() -> None:
    script = Heard("Go.", ("Go",))
    async with transcription(script, streams=True) as (engine, _):
        assert await answer(engine, heard(is_final_only=True)) == final("Go.")


async def test_a_transcript_is_ready_when_only_silence_follows_the_pause() -> None:
    async with transcription() as (engine, endpoint):
        pause = engine.step([Item(1, 1, SPEECH, is_pause=True)])[0]
        assert (pause.pieces, pause.more) == ([], False)
        await endpoint.wait_for(lambda: len(endpoint.requests) == 1)
        assert engine.step([Item(1, 1, SILENCE)])[0].pieces == []
        assert await answer(engine, heard(NOTHING)) == final("I heard 1.50 seconds.")
        assert len(endpoint.requests) == 1


async def test_a_request_that_more_speech_supersedes_is_cancelled() -> None:
    async with transcription(Silent(), Heard()) as (engine, endpoint):
        engine.step([Item(1, 1, SPEECH, is_pause=True)])
        await endpoint.wait_for(lambda: len(endpoint.requests) == 1)
        engine.step([Item(1, 1, SPEECH)])
        await endpoint.wait_for(lambda: endpoint.abandoned == 1)
        assert await answer(engine, heard(NOTHING)) == final("I heard 3.00 seconds.")


async def test_without_works_ahead_a_pause_asks_nobody() -> None:
    async with transcription(works_ahead=False) as (engine, endpoint):
        engine.step([Item(1, 1, SPEECH, is_pause=True)])
        assert await answer(engine, heard(SPEECH)) == final("I heard 3.00 seconds.")
        assert len(endpoint.requests) == 1


async def test_a_request_that_failed_at_the_pause_is_made_again_at_the_end() -> None:
    async with transcription(Status(400), Heard("There.")) as (engine, endpoint):
        engine.step([Item(1, 1, SPEECH, is_pause=True)])
        asked = engine._streams[1].asked
        assert asked is not None
        await until(lambda: asked.is_done)
        assert await answer(engine, heard(NOTHING)) == final("There.")
        assert len(endpoint.requests) == 2


@pytest.mark.parametrize(
    ("script", "params", "code", "message"),
    [
        (Silent(), {"first_byte_timeout_ms": 60}, "stt_timeout", "stages.stt.params.first_byte_timeout_ms"),
        (Status(403), {}, "stt_rejected", "refused with HTTP 403"),
        (Status(503, retry_after="9"), {"timeout_ms": 500}, "stt_http_error", "Try again in 9 s"),
        (Raw(b"<html>", "text/html"), {}, "stt_http_error", "something else than a transcript"),
        (Raw(b'{"words": []}', "application/json"), {}, "stt_http_error", "something else than a transcript"),
        (Raw(b'{"text": 7}', "application/json"), {}, "stt_http_error", "cannot be read"),
        (Raw(b'{"error": {"message": "secret"}}', "application/json"), {}, "stt_http_error", "failed"),
    ],
)
async def test_what_goes_wrong_is_told_and_the_next_turn_is_heard(
    script: Script, params: dict[str, object], code: str, message: str
) -> None:
    async with transcription(script, Heard("Next."), **params) as (engine, _):
        told = failure(await answer(engine, heard()))
        assert told.code == code
        assert message in told.message
        assert "secret" not in told.message
        assert await answer(engine, heard(turn=2)) == final("Next.")


async def test_an_error_of_the_endpoint_that_passes_is_asked_again() -> None:
    async with transcription(Status(500), Heard("Yes.")) as (engine, endpoint):
        assert await answer(engine, heard()) == final("Yes.")
        assert len(endpoint.requests) == 2


async def test_an_empty_transcript_is_one() -> None:
    async with transcription(Heard("")) as (engine, _):
        assert kinds(await answer(engine, heard())) == ["FINAL"]
