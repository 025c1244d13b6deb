"""Lanes: which stages want, have, were refused or lost a stream."""

from __future__ import annotations

import math

from voiceserver.errors import Refusal
from voiceserver.session.outbox import Outbox
from voiceserver.session.stage_streams import RETRY_OPEN_MS, StageStreams, StreamLoss
from voiceserver_workers.ipc.messages import RequestKind

STAGES = ("vad", "stt", "reply", "tts")


def test_what_is_needed_and_not_open_is_wanted() -> None:
    stage_streams = StageStreams(STAGES)
    stage_streams.opened("vad")
    assert stage_streams.to_change(STAGES)[1] == ["stt", "reply", "tts"]
    assert stage_streams.to_change(STAGES)[0] == []
    assert stage_streams.to_change(())[1] == []
    assert stage_streams.to_change(())[0] == ["vad"]


def test_a_refused_stage_is_asked_for_again_in_time_or_when_there_is_room() -> None:
    stage_streams = StageStreams(("vad", "stt"))
    refusal = Refusal("full", 2_000.0)
    stage_streams.refuse("vad", refusal, 10.0)
    stage_streams.refuse("stt", refusal, 30.0)
    assert stage_streams.to_change(STAGES)[1] == []
    assert stage_streams.refusal("vad") is refusal
    assert stage_streams.retry_ms == 10.0 + RETRY_OPEN_MS
    stage_streams.retry_due(10.0 + RETRY_OPEN_MS)
    assert stage_streams.to_change(STAGES)[1] == ["vad"]
    stage_streams.retry("stt")
    assert stage_streams.to_change(STAGES)[1] == ["vad", "stt"]
    assert stage_streams.retry_ms == math.inf


def test_a_reset_stage_is_closed_and_opened_afresh() -> None:
    stage_streams = StageStreams(("tts",))
    box = Outbox()
    box.append(RequestKind.DATA, 1, 1, b"x", 1, 0.0)
    stage_streams.opened("tts")
    assert stage_streams.sendable(lambda stage: box) == ["tts"]
    stage_streams.reset("tts")
    assert stage_streams.sendable(lambda stage: box) == []
    assert stage_streams.to_change(STAGES)[0] == ["tts"]
    stage_streams.closed("tts")
    assert stage_streams.to_change(STAGES)[1] == ["tts"]


def test_a_stage_without_a_stream_has_nothing_to_reset() -> None:
    stage_streams = StageStreams(("tts",))
    stage_streams.reset("tts")
    stage_streams.opened("tts")
    assert stage_streams.to_change(STAGES)[0] == []


def test_a_lost_stage_is_back_when_it_has_answered_what_it_had_answered_before() -> None:
    stage_streams = StageStreams(STAGES)
    stage_streams.lose("stt", StreamLoss("worker_lost", 5.0, 400))
    stage_streams.found("stt", 399)
    stage_streams.found("vad", 10_000)
    assert stage_streams.stream_loss("stt") == StreamLoss("worker_lost", 5.0, 400)
    stage_streams.lose("stt", StreamLoss("worker_hung", 50.0, 200))
    assert stage_streams.stream_loss("stt") == StreamLoss("worker_hung", 5.0, 200), (
        "the caller waits since the first loss"
    )
    stage_streams.found("stt", 200)
    assert stage_streams.stream_loss("stt") is None
