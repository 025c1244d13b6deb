"""The main function of a worker process, from the fork to ``os._exit``.

Rule: a worker never outlives its server. It dies with its parent (Linux: PR_SET_PDEATHSIG), and everywhere when the
lifeline, a socket whose other end only the server holds, reaches its end.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from voiceserver_workers import registry
from voiceserver_workers.batcher import BatchLimits
from voiceserver_workers.engine import Engine
from voiceserver_workers.ipc.channel import FlightState, WorkerEnd
from voiceserver_workers.ipc.messages import (
    CONTROL_STREAM,
    OUT_OF_MEMORY,
    Failure,
    ResultKind,
    WorkerSpec,
    encode,
)
from voiceserver_workers.ipc.platform import PORTABLE, die_with_parent
from voiceserver_workers.worker import Worker, merge_bytes

log = logging.getLogger(__name__)

EXIT_CONFIG = 78  # EX_CONFIG: the engine cannot be made with these params
EXIT_MEMORY = 71  # EX_OSERR: out of memory
# The longest sleep on the bell: with streams, for a sign of life (``beat``) ten times a second; without, nobody asks for one.
IDLE_WAIT_MS = 100.0
REST_MS = 10_000.0
ROOM_WAIT_MS = 0.5
NAP_MS = 2.0  # while a batch waits for company: how long a request that need not wait may go unseen
# Below the loop that feeds it: where cores are short, a caller is answered before a batch is computed.
NICENESS = 5
LIFELINE_EVERY = 64  # rounds between two looks at the lifeline
_LAST_WORDS_TIMEOUT_MS = 200.0


def ignore_terminal_signals() -> None:
    """Ctrl-C and a supervisor's SIGTERM go to the whole group; the server decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def run_worker(spec: WorkerSpec, channel_fds: Sequence[int], lifeline_fd: int, parent_pid: int) -> NoReturn:
    """Be a worker until told to stop. Never returns and runs no exit handlers of the process it was forked from."""
    code = 1
    os.nice(NICENESS)
    try:
        if spec.is_portable or not die_with_parent(parent_pid):
            threading.Thread(target=_die_with_lifeline, args=(lifeline_fd,), daemon=True).start()
        end = WorkerEnd.attach(channel_fds, platform=PORTABLE if spec.is_portable else None)
        for fd in channel_fds:
            os.close(fd)
        code = _serve(spec, end, lifeline_fd)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        log.exception("worker failed")
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _serve(spec: WorkerSpec, end: WorkerEnd, lifeline_fd: int) -> int:
    end.record_state(FlightState.LOADING)
    try:
        engine = _make_engine(spec)
        worker = Worker(
            engine,
            end,
            BatchLimits(spec.max_batch_size, spec.max_wait_ms, merge_bytes(engine.info)),
            step_timeout_ms=spec.step_timeout_ms,
            clock_ms=_now_ms,
        )
        worker.start()
        _loop(worker, end, lifeline_fd)
    except MemoryError:
        _last_words(end, OUT_OF_MEMORY)
        return EXIT_MEMORY
    except _BadEngine as error:
        _last_words(end, Failure("bad_engine", str(error)))
        return EXIT_CONFIG
    worker.stop()
    end.record_state(FlightState.STOPPED)
    end.close()
    return 0


def _now_ms() -> float:
    return time.monotonic_ns() / 1e6


def _loop(worker: Worker, end: WorkerEnd, lifeline_fd: int) -> None:
    lifeline = select.poll()
    lifeline.register(lifeline_fd, select.POLLIN)
    rounds = 0
    while not worker.is_stopping:
        rounds += 1
        if rounds % LIFELINE_EVERY == 0 and lifeline.poll(0):
            return
        now_ms = _now_ms()
        if worker.poll(now_ms):
            continue
        due_ms = worker.due_ms()
        if worker.is_blocked():
            time.sleep(ROOM_WAIT_MS / 1000)
        elif due_ms is None:
            if end.wait(IDLE_WAIT_MS if worker.has_streams() else REST_MS, (lifeline_fd,)):
                return
        elif due_ms > now_ms:
            # Not end.wait: the company would ring for each of its requests, which costs both sides more than it brings.
            time.sleep(min(NAP_MS, due_ms - now_ms) / 1000)


class _BadEngine(Exception):
    """The engine cannot be made; the text is for whoever wrote the configuration."""


def _make_engine(spec: WorkerSpec) -> Engine:
    try:
        engine = registry.load(spec.engine)(spec.params)
    except MemoryError:
        raise
    except Exception as error:
        # The message of a ValueError is for whoever configured it, and the server tells it; others are for the engine's author.
        if not isinstance(error, ValueError):
            log.exception("engine %s cannot be made", spec.engine)
        raise _BadEngine(describe_error(error)) from error
    limit_torch_threads()
    gc.collect()
    gc.freeze()
    return engine


def describe_error(error: Exception) -> str:
    """One line for a configuration error: what the engine said, and the kind of error where that helps."""
    text = str(error).strip() or "no further explanation"
    if isinstance(error, (ValueError, registry.EngineLookupError)):
        return text
    return f"{type(error).__name__}: {text}"


def limit_torch_threads() -> None:
    """One thread per worker: several workers with a pool of threads each only fight over the same cores."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


def _last_words(end: WorkerEnd, failure: Failure) -> None:
    end.send(ResultKind.FAILED, CONTROL_STREAM, 0, 0, encode(failure), timeout_ms=_LAST_WORDS_TIMEOUT_MS)
    end.ring_bell()


def _die_with_lifeline(lifeline_fd: int) -> None:
    poll = select.poll()
    poll.register(lifeline_fd, select.POLLIN)
    poll.poll()
    os._exit(0)
