"""A conversation made readable: one line per event (time, who, what), and where the time of each turn went."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NamedTuple

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from voiceserver.events.events import (
    ErrorEvent,
    InputIdle,
    PlaybackStop,
    ReplyAudio,
    ReplyDone,
    ReplyFiller,
    ReplyStarted,
    ReplyText,
    ReplyToolCall,
    ServerBusy,
    ServerDraining,
    ServerEvent,
    ServerReady,
    SessionClosing,
    SessionReady,
    SpeechStarted,
    SpeechStopped,
    Timings,
    TranscriptFailed,
    TranscriptFinal,
    TranscriptPartial,
)
from voiceserver_clients.conversation import TurnReport
from voiceserver_clients.recording import BYTES_PER_SAMPLE, Recording

STYLES = {"caller": "cyan", "server": "yellow", "voice": "green", "error": "bold red"}


class Row(NamedTuple):
    """who: caller (what was heard of them), voice (the answer), server, error."""

    who: str
    what: str
    is_dim: bool = False


def describe(event: ServerEvent) -> Row | None:
    """The line that a person reads for ``event``; None for what says nothing to a person."""
    match event:
        case SessionReady():
            return _describe_ready(event)
        case SpeechStarted(interrupted_turn=0):
            return Row("caller", f"starts to speak (at {event.at_ms / 1000:.2f} s of audio)", True)
        case SpeechStarted():
            return Row("caller", f"interrupts the reply of turn {event.interrupted_turn}")
        case SpeechStopped():
            return Row("caller", f"stopped (at {event.at_ms / 1000:.2f} s of audio, {event.reason})", True)
        case TranscriptPartial(text=text):
            return Row("caller", f"… {text}", True) if text else None
        case TranscriptFinal(text=text):
            return Row("caller", f"“{text}”" if text else "(no words understood)")
        case TranscriptFailed() | ErrorEvent():
            return Row("error", f"{event.code}: {event.message}")
        case ReplyText(text=text):
            return Row("voice", f"“{text.strip()}”")
        case ReplyFiller(text=text):
            return Row("voice", f"“{text}” while the answer is late" if text else "(a tone: wait)", True)
        case ReplyToolCall(is_done=True):
            return Row("voice", f"calls {event.name}({event.arguments})")
        case ReplyDone():
            return _describe_done(event)
        case PlaybackStop():
            return Row("voice", f"playback stops after {event.played_ms / 1000:.1f} s", True)
        case ServerBusy() | ServerReady() | ServerDraining() | SessionClosing() | InputIdle():
            return _describe_server(event)
        case _:
            return None


def _describe_ready(ready: SessionReady) -> Row:
    verb = f"resumed at {ready.received_ms / 1000:.2f} s" if ready.is_resumed else "ready"
    rates = f"{ready.input_rate_hz / 1000:g} kHz in, {ready.output_rate_hz / 1000:g} kHz out"
    return Row("server", f"{verb}: session {ready.session_id}, {rates}", True)


def _describe_done(done: ReplyDone) -> Row:
    if done.reason == "failed":
        return Row("error", f"reply failed: {done.code}: {done.message}")
    return Row("voice", f"done ({done.reason}, {done.timings.audio_ms / 1000:.1f} s of speech)", True)


def _describe_server(event: ServerEvent) -> Row | None:
    match event:
        case ServerBusy() if not event.is_late:
            return Row("server", f"busy; degraded for now: {', '.join(event.degraded)}")
        case ServerBusy():
            parts = [f"busy: {event.stage or 'server'}, {event.reason}", f"{event.lag_ms:.0f} ms behind"]
            parts.append(f"credit {event.credit_ms:.0f} ms")
            if event.dropped_ms:
                parts.append(f"{event.dropped_ms:.0f} ms dropped")
            if event.position:
                parts.append(f"place {event.position} in the queue")
            parts.append(f"try again in {event.retry_after_ms / 1000:.1f} s")
            return Row("server", ", ".join(parts))
        case ServerReady():
            return Row("server", "ready again")
        case ServerDraining():
            return Row("server", f"going down in {event.deadline_ms / 1000:.0f} s at the latest")
        case SessionClosing(accounting=sums):
            law = f"{sums.received_ms:.0f} ms received = {sums.consumed_ms:.0f} consumed"
            law += f" + {sums.dropped_ms:.0f} dropped + {sums.discarded_ms:.0f} discarded"
            return Row("server", f"closing ({event.reason}): {law}", True)
        case InputIdle():
            return Row("server", "nothing heard for a while", True)
        case _:
            return None


def make_console() -> Console:
    """A pipe or a log has no width of its own, and a table that folds its figures is of no use there."""
    return Console() if sys.stdout.isatty() else Console(width=120)


class Timeline:
    """Prints rows as they happen. Audio is one line per reply, at its first byte."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._audio_turn = 0

    def show_recording(self, at_ms: float, recording: Recording) -> None:
        length = f"{recording.duration_ms / 1000:.1f} s"
        self.show(at_ms, Row("caller", f"plays {recording.name} ({length}, {recording.origin or 'speech'})"))

    def show_event(self, at_ms: float, event: ServerEvent) -> None:
        if isinstance(event, ReplyStarted):
            self._audio_turn = 0
        if isinstance(event, ReplyAudio):
            if self._audio_turn != event.turn:
                self._audio_turn = event.turn
                self.show(at_ms, Row("voice", "first audio", True))
            return
        row = describe(event)
        if row is not None:
            self.show(at_ms, row)

    def show(self, at_ms: float, row: Row) -> None:
        line = Text.assemble(
            (f"{at_ms / 1000:8.3f}  ", "dim"),
            (f"{row.who:<7} ", STYLES.get(row.who, "")),
            (row.what, "dim" if row.is_dim else ""),
        )
        self._console.print(line, soft_wrap=True)


def latency_table(reports: Iterable[TurnReport]) -> Table:
    """Where the time of each turn went, in ms: the server's measured split, and what this client saw."""
    table = Table(title="Where the time went (ms)", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("turn", justify="right", no_wrap=True)
    table.add_column("heard", max_width=40)  # the only one that may fold: the figures never do
    for name in ("silence", "STT", "reply", "TTS", "first\naudio", "seen\nhere"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("end", no_wrap=True)
    for report in reports:
        timings = report.done.timings if report.done else Timings()
        table.add_row(
            str(report.turn),
            report.transcript or "-",
            _number(timings.endpointing_ms),
            _number(timings.stt_ms),
            _number(timings.reply_ms),
            _number(timings.tts_ms),
            _number(timings.first_audio_ms),
            _number(report.answer_ms),
            report.done.reason if report.done else "went on",
        )
    table.caption = (
        "silence: what endpointing waited for; first audio: from the end-of-turn decision to the first byte"
    )
    table.caption_justify = "left"
    return table


def speech_seconds(pcm: bytes | bytearray, rate_hz: int) -> float:
    return len(pcm) / BYTES_PER_SAMPLE / rate_hz


def _number(value_ms: float | None) -> str:
    return "-" if value_ms is None else f"{value_ms:.1f}" if value_ms < 100 else f"{value_ms:.0f}"
