"""The stages of a session, a row each: what it takes, and in which outbox that waits.

=========== ====== ========== ==================================================================
stage       hears  outbox     of
=========== ====== ========== ==================================================================
``vad``     yes    outbox     ``AudioInput``: all audio
``stt``     yes    capture    ``AudioInput``: the audio of turns
``reply``   no     ask        the reply, or the preemptive reply
``tts``     no     say        the reply, or the preemptive reply
=========== ====== ========== ==================================================================

A reply engine that hears for itself (speech to speech) has the row of ``stt``: see ``ROWS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from voiceserver.session.outbox import Outbox


class Stage(StrEnum):
    """``hears``: it takes the caller's audio. ``outbox``: where what it takes waits, of an audio input or of a reply."""

    hears: bool
    outbox: Callable[[Any], Outbox]

    def __new__(cls, name: str, hears: bool, outbox: str) -> Stage:
        member = str.__new__(cls, name)
        member._value_ = name
        member.hears = hears
        member.outbox = attrgetter(outbox)
        return member

    VAD = "vad", True, "outbox"
    STT = "stt", True, "capture"
    REPLY = "reply", False, "ask"
    TTS = "tts", False, "say"


_TRANSCRIBED: Final[Mapping[str, Stage]] = {stage: stage for stage in Stage}
_HEARD_BY_REPLY: Final[Mapping[str, Stage]] = {
    Stage.VAD: Stage.VAD,
    Stage.REPLY: Stage.STT,
    Stage.TTS: Stage.TTS,
}
# By the stage that takes a turn's audio.
ROWS: Final[Mapping[str, Mapping[str, Stage]]] = {Stage.STT: _TRANSCRIBED, Stage.REPLY: _HEARD_BY_REPLY}
