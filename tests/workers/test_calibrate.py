"""How fast an engine is, by batch size and by the dtypes that it has, whatever it calls them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.engines_for_tests import Echo
from tests.model_builders import build_whisper
from voiceserver_workers.calibrate import measure
from voiceserver_workers.ipc.messages import CalibrationJob as Job

HERE = "tests.workers.test_calibrate"


class Torchy(Echo):
    """Has a dtype, and no int8."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        known = {"stage", "dtype"}
        if not params.keys() <= known or params.get("dtype", "float32") not in ("float32", "bfloat16"):
            raise ValueError("dtype: no such thing")
        super().__init__(params)


class Plain(Echo):
    """Has no dtype at all."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        for key in params.keys() - {"stage"}:
            raise ValueError(f"{key}: no such parameter")
        super().__init__(params)


def dtypes_of(job: Job) -> list[str]:
    return list(dict.fromkeys(measured.dtype for measured in measure(job)))


@pytest.mark.parametrize(("engine", "found"), [("Torchy", ["", "float32", "bfloat16"]), ("Plain", [""])])
def test_dtypes_that_an_engine_lacks_are_left_out(engine: str, found: list[str]) -> None:
    job = Job(f"{HERE}:{engine}", "vad", {"stage": "vad"}, (1, 2), ("", "float32", "bfloat16", "int8"), 0.0)
    assert dtypes_of(job) == found
    assert [measured.batch for measured in measure(job)] == [1, 2] * len(found)
    assert all(measured.step_ms > 0 and measured.work > 0 for measured in measure(job))


def test_an_engine_that_cannot_be_made_as_configured_says_so() -> None:
    with pytest.raises(ValueError, match="colour: no such parameter"):
        list(measure(Job(f"{HERE}:Plain", "vad", {"colour": "red"}, dtypes=("", "int8"), budget_s=0.0)))


def test_whisper_calls_it_compute_type(tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper")
    build_whisper(tmp_path / "whisper")
    params = {"model": str(tmp_path / "whisper")}
    job = Job("whisper", "stt", params, (1, 2), ("", "float32", "int8"), 0.0)
    assert dtypes_of(job) == ["", "float32", "int8"]
