"""What the sessions of a server share (Settings, Facts), and what one client may change of its own (Options)."""

from __future__ import annotations

import math
from typing import Protocol

import msgspec

from voiceserver.config.schema import BackpressureConfig, Config
from voiceserver.events.events import MAX_TURN_MS, ReplyCreate, Tool, TurnDetection
from voiceserver.events.memory import text_bytes, tool_bytes
from voiceserver_workers.ipc.messages import StreamParams


def normalise(text: str) -> str:
    """The words alone, for comparing: no case, no punctuation."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


class ServerSnapshot(msgspec.Struct):
    """What a reply may tell about the server; shared by all its sessions, refreshed about once a second."""

    sessions: int = 0
    talkers: int = 0
    lag_ms: float = 0.0
    local_time: str = ""
    degrade_level: int = 0  # how far the server has retreated; see limit.Ladder
    voices: frozenset[str] = frozenset()  # of the speech engine; empty: it does not tell them
    languages: frozenset[str] = frozenset()  # that it speaks, as primary subtags; empty: the same
    lighter: frozenset[str] = frozenset()  # stages whose new streams open on their lighter engine


class SessionOptions(msgspec.Struct, frozen=True):
    """What a client may change of its session; see ``SessionUpdate``."""

    turn_detection: TurnDetection | None
    instructions: str = ""
    voice: str = ""
    language: str = ""
    speed: float = 1.0
    speaks: bool = True
    transcribes: bool = True
    replies: bool = True
    tools: tuple[Tool, ...] = ()
    tool_choice: str = ""
    max_output_tokens: int | None = None
    temperature: float | None = None
    audible_busy: bool = False

    def memory_bytes(self, common: SessionOptions) -> int:
        """What these options keep that ``common`` does not."""
        own = text_bytes(self.instructions) if self.instructions is not common.instructions else 0
        return own + (sum(map(tool_bytes, self.tools)) if self.tools is not common.tools else 0)

    def voice_params(self, output_rate_hz: int) -> StreamParams:
        """What a stream of tts is opened with."""
        wanted: dict[str, str | int | float | bool] = {}
        if self.language:
            wanted["language"] = self.language
        if self.voice:
            wanted["voice"] = self.voice
        if self.speed and self.speed != 1.0:
            wanted["speed"] = self.speed
        return StreamParams(rate_hz=output_rate_hz, options=wanted)


class FillerAudio(Protocol):
    """What callers hear while a reply is late: one after the other, each after ``after_ms`` of silence."""

    @property
    def texts(self) -> tuple[str, ...]: ...

    @property
    def after_ms(self) -> float: ...

    def audio(self, index: int, rate_hz: int, language: str = "") -> tuple[str, bytes]:
        """The text of filler ``index`` ("" for a tone) and its PCM16 little-endian mono at ``rate_hz``."""


class SessionSettings(msgspec.Struct, frozen=True):
    """``stages``: those that have an engine. ``audio_stage``: the stage that takes a turn's audio, "stt", or "reply" where a
    speech-to-speech engine answers."""

    options: SessionOptions
    backpressure: BackpressureConfig
    stages: tuple[str, ...]
    audio_stage: str = "stt"
    history_items: int = 200
    reply_timeout_ms: float = 10_000
    reply_slow_ms: float = 1_000
    close_timeout_ms: float = 10_000
    audio_grace_ms: float = math.inf
    false_interruption_ms: float = 0
    backchannels: frozenset[str] = frozenset()
    preemptive: bool = False
    fillers: FillerAudio | None = None
    max_manual_turn_ms: float = MAX_TURN_MS
    check_laws: bool = False

    def has_words(self, text: str) -> bool:
        """Whether somebody said something in it: more than a backchannel."""
        words = normalise(text)
        return bool(words) and words not in self.backchannels

    def resumes_replies(self, detection: TurnDetection | None) -> bool:
        """Whether a reply that was cut off by speech without words goes on."""
        is_possible = self.false_interruption_ms > 0 and self.audio_stage != "reply"
        return is_possible and detection is not None and detection.creates_reply

    def speaks(self, create: ReplyCreate, options: SessionOptions) -> bool:
        """Whether the reply that ``create`` asks for has sound."""
        # Not ``can_speak``: one call less for each reply.
        can_speak = "tts" in self.stages or self.audio_stage == "reply"
        return (options.speaks if create.speaks is None else create.speaks) and can_speak

    @property
    def can_hear(self) -> bool:
        return self.audio_stage in self.stages

    @property
    def can_speak(self) -> bool:
        return "tts" in self.stages or self.audio_stage == "reply"

    @classmethod
    def from_config(
        cls, config: Config, *, fillers: FillerAudio | None = None, reply_takes_audio: bool = False
    ) -> SessionSettings:
        stages = tuple(config.stages.by_name())
        session = config.session
        detection = TurnDetection(
            threshold=session.threshold,
            prefix_padding_ms=session.prefix_padding_ms,
            silence_duration_ms=session.silence_duration_ms,
            min_speech_ms=session.min_speech_ms,
            min_silence_ms=session.min_silence_ms,
            max_silence_ms=session.max_silence_ms or None,
            max_turn_ms=session.max_turn_ms,
        )
        return cls(
            options=SessionOptions(
                turn_detection=detection if "vad" in stages else None,
                instructions=session.instructions,
                voice=session.voice,
                language=session.language,
                speaks="tts" in stages or reply_takes_audio,
                transcribes="stt" in stages,
                replies="reply" in stages,
                audible_busy=session.audible_busy,
            ),
            backpressure=config.backpressure,
            stages=stages,
            audio_stage="reply" if reply_takes_audio else "stt",
            history_items=session.history_items,
            reply_timeout_ms=session.reply_timeout_ms,
            close_timeout_ms=config.server.drain_timeout_ms,
            audio_grace_ms=session.audio_grace_ms or math.inf,
            false_interruption_ms=session.false_interruption_ms,
            backchannels=frozenset(filter(None, map(normalise, session.backchannels.split(",")))),
            preemptive=session.preemptive,
            fillers=fillers,
            max_manual_turn_ms=session.max_manual_turn_ms,
            check_laws=config.server.check_laws,
        )
