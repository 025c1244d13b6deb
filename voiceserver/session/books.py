"""The books of a session: the conservation law in ms of audio, and the counters of its closing log line."""

from __future__ import annotations

from voiceserver.events.events import Accounting, StageAccounting
from voiceserver.session.audio_input import AudioInput
from voiceserver.session.outbox import Outbox


def accounting(audio_input: AudioInput | None, audio_stage: str) -> Accounting:
    """``received = consumed + dropped + discarded``, exact to the sample.

    Audio that vad consumed but that stt shed or never got is not consumed: it moves to dropped or discarded. What is
    still buffered counts as discarded; at close that is what it is.
    """
    if audio_input is None:
        return Accounting(0.0, 0.0, 0.0, 0.0)
    outbox, capture, ms = audio_input.outbox, audio_input.capture, audio_input.ms
    late_dropped, late_discarded = capture.dropped, capture.discarded + capture.backlog
    return Accounting(
        received_ms=round(ms(outbox.received), 3),
        consumed_ms=round(ms(outbox.consumed - late_dropped - late_discarded), 3),
        dropped_ms=round(ms(outbox.dropped + late_dropped), 3),
        discarded_ms=round(ms(outbox.discarded + outbox.backlog + late_discarded), 3),
        stages={"vad": _of_stage(outbox, audio_input), audio_stage: _of_stage(capture, audio_input)},
    )


def _of_stage(outbox: Outbox, audio_input: AudioInput) -> StageAccounting:
    return StageAccounting(
        received_ms=round(audio_input.ms(outbox.received), 3),
        consumed_ms=round(audio_input.ms(outbox.consumed), 3),
        dropped_ms=round(audio_input.ms(outbox.dropped), 3),
        discarded_ms=round(audio_input.ms(outbox.discarded + outbox.backlog), 3),
    )
