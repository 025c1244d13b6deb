"""A conversation from recordings: speak one, fall silent, listen to the answer, go on with the next.

A recording is sent as a microphone would send it: on an absolute clock (a late chunk does not make the next one late), with
silence after the words until the server has found the end of the turn and answered. :class:`ConversationState` is the pure part:
it follows the events and knows when everything that was said has been answered.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from voiceserver.events.events import (
    InputCommitted,
    ReplyAudio,
    ReplyDone,
    ReplyFiller,
    ReplyStarted,
    ServerBusy,
    ServerEvent,
    ServerReady,
    SessionReady,
    SpeechStarted,
    SpeechStopped,
    TranscriptFailed,
    TranscriptFinal,
)
from voiceserver_clients.recording import BYTES_PER_SAMPLE, Recording
from voiceserver_clients.voice import VoiceClient

CHUNK_MS = 20
FAST_CHUNK_MS = 100
FAST_SILENCE_MS = 1_500  # behind a recording sent at full speed, so that endpointing has its silence at once
QUIET_MS = (
    500  # longer than the server's busy deadline: no word for so long means that all audio was consumed
)
EMPTY_TURN_MS = 1_500  # a turn without words may go unanswered; this long is a reply waited for

OnEvent = Callable[[float, ServerEvent], None]


@dataclass(slots=True)
class TurnReport:
    """One turn as the client saw it; times in ms since the conversation's start, None where that did not happen."""

    turn: int
    started_ms: float = 0.0
    stopped_ms: float | None = None
    final_ms: float | None = None
    first_audio_ms: float | None = None
    done_ms: float | None = None
    transcript: str = ""
    is_answering: bool = False
    is_filled: bool = False  # the next audio is a filler, and no answer
    reply: str = ""
    audio_bytes: int = 0
    done: ReplyDone | None = None

    @property
    def answer_ms(self) -> float | None:
        """From hearing that the turn ended to the first reply audio, on the client's clock."""
        if self.stopped_ms is None or self.first_audio_ms is None:
            return None
        return self.first_audio_ms - self.stopped_ms


@dataclass(slots=True)
class ConversationState:
    """What has been said and what has been answered, from events alone. Time is an argument."""

    turns: dict[int, TurnReport] = field(default_factory=dict)
    reply_audio: bytearray = field(default_factory=bytearray)
    output_rate_hz: int = 24_000
    is_busy: bool = False
    is_hearing: bool = False
    playing_until_ms: float = 0.0
    last_event_ms: float = 0.0

    def receive_event(self, event: ServerEvent, now_ms: float) -> None:
        self.last_event_ms = now_ms
        match event:
            case SessionReady(output_rate_hz=rate_hz):
                self.output_rate_hz = rate_hz
            case SpeechStarted(turn=turn):
                self.is_hearing = True
                self._turn(turn).started_ms = now_ms
                if event.interrupted_turn:
                    self.playing_until_ms = now_ms
            case SpeechStopped(turn=turn):
                self.is_hearing = False
                self._turn(turn).stopped_ms = now_ms
            case InputCommitted(turn=turn):
                self._turn(turn)
            case TranscriptFinal(turn=turn, text=text):
                report = self._turn(turn)
                report.transcript, report.final_ms = text, now_ms
            case TranscriptFailed(turn=turn):
                self._turn(turn).final_ms = now_ms
            case ReplyStarted(turn=turn):
                self._turn(turn).is_answering = True
            case ReplyFiller(turn=turn):
                self._turn(turn).is_filled = True
            case ReplyAudio(turn=turn, pcm=pcm):
                self._hear(self._turn(turn), pcm, now_ms)
            case ReplyDone(turn=turn):
                report = self._turn(turn)
                report.done, report.done_ms = event, now_ms
                report.reply = event.text
            case ServerBusy():
                self.is_busy = True
            case ServerReady():
                self.is_busy = False
            case _:
                pass

    def is_settled(self, now_ms: float) -> bool:
        """Nothing is being heard, and all is answered that will be: a turn into which the caller went on speaking before its
        reply began is answered with the next one, and a turn without words may stay unanswered."""
        if self.is_hearing or any(
            report.is_answering and report.done is None for report in self.turns.values()
        ):
            return False
        return not self.turns or not self._is_waiting(self.turns[max(self.turns)], now_ms)

    def _is_waiting(self, last: TurnReport, now_ms: float) -> bool:
        if last.done is not None:
            return False
        has_no_words = last.final_ms is not None and not last.transcript
        return not has_no_words or now_ms - (last.final_ms or now_ms) < EMPTY_TURN_MS

    @property
    def is_answered(self) -> bool:
        """The last thing that was said has its answer, and no answer failed."""
        if not self.turns or self.turns[max(self.turns)].done is None:
            return False
        return not any(
            report.done is not None and report.done.reason == "failed" for report in self.turns.values()
        )

    def _hear(self, report: TurnReport, pcm: bytes, now_ms: float) -> None:
        if report.first_audio_ms is None and not report.is_filled:
            report.first_audio_ms = now_ms
        report.is_filled = False
        report.audio_bytes += len(pcm)
        self.reply_audio += pcm
        length_ms = len(pcm) / BYTES_PER_SAMPLE * 1000 / self.output_rate_hz
        self.playing_until_ms = max(self.playing_until_ms, now_ms) + length_ms

    def _turn(self, turn: int) -> TurnReport:
        return self.turns.setdefault(turn, TurnReport(turn))


