"""Turn-taking on the audio clock: when a caller starts and stops to speak. Wall time plays no part; where audio stops
to come, the session ends the turn (``AudioInput.quiet_due_ms``).

A window of speech probability moves a two-state machine::

    SILENT   --(min_speech_ms of speech)------------------> SPEAKING   Start(at = first speech window)
    SPEAKING --(silence_duration_ms below the threshold)--> SILENT     Stop(at = last speech window, "silence")
    SPEAKING --(max_turn_ms since the start)--------------> SILENT     Stop(at = now, "max_turn")
    SPEAKING --(PAUSE_MS below the threshold, then speech)-> SPEAKING  Pause, Resume

Where the vad engine judges turns (``smart_turn``), its verdict moves the limit of silence while the pause lasts: down to
``min_silence_ms`` if the caller sounds done, up to ``max_silence_ms`` if not.

A pause is a turn's end that is not sure yet: what stt needs to settle it is done while the rest of the silence is awaited.

Hysteresis as in silero-vad's ``VADIterator``: speech begins at ``threshold`` and ends below ``threshold - 0.15``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from voiceserver.events.events import TurnDetection

HYSTERESIS = 0.15
LIKELY = 0.5  # from here on a turn counts as done, as in pipecat's smart-turn
SLACK_MS = 0.01  # rounding of window positions
PAUSE_MS = 190.0  # six windows: the end of a word, and time left to work ahead before the turn is decided


class Start(NamedTuple):
    at_ms: float
    decided_ms: float


class Stop(NamedTuple):
    """``at_ms``: the end of speech; ``decided_ms``: the audio clock at the decision; ``quiet_ms``: wall time without any audio
    before it."""

    at_ms: float
    decided_ms: float
    reason: Literal["silence", "max_turn", "commit", "close"]
    quiet_ms: float = 0.0


class Pause(NamedTuple):
    """The caller may have ended; ``decided_ms`` is as far as the audio matters if so."""

    at_ms: float
    decided_ms: float


class Resume(NamedTuple):
    """The caller goes on after a pause."""

    decided_ms: float


Decision = Start | Stop | Pause | Resume


class Endpointer:
    __slots__ = (
        "_is_paused",
        "_last_speech_ms",
        "_run_ms",
        "_run_start_ms",
        "_started_ms",
        "_turn_probability",
        "clock_ms",
        "is_speaking",
        "settings",
    )

    def __init__(self, settings: TurnDetection) -> None:
        self.settings = settings
        self.clock_ms = 0.0
        self.is_speaking = False
        self._run_ms = 0.0
        self._run_start_ms = 0.0
        self._started_ms = 0.0
        self._last_speech_ms = 0.0
        self._is_paused = False
        self._turn_probability: float | None = None  # that this pause ends the turn

    def receive_turn(self, at_ms: float, probability: float) -> list[Decision]:
        """The engine judged the pause up to ``at_ms``. A verdict that speech has overtaken changes nothing."""
        if not self.is_speaking or at_ms <= self._last_speech_ms:
            return []
        self._turn_probability = probability
        if self.clock_ms - self._last_speech_ms >= self.silence_limit_ms - SLACK_MS:
            return [self._stop(self._last_speech_ms, "silence")]
        return []

    @property
    def silence_limit_ms(self) -> float:
        """Silence that ends the turn, as the engine judges the pause so far."""
        settings, probability = self.settings, self._turn_probability
        if probability is None:
            return settings.silence_duration_ms
        if probability >= LIKELY:
            return min(settings.min_silence_ms, settings.silence_duration_ms)
        return settings.max_silence_ms or settings.silence_duration_ms

    def receive(
        self, start_ms: float, window_ms: float, probabilities: Sequence[float]
    ) -> list[Decision]:  # hot
        """Windows that were seen before (a replay after a crash) are passed over."""
        if (
            not self.is_speaking
            and not self._run_ms
            and probabilities
            and max(probabilities) < self.settings.threshold
        ):
            end_ms = start_ms + window_ms * len(probabilities)
            if end_ms > self.clock_ms:
                self.clock_ms = end_ms
            return []
        decisions: list[Decision] = []
        for probability in probabilities:
            end_ms = start_ms + window_ms
            if end_ms > self.clock_ms + SLACK_MS:
                decision = self._window(start_ms, end_ms, probability)
                if decision is not None:
                    decisions.append(decision)
            start_ms = end_ms
        return decisions

    def _window(self, start_ms: float, end_ms: float, probability: float) -> Decision | None:
        self.clock_ms = end_ms
        if not self.is_speaking:
            return self._silent_window(start_ms, end_ms, probability)
        silence_ms = end_ms - self._last_speech_ms
        resume: Resume | None = None
        if probability >= self.settings.threshold - HYSTERESIS:
            self._last_speech_ms = end_ms
            self._turn_probability = None
            if self._is_paused:
                self._is_paused = False
                resume = Resume(end_ms)
        elif silence_ms >= self.silence_limit_ms - SLACK_MS:
            return self._stop(self._last_speech_ms, "silence")
        if end_ms - self._started_ms >= self.settings.max_turn_ms:
            return self._stop(end_ms, "max_turn")
        if resume is None and not self._is_paused and silence_ms >= PAUSE_MS - SLACK_MS:
            self._is_paused = True
            return Pause(self._last_speech_ms, end_ms)
        return resume

    def _silent_window(self, start_ms: float, end_ms: float, probability: float) -> Start | None:
        limit = self.settings.threshold - (HYSTERESIS if self._run_ms else 0.0)
        if probability < limit:
            self._run_ms = 0.0
            return None
        if not self._run_ms:
            self._run_start_ms = start_ms
        self._run_ms += end_ms - start_ms
        if self._run_ms < self.settings.min_speech_ms - SLACK_MS:
            return None
        self.is_speaking = True
        self._started_ms = self._run_start_ms
        self._last_speech_ms = end_ms
        self._run_ms = 0.0
        return Start(self._started_ms, end_ms)

    def _stop(self, at_ms: float, reason: Literal["silence", "max_turn", "commit", "close"]) -> Stop:
        self.is_speaking = self._is_paused = False
        self._turn_probability = None
        self._run_ms = 0.0
        return Stop(at_ms, self.clock_ms, reason)

    def stop_now(self, reason: Literal["silence", "commit", "close", "max_turn"]) -> Stop | None:
        """End the caller's turn here. None if nobody is speaking."""
        return self._stop(self._last_speech_ms, reason) if self.is_speaking else None

    def reset(self) -> None:
        """Forget a turn in progress; the clock goes on."""
        self.is_speaking = self._is_paused = False
        self._turn_probability = None
        self._run_ms = 0.0
