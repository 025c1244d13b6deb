"""What the dashboard says of the server beside its figures, and to whom."""

from __future__ import annotations

import json

import pytest

from tests.voiceserver.shell import Shell
from voiceserver.server.stage_problems import StageProblems

SECRETS = {"api_key": "sk-secret", "header.Authorization": "Bearer sk-secret"}


def stats(shell: Shell, host: str = "localhost", more: str = "") -> dict[str, dict[str, object]]:
    line = shell.call(f"GET /v1/stats HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode())
    assert line.status == 200
    body: dict[str, dict[str, object]] = json.loads(json.dumps(line.body))
    return body


def test_version_machine_and_age_are_told() -> None:
    about = stats(Shell("vad", "stt"))["about"]
    assert set(about) >= {
        "version",
        "host",
        "pid",
        "python",
        "processes",
        "uptime_ms",
        "stages",
        "limit_moves",
    }


def test_history_is_json_from_the_first_moment() -> None:
    shell = Shell("vad")
    line = shell.call(b"GET /v1/history HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (line.status, set(line.body)) == (200, {"ages_ms", "series"})


@pytest.mark.parametrize(
    ("name", "fields", "kind", "reason", "url"),
    [
        (
            "endpoint_down",
            {"url": "http://llm:1/v1", "reason": "connection refused"},
            "endpoint_down",
            "connection refused",
            "http://llm:1/v1",
        ),
        ("bad_engine", {"message": "model: no such file"}, "bad_engine", "model: no such file", ""),
        ("worker_lost", {"worker": 0, "reason": "worker_lost"}, "worker_lost", "", ""),
        ("worker_lost", {"worker": 0, "reason": "worker_hung"}, "worker_hung", "", ""),
        ("reply_failed", {"code": "engine_failed"}, "reply_failed", "engine_failed", ""),
    ],
)
def test_a_problem_is_told_with_its_cause_until_the_stage_is_well(
    name: str, fields: dict[str, object], kind: str, reason: str, url: str
) -> None:
    now_ms = 1_000.0
    problems = StageProblems(lambda: now_ms)
    assert problems.of("reply") is None
    problems.note(name, {"stage": "reply", **fields})
    now_ms = 4_000.0
    found = problems.of("reply")
    assert found is not None
    assert (found.kind, found.reason, found.url, found.age_ms, found.count) == (kind, reason, url, 3_000, 1)
    problems.note(name, {"stage": "reply", **fields})
    assert problems.of("reply").count == 2  # type: ignore[union-attr]
    assert problems.of("stt") is None
    problems.note("endpoint_up" if url else "worker_ready", {"stage": "reply"})
    assert problems.of("reply") is None


def test_the_answers_that_fail_because_of_it_do_not_hide_the_cause() -> None:
    problems = StageProblems(lambda: 0.0)
    problems.note("endpoint_down", {"stage": "reply", "url": "http://llm/v1", "reason": "connection refused"})
    problems.note("reply_failed", {"stage": "reply", "code": "reply_unreachable"})
    found = problems.of("reply")
    assert found is not None
    assert (found.kind, found.reason) == ("endpoint_down", "connection refused")


def test_how_a_lost_worker_ended_is_told_with_it() -> None:
    problems = StageProblems(lambda: 0.0)
    problems.note("worker_exited", {"stage": "stt", "pid": 6, "status": 71})
    assert problems.of("stt") is None
    problems.note("worker_lost", {"stage": "stt", "reason": "worker_lost"})
    problems.note("worker_exited", {"stage": "stt", "pid": 7, "status": -9})
    found = problems.of("stt")
    assert found is not None
    assert (found.kind, found.reason, found.count) == ("worker_lost", "exit status -9", 1)
    problems.note("worker_ready", {"stage": "stt"})
    problems.note("worker_exited", {"stage": "stt", "pid": 8, "status": -9})  # told late
    assert problems.of("stt") is None


def test_a_worker_that_was_told_to_end_is_no_problem() -> None:
    problems = StageProblems(lambda: 0.0)
    problems.note("worker_stopped", {"stage": "stt", "reason": "stopped"})
    problems.note("endpoint_odd", {"stage": "stt", "url": "http://llm", "field": "usage"})
    assert problems.of("stt") is None
