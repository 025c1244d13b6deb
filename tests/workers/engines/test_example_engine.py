"""The example of README: an engine in 80 lines, held to what every engine promises."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.model_builders import build_ctc
from voiceserver.testing.engine_suite import EngineCase, EngineSuite, Input, audio_script, run_alone
from voiceserver_workers.engine import Audio, Engine
from voiceserver_workers.ipc.messages import ResultKind

PATH = Path(__file__).resolve().parents[3] / "examples" / "ctc_engine.py"
LABELS = "-abcdefghijklmnopqrstuvwxyz '"
RATE_HZ = 16000


def tones() -> list[float]:
    """One for each letter; whole periods in 20 ms, so that they do not leak into each other."""
    return [500.0 + 150.0 * index for index in range(len(LABELS) - 1)]


def spoken(text: str) -> Audio:
    """``text`` in tones: 60 ms a letter, 40 ms of silence between."""
    time = np.arange(RATE_HZ * 60 // 1000) / RATE_HZ
    silence = np.zeros(RATE_HZ * 40 // 1000)
    parts = [
        part
        for letter in text
        for part in (0.5 * np.sin(2 * np.pi * tones()[LABELS.index(letter) - 1] * time), silence)
    ]
    return np.concatenate(parts).astype(np.float32)


@cache
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ctc_engine", PATH)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> EngineCase:
    path = build_ctc(tmp_path_factory.mktemp("ctc") / "ctc.onnx", tones())

    def make(params: Mapping[str, Any]) -> Engine:
        engine: Engine = module().Ctc({"model": str(path), **params})
        return engine

    def scripts() -> list[list[Input]]:
        return [
            audio_script(spoken("go forward ten meters"), 1600, flush=True),
            audio_script(spoken("hello there"), 3333, flush=True),
            audio_script(np.zeros(9000, np.float32), 1000, flush=True),
        ]

    return EngineCase(
        "ctc",
        make,
        scripts,
        bad_params=({"model": "/no/such/file"}, {"wheels": 4}),
        bad_options=({"voice": "x"},),
    )


class TestExample(EngineSuite):
    @pytest.fixture
    def engine(self, case: EngineCase) -> Engine:
        return case.make({})


def test_it_has_80_lines_at_most() -> None:
    assert len(PATH.read_text().splitlines()) <= 80


def test_it_transcribes_what_was_said_with_partials_that_grow(case: EngineCase) -> None:
    pieces = run_alone(case.make({}), 1, case.scripts()[0])
    partials = [piece.payload for piece in pieces if piece.kind == ResultKind.TEXT]
    assert partials == ["go", "go forward", "go forward ten"]
    assert pieces[-1] == (ResultKind.FINAL, "go forward ten meters")