class Pacer:
    """An absolute clock for audio: position ``p`` is due ``p`` ms after the start, however late the one before was."""

    def __init__(self, start_ms: float) -> None:
        self._start_ms = start_ms

    async def until(self, position_ms: float) -> None:
        loop = asyncio.get_running_loop()
        late_ms = loop.time() * 1000 - self._start_ms - position_ms
        await asyncio.sleep(max(0.0, -late_ms) / 1000)


class Conversation:
    """Speaks recordings over one session and follows the answers. ``on_event`` sees every event with its time in ms."""

    def __init__(
        self,
        client: VoiceClient,
        on_event: OnEvent,
        *,
        is_realtime: bool = True,
        waits_for_playback: bool = True,
        patience_ms: float = 15_000,
        on_speak: Callable[[float, Recording], None] | None = None,
    ) -> None:
        self.state = ConversationState()
        self._client = client
        self._on_event = on_event
        self._on_speak = on_speak
        self._is_realtime = is_realtime
        self._waits_for_playback = waits_for_playback and is_realtime
        self._patience_ms = patience_ms
        self._start_s = time.monotonic()
        self._position_ms = 0.0

    def now_ms(self) -> float:
        """Since the conversation began."""
        return (time.monotonic() - self._start_s) * 1000

    async def hold(self, recordings: Sequence[Recording]) -> list[TurnReport]:
        """Speak all of them, one after the other is answered, and close. Raises ConnectionLost or Refused.

        A recording that stays without an answer for ``patience_ms`` is given up; its report then has no ``done``.
        """
        listening = asyncio.create_task(self._listen(), name="listen")
        speaking = asyncio.create_task(self._speak(recordings), name="speak")
        try:
            await asyncio.wait({listening, speaking}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                listening.result()  # a loss of the connection says more than the send that failed by it
            await speaking
            await listening
        finally:
            for task in (listening, speaking):
                task.cancel()
            await asyncio.gather(listening, speaking, return_exceptions=True)
        return [self.state.turns[turn] for turn in sorted(self.state.turns)]

    async def _listen(self) -> None:
        async for event in self._client.events():
            now_ms = self.now_ms()
            self.state.receive_event(event, now_ms)
            self._on_event(now_ms, event)

    async def _speak(self, recordings: Sequence[Recording]) -> None:
        await self._client.wait_ready()
        pacer = Pacer(asyncio.get_running_loop().time() * 1000)
        for recording in recordings:
            if self._on_speak is not None:
                self._on_speak(self.now_ms(), recording)
            if self._is_realtime:
                await self._send_paced(recording.pcm, pacer)
            else:
                await self._send_fast(recording.pcm)
                pacer = Pacer(asyncio.get_running_loop().time() * 1000 - self._position_ms)
            await self._stay_silent(pacer)
        await self._client.finish()

    async def _send_paced(self, pcm: bytes, pacer: Pacer) -> None:
        size = _bytes_of(CHUNK_MS, self._client.rate_hz)
        for start in range(0, len(pcm), size):
            chunk = pcm[start : start + size]
            self._position_ms += _ms_of(len(chunk), self._client.rate_hz)
            await pacer.until(self._position_ms)  # a chunk exists once it has been spoken
            await self._client.send_audio(chunk)

    async def _send_fast(self, pcm: bytes) -> None:
        pcm += bytes(_bytes_of(FAST_SILENCE_MS, self._client.rate_hz))
        size = _bytes_of(FAST_CHUNK_MS, self._client.rate_hz)
        for start in range(0, len(pcm), size):
            await self._client.send_audio(pcm[start : start + size])
        self._position_ms += _ms_of(len(pcm), self._client.rate_hz)

    async def _stay_silent(self, pacer: Pacer) -> None:
        """Send silence until all is answered and heard, or patience ends."""
        since_ms = self.now_ms()
        silence = bytes(_bytes_of(CHUNK_MS, self._client.rate_hz))
        while not self._may_go_on(since_ms):
            self._position_ms += CHUNK_MS
            await pacer.until(self._position_ms)
            await self._client.send_audio(silence)

    def _may_go_on(self, silent_since_ms: float) -> bool:
        now_ms = self.now_ms()
        state = self.state
        if now_ms - max(silent_since_ms, state.last_event_ms) > self._patience_ms:
            return True
        if now_ms - silent_since_ms < EMPTY_TURN_MS and not self._is_answered_since(silent_since_ms):
            return False
        if state.is_busy or not state.is_settled(now_ms):
            return False
        if not self._is_realtime:
            return now_ms - max(silent_since_ms, state.last_event_ms) >= QUIET_MS
        return not self._waits_for_playback or now_ms >= state.playing_until_ms

    def _is_answered_since(self, since_ms: float) -> bool:
        return any((report.done_ms or -math.inf) >= since_ms for report in self.state.turns.values())


def _bytes_of(duration_ms: float, rate_hz: int) -> int:
    return int(duration_ms * rate_hz / 1000) * BYTES_PER_SAMPLE


def _ms_of(size: int, rate_hz: int) -> float:
    return size / BYTES_PER_SAMPLE * 1000 / rate_hz
