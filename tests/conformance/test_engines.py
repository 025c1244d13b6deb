"""Every engine, held to ``engine_suite``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pytest

from tests import recordings
from tests.engines_for_tests import Echo
from tests.neural_cases import NEURAL_CASES
from tests.workers.engines import test_speech, test_transcription
from voiceserver.testing.engine_suite import (
    EngineCase,
    EngineSuite,
    Input,
    audio_script,
    reply_script,
    text_script,
)
from voiceserver_workers import registry
from voiceserver_workers.engine import Engine


def _speech_for_vad() -> Sequence[Sequence[Input]]:
    audio = recordings.goforward().audio
    return [
        audio_script(audio[:16000], 320, flush=False),
        audio_script(audio[4000:40000], 3333, flush=False),
        audio_script(audio[8000:20000], 512, flush=False),
        audio_script(audio[::-1][:40000].copy(), 25000, flush=False),
    ]


def _speech_for_stt() -> Sequence[Sequence[Input]]:
    audio = recordings.goforward().audio
    return [audio_script(audio[:30000], 1600, flush=True), audio_script(audio[6000:], 4000, flush=True)]


def _sentences() -> Sequence[Sequence[Input]]:
    return [
        text_script("You said: go forward ten meters.", "And then?"),
        text_script("Two."),
        text_script("...", "The quick brown fox jumps over the lazy dog, twice, and goes home."),
    ]


def _load(name: str) -> Any:
    def make(params: Mapping[str, Any]) -> Engine:
        return registry.load(name)(params)

    return make


# Engines that ask an endpoint are held to the suite beside their own tests, which serve one.
ASKING = {"speech": test_speech.TestConformance, "transcription": test_transcription.TestConformance}

CASES = (
    EngineCase(
        "silero",
        _load("silero"),
        _speech_for_vad,
        bad_params=({"device": "abacus"}, {"dtype": "int3"}, {"threads": 0}, {"wheels": 4}),
        bad_options=({"voice": "x"},),
        # Sums of floats in another order.
        tolerance=1e-4,
        has_turns=False,
    ),
    EngineCase(
        "pocketsphinx",
        _load("pocketsphinx"),
        _speech_for_stt,
        {"decoders": 2},
        bad_params=({"decoders": 0}, {"cmn_ms": "long"}, {"lm": "/no/such/file"}, {"wheels": 4}),
        bad_options=({"language": "de"}, {"voice": "x"}),
    ),
    EngineCase(
        "espeak",
        _load("espeak"),
        _sentences,
        bad_params=({"voice": "klingon"}, {"rate": 5}, {"pitch": "high"}, {"wheels": 4}),
        bad_options=({"voice": "klingon"}, {"voice": "en-us+nobody"}, {"rate": True}, {"wheels": 4}),
    ),
    EngineCase(
        "concierge",
        _load("concierge"),
        lambda: [reply_script("hello", "what time is it"), reply_script("what is two plus two")],
        bad_params=({"wheels": 4},),
        bad_options=({"voice": "x"},),
    ),
    EngineCase(
        "echo",
        _load("echo"),
        _speech_for_stt,
        bad_params=({"wheels": 4},),
        bad_options=({"voice": "x"},),
    ),
    EngineCase(
        "parrot",
        Echo,
        lambda: [text_script("one", "two"), text_script("three")],
        bad_params=({"stage": "kitchen"},),
        bad_options=({"voice": "x"},),
    ),
    *NEURAL_CASES,
)


@cache
def _engine(name: str) -> Engine:
    # Decoders take a second to make, and a test that leaves something behind should be found by the next one.
    case = next(case for case in CASES if case.name == name)
    return case.make(case.params)


@pytest.mark.parametrize("case", CASES, ids=str)
class TestEngine(EngineSuite):
    @pytest.fixture
    def engine(self, case: EngineCase) -> Iterator[Engine]:
        engine = _engine(case.name)
        yield engine
        # What a failed test left open is not the next one's trouble.
        for stream in range(200):
            engine.close(stream)


@pytest.mark.parametrize("name", [name for name in registry.known_names() if registry.computes(name)])
def test_every_known_engine_is_held_to_the_suite(name: str) -> None:
    assert name in [case.name for case in CASES]
    assert _engine(name).info.stage in registry.resolve(name).stages


def test_those_that_ask_an_endpoint_are_held_to_it_too() -> None:
    assert set(ASKING) == {name for name in registry.known_names() if registry.resolve(name).asks}
    for name, suite in ASKING.items():
        assert issubclass(suite, EngineSuite)
        engine = registry.load(name)({"base_url": "http://127.0.0.1:9/v1"})
        assert engine.info.stage in registry.resolve(name).stages
