"""The engine ``speech`` against a real HTTP server that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from tests.workers.engines.asking import answer, audio_of, failure, kinds, until
from voiceserver.testing.chat_endpoint import Raw, Silent, Status
from voiceserver.testing.engine_suite import EngineCase, EngineSuite, text_script
from voiceserver.testing.speech_endpoint import (
    Script,
    SpeechEndpoint,
    Spoken,
    speech_endpoint_in_thread,
    tone,
    tone_samples,
)
from voiceserver_workers import registry
from voiceserver_workers.audio import pcm16_to_float
from voiceserver_workers.engine import Engine, EngineError, Item
from voiceserver_workers.engines.speech import Speech
from voiceserver_workers.engines.speech_body import Audio
from voiceserver_workers.ipc.messages import StreamParams

NOTHING: Audio = np.empty(0, np.float32)
TEXT = "Good morning."


def sentence(text: str = TEXT, *, stream: int = 1, turn: int = 1) -> Item:
    return Item(stream, turn, NOTHING, text)


@asynccontextmanager
async def speech(*scripts: Script, **params: object) -> AsyncIterator[tuple[Speech, SpeechEndpoint]]:
    async with SpeechEndpoint(*scripts) as endpoint:
        engine = Speech({"base_url": endpoint.base_url, **params})
        engine.open(1, StreamParams())
        yield engine, endpoint
        engine.close(1)


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with speech_endpoint_in_thread() as endpoint:
        yield endpoint.base_url


@pytest.fixture(scope="module")
def asking(base_url: str) -> Engine:
    engine: Engine = registry.load("speech")({"base_url": base_url})
    return engine


class TestConformance(EngineSuite):
    @pytest.fixture
    def engine(self, asking: Engine) -> Engine:
        return asking

    @pytest.fixture
    def case(self, base_url: str) -> EngineCase:
        return EngineCase(
            "speech",
            registry.load("speech"),
            lambda: [
                text_script(TEXT, "And then?"),
                text_script("Two."),
                text_script("...", "Three of them."),
            ],
            {"base_url": base_url},
            bad_params=(
                {"base_url": "localhost"},
                {"response_format": "mp3", "base_url": base_url},
                {"rate_hz": 5, "base_url": base_url},
                {"uses_proxy": "no", "base_url": base_url},
                {"wheels": 4, "base_url": base_url},
            ),
            bad_options=({"voice": 7}, {"speed": 9.0}, {"language": "de"}),
        )


@pytest.mark.parametrize(
    ("spoken", "params"),
    [
        (Spoken(), {}),
        (Spoken(form="wav"), {"response_format": "wav"}),
        (Spoken(sse=True), {"stream_format": "sse"}),
        (Spoken(sse=True, form="wav"), {"stream_format": "sse", "response_format": "wav"}),
    ],
)
async def test_every_form_gives_the_samples_that_were_sent(spoken: Spoken, params: dict[str, object]) -> None:
    async with speech(spoken, **params) as (engine, endpoint):
        pieces = await answer(engine, sentence())
        np.testing.assert_allclose(
            np.concatenate(audio_of(pieces)), pcm16_to_float(tone(TEXT, 24_000)), atol=1e-4
        )
        assert kinds(pieces) == ["AUDIO", "DONE"]
        (request,) = endpoint.requests
        assert request.path == "/v1/audio/speech"
        assert request.body == {
            "model": "",
            "input": TEXT,
            "voice": "alloy",
            "response_format": "pcm",
            **params,
        }
        assert "authorization" not in request.headers


@pytest.mark.parametrize(
    "spoken",
    [Spoken(16_000, content_type="audio/pcm;rate=16000"), Spoken(48_000, "wav", "audio/pcm;rate=24000")],
)
async def test_another_rate_than_the_expected_one_is_resampled(spoken: Spoken) -> None:
    async with speech(spoken) as (engine, _):
        audio = np.concatenate(audio_of(await answer(engine, sentence())))
        assert len(audio) == pytest.approx(tone_samples(TEXT, 24_000), rel=0.01)


async def test_what_a_session_wishes_and_the_key_are_sent() -> None:
    async with speech(model="m", api_key="sk-secret", instructions="Whisper.") as (engine, endpoint):
        engine.open(2, StreamParams(options={"voice": "nova", "speed": 1.5}))
        await answer(engine, sentence(stream=2))
        (request,) = endpoint.requests
        wished = {"model": "m", "voice": "nova", "speed": 1.5, "instructions": "Whisper."}
        assert wished.items() <= request.body.items()
        assert request.headers["authorization"] == "Bearer sk-secret"


async def test_audio_leaves_while_the_rest_is_made_and_a_cancel_closes_the_connection() -> None:
    async with speech(Spoken(hold_before=2), Spoken()) as (engine, endpoint):
        pieces = await answer(
            engine, sentence(), enough=lambda pieces: sum(map(len, audio_of(pieces))) >= 4_000
        )
        assert kinds(pieces) == ["AUDIO"]
        engine.cancel(1, 1)
        assert not engine.step([Item(1, 1, NOTHING, is_continued=True)])[0].more
        await endpoint.wait_for(lambda: endpoint.abandoned == 1)
        assert kinds(await answer(engine, sentence(turn=2))) == ["AUDIO", "DONE"]


async def test_a_stream_that_waits_rests_and_blocks_nobody() -> None:
    async with speech(Silent(), Spoken()) as (engine, endpoint):
        waiting = engine.step([sentence()])[0]
        assert (waiting.pieces, waiting.more) == ([], True)
        assert waiting.rest_ms > 0
        await endpoint.wait_for(lambda: len(endpoint.requests) == 1)
        engine.open(2, StreamParams())
        assert kinds(await answer(engine, sentence(stream=2))) == ["AUDIO", "DONE"]
        engine.close(1)
        await endpoint.wait_for(lambda: endpoint.abandoned == 1)


@pytest.mark.parametrize(
    ("script", "params", "code", "message"),
    [
        (Silent(), {"first_byte_timeout_ms": 60}, "tts_timeout", "stages.tts.params.first_byte_timeout_ms"),
        (
            Spoken(hold_before=1),
            {"stall_timeout_ms": 60},
            "tts_timeout",
            "stages.tts.params.stall_timeout_ms",
        ),
        (Spoken(hold_before=1), {"timeout_ms": 80}, "tts_timeout", "stages.tts.params.timeout_ms"),
        (Spoken(break_before=1), {}, "tts_unreachable", "broke off its answer"),
        (Status(401), {}, "tts_rejected", "refused with HTTP 401"),
        (Status(500), {"retries": 0}, "tts_http_error", "answered HTTP 500"),
        (Status(429, retry_after="7"), {"timeout_ms": 500}, "tts_http_error", "Try again in 7 s"),
        (Raw(b'{"error": "secret"}', "application/json"), {}, "tts_http_error", "JSON, not with PCM or WAV"),
        (Raw(b"", "audio/pcm"), {}, "tts_http_error", "without a sound"),
        (Spoken(), {"max_audio_ms": 1_000}, "tts_http_error", "stages.tts.params.max_audio_ms"),
    ],
)
async def test_what_goes_wrong_is_told_and_the_next_sentence_is_spoken(
    script: Script, params: dict[str, object], code: str, message: str
) -> None:
    text = "A sentence that is spoken for more than a second, because it has so many words in it."
    async with speech(script, Spoken(), **params) as (engine, _):
        told = failure(await answer(engine, sentence(text)))
        assert told.code == code
        assert message in told.message
        assert "secret" not in told.message
        assert kinds(await answer(engine, sentence("On."))) == ["AUDIO", "DONE"]


async def test_a_busy_endpoint_is_asked_again_when_it_says() -> None:
    async with speech(Status(429, retry_after="0.05"), Spoken()) as (engine, endpoint):
        assert kinds(await answer(engine, sentence())) == ["AUDIO", "DONE"]
        assert len(endpoint.requests) == 2


async def test_what_was_begun_is_not_asked_again() -> None:
    async with speech(Spoken(break_before=1), Spoken(), retries=3) as (engine, endpoint):
        assert kinds(await answer(engine, sentence())) == ["AUDIO", "FAILED"]
        assert len(endpoint.requests) == 1


async def test_requests_beyond_the_limit_wait_for_a_place() -> None:
    held = Spoken(hold_before=1)
    async with speech(held, Spoken(), max_concurrency=1) as (engine, endpoint):
        engine.open(2, StreamParams())
        engine.step([sentence(), sentence("Two.", stream=2)])
        await endpoint.wait_for(lambda: len(endpoint.requests) == 1)
        held.release.set()
        pieces = await asyncio.gather(
            answer(engine, Item(1, 1, NOTHING, is_continued=True)),
            answer(engine, Item(2, 1, NOTHING, is_continued=True)),
        )
        assert [kinds(one) for one in pieces] == [["AUDIO", "DONE"]] * 2
        assert [request.body["input"] for request in endpoint.requests] == [TEXT, "Two."]


async def test_a_dead_endpoint_is_told_at_the_start_and_nothing_secret_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with SpeechEndpoint() as endpoint:
        address = endpoint.base_url
    with caplog.at_level(logging.WARNING):
        secret = address.replace("http://", "http://me:s3cr3t@") + "?key=s3cr3t"
        engine = Speech({"base_url": secret, "api_key": "sk-s3cr3t", "retries": 0})
        await until(lambda: bool(caplog.messages))
        engine.open(1, StreamParams())
        told = failure(await answer(engine, sentence()))
    assert told.code == "tts_unreachable"
    assert [message for message in caplog.messages if "cannot be reached" in message] == caplog.messages
    assert len(caplog.messages) == 1
    assert "s3cr3t" not in caplog.text + told.message


async def test_the_keys_of_others_do_not_go_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("VOICESERVER_CHAT_API_KEY", "sk-chat")
    async with speech(Spoken()) as (engine, endpoint):
        await answer(engine, sentence())
        assert "authorization" not in endpoint.requests[0].headers
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.base_url)
        ours = Speech({})
        ours.open(1, StreamParams())
        await answer(ours, sentence())
        assert endpoint.requests[1].headers["authorization"] == "Bearer sk-openai"


async def test_a_redirect_is_not_followed_so_the_key_stays_here() -> None:
    async with SpeechEndpoint() as other:
        moved = Status(307)
        async with speech(moved, api_key="sk-secret") as (engine, _):
            assert failure(await answer(engine, sentence())).code == "tts_rejected"
        assert not other.requests


def test_a_sentence_that_is_too_long_is_refused() -> None:
    engine = Speech({"base_url": "http://127.0.0.1:9/v1"})
    engine.open(1, StreamParams())
    with pytest.raises(EngineError, match="4000"):
        engine.step([sentence("x" * 4001)])
