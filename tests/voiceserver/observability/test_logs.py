"""What is logged: how loud, and in numbers that can be read."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from websockets.frames import CloseCode

from voiceserver.errors import engine_error
from voiceserver.observability import logs


@pytest.fixture(autouse=True)
def _logs_as_before() -> object:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def written(capfd: pytest.CaptureFixture[str]) -> str:
    """What was logged, without losses of other tests."""
    logs.flush()
    lines = capfd.readouterr().err.splitlines(keepends=True)
    return "".join(line for line in lines if "log lines lost" not in line)


@pytest.mark.parametrize(
    ("event", "level"),
    [
        ("worker_hung", logging.WARNING),
        ("worker_lost", logging.WARNING),
        ("quarantined", logging.WARNING),
        ("bad_engine", logging.ERROR),
        ("no_channel", logging.ERROR),
        ("fork_failed", logging.ERROR),
        ("worker_ready", logging.INFO),
        ("worker_stopped", logging.INFO),
    ],
)
def test_what_happens_to_workers_is_as_loud_as_it_is_bad(event: str, level: int) -> None:
    assert logs.level_of(event) == level


def test_numbers_are_plain_in_json(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logs.get_logger().info(
        "closed", code=CloseCode.ABNORMAL_CLOSURE, took_ms=373.39140699990094, is_used=True
    )
    told = json.loads(written(capfd))
    assert (told["code"], told["took_ms"], told["is_used"]) == (1006, 373.391, True)


def test_numbers_are_plain_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "console")
    logs.get_logger().info("not shown")
    logs.get_logger().log(logs.level_of("worker_lost"), "worker_lost", code=CloseCode.GOING_AWAY)
    told = written(capfd)
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


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no words for it")


def test_no_logging_call_raises_whatever_it_is_given(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    before = logs.LOST_LINES.counts()[logs.LOG_FAILED]
    log = logs.get_logger().bind(process=1)
    log.info("odd", what=Unprintable())
    log.error("odd too", exc_info=Unprintable())
    log.log(logging.WARNING, "fine", text="\udc80")
    assert json.loads(written(capfd).splitlines()[-1])["event"] == "fine"
    assert logs.LOST_LINES.counts()[logs.LOG_FAILED] > before


def test_what_libraries_log_comes_in_the_same_form(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    try:
        raise ValueError("their fault")
    except ValueError:
        logging.getLogger("some.package").exception("it %s", "broke")
    logging.getLogger("some.package").warning("too %d", "few", "many")
    told = [json.loads(line) for line in written(capfd).splitlines()]
    assert [(one["event"], one["logger"], one["level"]) for one in told] == [
        ("it broke", "some.package", "error")
    ]
    assert "their fault" in told[0]["exception"]


def test_while_a_server_runs_what_is_printed_goes_the_same_way(capfd: pytest.CaptureFixture[str]) -> None:
    with logs.running("info", "json"):
        print("to stdout")
        print("to stderr", file=sys.stderr)
        fd = logs.worker_output()
        assert fd is not None
        os.write(fd, b"ERROR worker[7] engine: it broke\n")
    found = capfd.readouterr()
    assert found.out == "to stdout\n"
    plain, worker = (line for line in found.err.splitlines() if "log lines lost" not in line)
    assert plain == "to stderr"
    told = json.loads(worker)
    assert (told["event"], told["level"], told["text"]) == (
        "worker output",
        "error",
        "ERROR worker[7] engine: it broke",
    )
    assert logs.worker_output() is None


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_process_without_stderr_never_writes_its_log_into_something_else(
    closed: str, tmp_path: Path
) -> None:
    script = (
        "import os; from voiceserver.observability import log_writer, logs; log_writer.open_standard_streams();"
        f"f = open({str(tmp_path / 'call')!r}, 'w'); logs.configure('info', 'json'); logs.get_logger().info('x');"
        "print('y'); logs.flush(); raise SystemExit(f.fileno())"
    )
    shell = ["/bin/sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, script]
    done = subprocess.run(shell, check=False)
    assert done.returncode >= 3
    assert (tmp_path / "call").read_bytes() == b""
