"""What is logged: how loud, and in numbers that can be read."""

from __future__ import annotations

import json
import logging

import pytest
import structlog
from websockets.frames import CloseCode

from voiceserver.errors import engine_error
from voiceserver.observability import logs


@pytest.fixture(autouse=True)
def _logs_as_before() -> object:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("event", "level"),
    [
        ("worker_hung", logging.WARNING),
        ("worker_lost", logging.WARNING),
        ("quarantined", logging.WARNING),
        ("bad_engine", logging.ERROR),
        ("no_memory", logging.ERROR),
        ("worker_ready", logging.INFO),
        ("worker_stopped", logging.INFO),
    ],
)
def test_what_happens_to_workers_is_as_loud_as_it_is_bad(event: str, level: int) -> None:
    assert logs.level_of(event) == level


def test_numbers_are_plain_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logs.get_logger().info(
        "closed", code=CloseCode.ABNORMAL_CLOSURE, took_ms=373.39140699990094, is_used=True
    )
    told = json.loads(capsys.readouterr().err)
    assert (told["code"], told["took_ms"], told["is_used"]) == (1006, 373.391, True)


def test_numbers_are_plain_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "console")
    logs.get_logger().info("not shown")
    logs.get_logger().log(logs.level_of("worker_lost"), "worker_lost", code=CloseCode.GOING_AWAY)
    told = capsys.readouterr().err
    assert "not shown" not in told
    assert "warning" in told
    assert "code=1001" in told


@pytest.mark.parametrize(
    ("message", "key", "problem"),
    [
        (
            "dtype: must be one of float32, not 'x'",
            "stages.stt.params.dtype",
            "must be one of float32, not 'x'",
        ),
        ("RuntimeError: no weights", "stages.stt.params", "RuntimeError: no weights"),
        ("the weights are gone", "stages.stt.params", "the weights are gone"),
    ],
)
def test_a_parameter_that_an_engine_names_is_the_setting_that_is_wrong(
    message: str, key: str, problem: str
) -> None:
    error = engine_error("stt", message)
    assert (error.key, error.message) == (key, problem)
