"""What a session remembers, and the plain questions about it. Transitions are in ``session`` and what it calls.

The parts: ``audio_input``, ``speech_output``, ``stage_streams``, ``busy_monitor``. Each is made when the caller first needs
it, so that an idle session stays small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, Literal

from voiceserver.events import events as ev
from voiceserver.session.audio_input import AudioInput
from voiceserver.session.busy import BusyMonitor, StageDelay
from voiceserver.session.event_queue import EventQueue
from voiceserver.session.outbox import Outbox
from voiceserver.session.preemptive import PreemptiveReply
from voiceserver.session.reply import Interrupted, Reply, ReplyQueue
from voiceserver.session.settings import ServerSnapshot, SessionSettings
from voiceserver.session.speech_output import SpeechOutput
from voiceserver.session.stage import ROWS, Stage
from voiceserver.session.stage_streams import StageStreams
from voiceserver.session.transcripts import Transcripts


class Phase(Enum):
    OPENING = "opening"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


# What a session that waits for nothing has, in place of a dictionary of its own.
_NO_DEADLINES: Final[Mapping[DueName, float]] = MappingProxyType({})
DueName = Literal["close", "hear", "busy", "retry", "answer", "quiet", "idle", "resume", "filler"]
VAD, STT, REPLY, TTS = Stage.VAD, Stage.STT, Stage.REPLY, Stage.TTS
OPEN, CLOSED = Phase.OPEN, Phase.CLOSED  # a look-up on an Enum costs more than the rest of a test


class SessionState:
    __slots__ = (
        "_speech_output",
        "close_code",
        "close_reason",
        "deadline_ms",
        "deadlines",
        "audio_input",
        "server_snapshot",
        "busy_monitor",
        "gone",
        "preemptive_reply",
        "hear_until_ms",
        "idle_from_ms",
        "input_rate_hz",
        "is_closed",
        "key",
        "interrupted",
        "is_output_held",
        "is_resting",
        "is_settled",
        "stage_streams",
        "last_speech_turn",
        "options",
        "outgoing",
        "output_rate_hz",
        "phase",
        "place",
        "queue",
        "replied_turn",
        "resume_token",
        "session_id",
        "settings",
        "transcripts",
        "turn",
    )

    def __init__(
        self,
        session_id: str,
        settings: SessionSettings,
        server_snapshot: ServerSnapshot,
        *,
        input_rate_hz: int,
        output_rate_hz: int,
        resume_token: str = "",
    ) -> None:
        self.session_id = session_id
        self.input_rate_hz = input_rate_hz
        self.output_rate_hz = output_rate_hz
        self.key = ""  # the name of the API key that it came with
        self.resume_token = resume_token
        self.settings = settings
        self.options = settings.options
        self.server_snapshot = server_snapshot
        self.phase = Phase.OPENING
        self.is_closed = False
        self.close_code = 1000
        self.close_reason = ""
        self.hear_until_ms = -math.inf  # of a server that is going: the turn in progress may be spoken out
        self.deadlines: Mapping[DueName, float] = (
            _NO_DEADLINES  # lowered where the cause changes; exact after each timer
        )
        self.deadline_ms = math.inf  # the earliest of them
        self.idle_from_ms = math.inf  # since when neither side has said anything
        self.turn = 0
        self.last_speech_turn = 0
        self.replied_turn = 0
        self.is_output_held = False
        self.is_resting = False  # nobody is connected: streams with nothing to do are for others
        # Nothing but audio came or went since the shell last asked for the stages wanted and unwanted.
        self.is_settled = False
        self.outgoing = EventQueue()
        self.audio_input: AudioInput | None = None
        self.transcripts: Transcripts | None = None
        self.stage_streams: StageStreams | None = None
        self.busy_monitor: BusyMonitor | None = None
        self.gone = ""  # the stage of which ``outage`` told the caller that it has no worker
        self.place: StageDelay | None = None  # in the waiting room
        self.interrupted: Interrupted | None = None
        self.preemptive_reply: PreemptiveReply | None = None  # only while there is no reply
        self.queue: ReplyQueue | None = None  # they wait for a transcript or for another reply
        self._speech_output: SpeechOutput | None = None

    @property
    def is_open(self) -> bool:
        return self.phase is Phase.OPEN

    def is_finishing_turn(self, now_ms: float) -> bool:
        """The server is going, and the caller may still say the sentence to its end."""
        audio_input = self.audio_input
        return (
            now_ms < self.hear_until_ms
            and audio_input is not None
            and (audio_input.capturing_turn > 0 or audio_input.outbox.backlog > 0)
        )

    @property
    def stage_of_turn(self) -> Literal["idle", "listening", "thinking", "speaking"]:
        """In which state of ``turn_table`` the conversation is."""
        if self.audio_input is not None and self.audio_input.capturing_turn:
            return "listening"
        reply = self.reply
        if reply is not None:
            return "speaking" if reply.samples_sent else "thinking"
        return "thinking" if self.transcripts else "idle"

    @property
    def speech_output(self) -> SpeechOutput:
        if self._speech_output is None:
            self._speech_output = SpeechOutput(
                self.outgoing, self.settings.history_items, self.output_rate_hz, self.server_snapshot
            )
        return self._speech_output

    @property
    def has_speech_output(self) -> bool:
        return self._speech_output is not None

    @property
    def reply(self) -> Reply | None:
        return self._speech_output.reply if self._speech_output is not None else None

    def enqueue_reply(self, create: ev.ReplyCreate) -> None:
        if self.queue is None:
            self.queue = ReplyQueue()
        self.queue.append(create)

    @property
    def the_stage_streams(self) -> StageStreams:
        if self.stage_streams is None:
            self.stage_streams = StageStreams(self.settings.stages)
        return self.stage_streams

    def outbox_of(self, stage: str) -> Outbox | None:  # hot
        row = ROWS[self.settings.audio_stage].get(stage)
        if row is None:
            return None
        if row.hears:
            return row.outbox(self.audio_input) if self.audio_input is not None else None
        answer: Reply | PreemptiveReply | None = self.preemptive_reply
        if self._speech_output is not None and self._speech_output.reply is not None:
            answer = self._speech_output.reply
        return row.outbox(answer) if answer is not None else None

    def demand(self) -> dict[str, bool]:  # hot
        """The stages that have something to do. True: the caller waits for it; False: only a preemptive reply does."""
        found: dict[str, bool] = {}
        if self.phase is CLOSED:
            return found
        settings, audio_input, transcripts = self.settings, self.audio_input, self.transcripts
        if audio_input is not None:
            if audio_input.endpointer is not None and (not self.is_resting or audio_input.outbox.backlog):
                found[VAD] = True
            if (
                transcripts
                and (audio_input.capturing_turn or not audio_input.capture.is_empty)
                and (not self.is_resting or audio_input.capture.backlog or transcripts.is_pending)
            ):
                found[settings.audio_stage] = True
        speech_output = self._speech_output
        reply = speech_output.reply if speech_output is not None else None
        if reply is not None:
            if not reply.is_finished_asking and settings.audio_stage != REPLY:
                found[REPLY] = True
            if reply.needs_tts:
                found[TTS] = True
        elif self.preemptive_reply is not None:
            if not self.preemptive_reply.is_finished_asking:
                found.setdefault(REPLY, False)
            if self.preemptive_reply.request_key.speaks:
                found[TTS] = False
        return found

    @property
    def is_filler_unwanted(self) -> bool:
        """The caller speaks, takes no audio now, or hears already why it waits."""
        audio_input, busy_monitor = self.audio_input, self.busy_monitor
        return (
            self.place is not None
            or self.is_output_held
            or (audio_input is not None and audio_input.capturing_turn > 0)
            # Who is told aloud that the server is busy need not hear the same in other words.
            or (self.options.audible_busy and busy_monitor is not None and busy_monitor.is_busy)
        )

    @property
    def is_well(self) -> bool:  # hot
        """Nothing is announced as late, lost or refused."""
        busy_monitor, stage_streams = self.busy_monitor, self.stage_streams
        return (busy_monitor is None or busy_monitor.is_at_rest) and (
            stage_streams is None or stage_streams.is_well
        )

    @property
    def only_listens(self) -> bool:  # hot
        """Nothing is said to the caller and nothing is owed: all there can be is audio that vad or stt has not taken."""
        speech_output, detection, transcripts = (
            self._speech_output,
            self.options.turn_detection,
            self.transcripts,
        )
        return (
            self.phase is OPEN
            and (transcripts is None or transcripts.pending_since_ms is None)
            and (speech_output is None or speech_output.reply is None)
            and not self.queue
            and self.place is None
            and self.preemptive_reply is None
            and self.interrupted is None
            and (detection is None or detection.idle_timeout_ms is None)
            and "close" not in self.deadlines
            and self.is_well
        )

    def lower_deadline(self, name: DueName, due_ms: float) -> None:
        """The cause of the deadline ``name`` has changed: it is due at ``due_ms`` or later."""
        if due_ms < self.deadlines.get(name, math.inf):
            self.deadlines = {**self.deadlines, name: due_ms}
            if due_ms < self.deadline_ms:
                self.deadline_ms = due_ms

    @property
    def the_busy_monitor(self) -> BusyMonitor:
        if self.busy_monitor is None:
            self.busy_monitor = BusyMonitor(self.settings.backpressure)
        return self.busy_monitor

    @property
    def goes_without_partials(self) -> bool:
        """Partial transcripts are the first thing that a server under pressure leaves undone."""
        return self.server_snapshot.degrade_level > 0 or (
            self.busy_monitor is not None and self.busy_monitor.is_degraded
        )

    @property
    def credit_ms(self) -> float:
        """How much audio the client may send before the oldest would be shed."""
        lag_ms = self.audio_input.lag_ms if self.audio_input is not None else 0.0
        return max(self.settings.backpressure.max_backlog_ms - lag_ms, 0.0)

    def accounting(self) -> ev.Accounting:
        """What became of the caller's audio, in ms; see ``AudioInput.accounting``."""
        if self.audio_input is None:
            return ev.Accounting(0.0, 0.0, 0.0, 0.0)
        return self.audio_input.accounting(self.settings.audio_stage)

    @property
    def memory_bytes(self) -> int:
        """About what the session keeps in memory: audio, conversation, instructions and tools, and the replies that are made,
        wait or may yet go on. What all sessions share is not counted."""
        total = self.options.memory_bytes(self.settings.options)
        if self.queue is not None:
            total += self.queue.memory_bytes
        if self.audio_input is not None:
            total += self.audio_input.memory_bytes
        if self.preemptive_reply is not None:
            total += self.preemptive_reply.memory_bytes
        if self._speech_output is not None:
            total += self._speech_output.memory_bytes
            kept = self._speech_output.kept_replies
            if self.interrupted is not None and self.interrupted.reply not in kept:
                total += self.interrupted.reply.memory_bytes
        return total

    def counters(self) -> dict[str, float]:
        """Every counter of the session, for its closing log line."""
        speech_output, books = self._speech_output, self.accounting()
        spoken = speech_output.samples_sent if speech_output is not None else 0
        return {
            "turns": self.turn,
            "replies": speech_output.replies if speech_output is not None else 0,
            "replies_ahead": speech_output.replies_ahead if speech_output is not None else 0,
            "interruptions": speech_output.interruptions if speech_output is not None else 0,
            "fillers": speech_output.fillers if speech_output is not None else 0,
            "reply_audio_ms": round(spoken * 1000.0 / self.output_rate_hz, 1),
            "busy_signals": self.busy_monitor.signals if self.busy_monitor is not None else 0,
            "received_ms": books.received_ms,
            "consumed_ms": books.consumed_ms,
            "dropped_ms": books.dropped_ms,
            "discarded_ms": books.discarded_ms,
        }
