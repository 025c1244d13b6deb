"""The neural engines on models that the tests build: their cases for ``tests/conformance``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import recordings
from tests.model_builders import build_piper_voice, build_turn_model, build_whisper
from voiceserver.testing.engine_suite import EngineCase, Input, audio_script, text_script
from voiceserver_workers import registry
from voiceserver_workers.engine import Audio, Engine

_BUILDERS: Mapping[str, Callable[[Path], Path]] = {
    "whisper": build_whisper,
    "whisper-multilingual": partial(build_whisper, is_multilingual=True),
    "whisper-deaf": partial(build_whisper, attention=0.0),
    "piper": build_piper_voice,
    "piper-two": partial(build_piper_voice, speakers=2),
    "turn.onnx": build_turn_model,
}


@cache
def model(name: str) -> str:
    """The path of a built model, made once a run."""
    return str(_BUILDERS[name](Path(_folder().name) / name))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    # Held by the cache, so it goes with the process.
    return tempfile.TemporaryDirectory(prefix="voiceserver-models-")


def make(engine: str, params: Mapping[str, Any]) -> Engine:
    """The engine, as a worker makes it. Skips, and says so, where its package is not installed."""
    try:
        factory = registry.load(engine)
    except registry.EngineMissing as error:
        pytest.skip(str(error))
    return factory(params)


def moonshine_cache() -> str:
    """Where the tests keep the converted weights of Moonshine from run to run."""
    return str(recordings.ROOT / "build" / "models")


def _maker(engine: str, key: str, model_name: str, **defaults: int) -> Callable[[Mapping[str, Any]], Engine]:
    return lambda params: make(engine, {key: model(model_name), **defaults, **params})


def speech_and_pauses() -> Audio:
    """Half a second, speech, a pause in which a turn can end, speech, and silence to the end."""
    speech = recordings.goforward().audio
    pause = np.zeros(9600, np.float32)
    return np.concatenate((pause[:8000], speech[:30000], pause, speech[8000:36000], pause, pause))


def _pauses() -> Sequence[Sequence[Input]]:
    audio = speech_and_pauses()
    return [
        audio_script(audio, 320, flush=False),
        audio_script(audio, 16000, flush=False),
        audio_script(audio[3000:], 3333, flush=False),
        audio_script(audio[8000:], 480, flush=False),
    ]


def _utterances() -> Sequence[Sequence[Input]]:
    audio = recordings.goforward().audio
    return [
        audio_script(audio[:40000], 3200, flush=True),
        audio_script(audio[6000:], 8000, flush=True),
        audio_script(np.concatenate([audio] * 3), 16000, flush=True),
        audio_script(np.zeros(20000, np.float32), 4000, flush=True),
    ]


def _sentences() -> Sequence[Sequence[Input]]:
    return [
        text_script("You said: go forward. Ten meters.", "And then?"),
        text_script("Two."),
        text_script("...", "The quick brown fox jumps over the lazy dog, twice, and goes home."),
    ]


NEURAL_CASES = (
    EngineCase(
        "smart_turn",
        _maker("smart_turn", "model", "turn.onnx"),
        _pauses,
        bad_params=(
            {"model": "/no/such/file"},
            {"pause_ms": 5},
            {"turn_threads": 0},
            {"device": "abacus"},
            {"wheels": 4},
        ),
        bad_options=({"voice": "x"},),
        # Of silero, see there.
        tolerance=1e-4,
        has_turns=False,
    ),
    EngineCase(
        "whisper",
        _maker("whisper", "model", "whisper", context_s=5, batch_size=2, decode_interval_ms=500),
        _utterances,
        bad_params=(
            {"model": "/no/such/folder"},
            {"device": "abacus"},
            {"compute_type": "int3"},
            {"beam_size": 0},
            {"language": "klingon"},
            {"cpu_threads": "many"},
            {"wheels": 4},
        ),
        bad_options=({"language": "klingon"}, {"language": "de"}, {"language": True}, {"voice": "x"}),
    ),
    EngineCase(
        "moonshine",
        lambda params: make("moonshine", {"cache": moonshine_cache(), **params}),
        _utterances,
        bad_params=(
            {"cache": 3},
            {"threads": 0},
            {"decode_interval_ms": "often"},
            {"decode_interval_share": -1},
            {"silence_db": 3},
            {"wheels": 4},
        ),
        bad_options=({"language": "de"}, {"language": True}, {"voice": "x"}),
    ),
    EngineCase(
        "hibari",
        lambda params: make("hibari", params),
        _sentences,
        bad_params=({"voice": "nobody"}, {"voice": 3}, {"speed": 9}, {"threads": 0}, {"wheels": 4}),
        bad_options=({"speed": 0}, {"speed": True}, {"voice": "nobody"}, {"wheels": 4}),
    ),
    EngineCase(
        "piper",
        _maker("piper", "voice", "piper-two"),
        _sentences,
        bad_params=(
            {"voice": "/no/such/file"},
            {"voice": 3},
            {"device": "abacus"},
            {"threads": 0},
            {"speed": 9},
            {"speaker": "nobody"},
            {"noise": "much"},
            {"wheels": 4},
        ),
        bad_options=({"speed": 0}, {"speaker": "nobody"}, {"speaker": 7}, {"speaker": True}, {"wheels": 4}),
    ),
)
