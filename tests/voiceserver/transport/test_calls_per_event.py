"""How many Python calls the frequent events of a conversation cost, from the bytes to the write: a ratchet, not a timing.

What costs calls is asking again what is known. Lower a number when the product got better; never raise one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest

from tests.voiceserver.shell import AnsweredStream, Line, Shell, text, upgrade
from voiceserver_workers.ipc.messages import Record, ResultKind

PRODUCT = ("/voiceserver/", "/voiceserver_workers/")
HARNESS = ("/tests/", "/voiceserver/testing/")
WIRES = {
    "realtime": ("/v1/realtime", {"type": "response.create"}),
    "native": ("/v1/stream", {"type": "reply.create"}),
}
# Wire: a reply that is asked for; a drain with its text and its end; a drain with its audio and the end of that.
MOST = {"realtime": (132, 132, 165), "native": (108, 86, 92)}


def product_calls(run: Callable[[], object]) -> int:
    """Calls of this project's Python functions; what libraries do inside is theirs."""
    calls = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        name = frame.f_code.co_filename
        if (
            event == "call"
            and any(one in name for one in PRODUCT)
            and not any(one in name for one in HARNESS)
        ):
            calls += 1

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


def deliver(stream: AnsweredStream, *records: Record) -> None:
    """What one drain of a ring brings."""
    for record in records:
        stream.owner.on_result(stream.pool.stage, record)
    stream.owner.on_tick()


def measure(shell: Shell, line: Line, request: dict[str, str]) -> tuple[int, int, int]:
    asked = product_calls(lambda: line.receive(text(request)))
    reply, tts = (shell.pools[stage].streams[-1] for stage in ("reply", "tts"))
    turn = reply.sent[-1][1]
    words = Record(ResultKind.TEXT, 1, turn, 1, b"Hello there.")
    answered = product_calls(lambda: deliver(reply, words, Record(ResultKind.DONE, 1, turn, 1, b"")))
    assert tts.sent[-1][3] == b"Hello there."
    pcm = Record(ResultKind.AUDIO, 1, turn, 1, bytes(4_800))
    spoken = product_calls(lambda: deliver(tts, pcm, Record(ResultKind.DONE, 1, turn, 1, b"")))
    shell.loop.advance(3_000)
    return asked, answered, spoken


@pytest.mark.parametrize("wire", WIRES)
def test_events_of_a_reply_cost_few_calls(wire: str) -> None:
    path, request = WIRES[wire]
    shell = Shell("vad", "stt", "reply", "tts", ping_interval_ms=0, check_laws=False)
    line = shell.call(upgrade(path))
    measure(shell, line, request)  # the first of a call makes what the others use
    costs = measure(shell, line, request)
    assert all(cost <= most for cost, most in zip(costs, MOST[wire], strict=True)), f"{costs} of {MOST[wire]}"
    assert max(costs[:2]) < 150
