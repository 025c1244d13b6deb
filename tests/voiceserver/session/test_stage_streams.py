"""Lanes: which stages want, have, were refused or lost a stream."""

from __future__ import annotations

import math

from voiceserver.errors import Refusal
from voiceserver.session.outbox import Outbox
from voiceserver.session.stage_streams import RETRY_OPEN_MS, Lanes, Loss
from voiceserver_workers.ipc.messages import RequestKind

STAGES = ("vad", "stt", "reply", "tts")


def needs_all(stage: str) -> bool:
    return True


def needs_none(stage: str) -> bool:
    return False


def test_what_is_needed_and_not_open_is_wanted() -> None:
    lanes = Lanes(STAGES)
    lanes.opened("vad")
    assert lanes.wanted(needs_all) == ["stt", "reply", "tts"]
    assert lanes.unwanted(needs_all) == []
    assert lanes.wanted(needs_none) == []
    assert lanes.unwanted(needs_none) == ["vad"]


def test_a_refused_stage_is_asked_for_again_in_time_or_when_there_is_room() -> None:
    lanes = Lanes(("vad", "stt"))
    refusal = Refusal("full", 2_000.0)
    lanes.refuse("vad", refusal, 10.0)
    lanes.refuse("stt", refusal, 30.0)
    assert lanes.wanted(needs_all) == []
    assert lanes.refusal("vad") is refusal
    assert lanes.retry_ms == 10.0 + RETRY_OPEN_MS
    lanes.retry_due(10.0 + RETRY_OPEN_MS)
    assert lanes.wanted(needs_all) == ["vad"]
    lanes.retry("stt")
    assert lanes.wanted(needs_all) == ["vad", "stt"]
    assert lanes.retry_ms == math.inf


def test_a_reset_stage_is_closed_and_opened_afresh() -> None:
    lanes = Lanes(("tts",))
    box = Outbox()
    box.append(RequestKind.DATA, 1, 1, b"x", 1, 0.0)
    lanes.opened("tts")
    assert lanes.sendable(lambda stage: box) == ["tts"]
    lanes.reset("tts")
    assert lanes.sendable(lambda stage: box) == []
    assert lanes.unwanted(needs_all) == ["tts"]
    lanes.closed("tts")
    assert lanes.wanted(needs_all) == ["tts"]


def test_a_stage_without_a_stream_has_nothing_to_reset() -> None:
    lanes = Lanes(("tts",))
    lanes.reset("tts")
    lanes.opened("tts")
    assert lanes.unwanted(needs_all) == []


def test_a_lost_stage_is_back_when_it_has_answered_what_it_had_answered_before() -> None:
    lanes = Lanes(STAGES)
    lanes.lose("stt", Loss("worker_lost", 5.0, 400))
    lanes.found("stt", 399)
    lanes.found("vad", 10_000)
    assert lanes.loss("stt") == Loss("worker_lost", 5.0, 400)
    lanes.lose("stt", Loss("worker_hung", 50.0, 200))
    assert lanes.loss("stt") == Loss("worker_hung", 5.0, 200), "the caller waits since the first loss"
    lanes.found("stt", 200)
    assert lanes.loss("stt") is None
