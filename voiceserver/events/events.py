"""The neutral events between a codec and a session: what callers ask, what the server says. No wire knows another.

Input events go into ``Session.receive_event``; audio goes beside them through ``Session.receive_audio`` because it is the hot
path. Output events come out of ``Session.events_to_send``; a codec turns each into zero or more frames of its wire.
``*_ms`` on the audio clock count from the first sample received. ``turn`` numbers one exchange: what the caller said
and what was answered; it only grows. ``item_id`` names are the codec's affair: neutral events carry turns.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from voiceserver.events.fields import (
    MAX_TOOLS,
    Language,
    PhoneKey,
    Temperature,
    Tokens,
    ToolName,
    TurnNumber,
    VoiceName,
)
from voiceserver.events.fields import MAX_TURN_MS as MAX_TURN_MS
from voiceserver.events.fields import range_of as range_of
from voiceserver.events.turn_detection import TurnDetection as TurnDetection
from voiceserver.events.turn_detection import TurnDetectionChange as TurnDetectionChange

Json = msgspec.Raw


class _Event(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    pass


# ---------------------------------------------------------------------------------------------------- input events


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``parameters``: a JSON Schema. What is checked of all the tools together is in ``voiceserver.events.tools``.

    name: Name of the function; letters, digits, _ and -.
    description: What it is for, for the model.
    """

    name: ToolName
    description: str = ""
    parameters: dict[str, object] = {}


Tools = Annotated[tuple[Tool, ...], Meta(max_length=MAX_TOOLS)]


class HistoryItem(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One item of the conversation, in the shape chat-completions endpoints take after ``reply_message``.

    A tool call has role ``assistant`` with ``call_id``, ``name`` and ``arguments``; its answer has role ``tool`` and ``call_id``.

    role: Whose item it is.
    text: What was said, or the answer of a tool.
    call_id: Id of the tool call that this is, or answers.
    name: Name of the tool that is called.
    arguments: Arguments of the call, as JSON text.
    turn: Turn that made it; 0: the client made it.
    """

    role: Literal["user", "assistant", "system", "tool"]
    text: str = ""
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    turn: int = 0
    key: str = ""  # the codec's own name for it (an OpenAI item id)


class SessionUpdate(_Event, frozen=True, tag="session.update"):
    """Only fields that are set change. ``turn_detection=None`` is a value (by hand), UNSET leaves it.

    turn_detection: How the end of a turn is found; null: by hand.
    instructions: System prompt of the replies.
    voice: Name of the voice.
    language: Language of the caller, such as de or en-US.
    speed: Factor of the speed of speech.
    transcribes: False: speech is detected and not transcribed.
    tools: Functions that the model may call; they replace those before.
    tool_choice: auto, none, required, or the name of a tool.
    max_output_tokens: Most tokens of a reply; null: no limit.
    temperature: Sampling temperature of the model; null: its own.
    audible_busy: Say or play that the server is busy, for callers who read no events.
    """

    turn_detection: TurnDetectionChange | UnsetType | None = UNSET
    instructions: str | UnsetType = UNSET
    voice: VoiceName | UnsetType = UNSET
    language: Language | UnsetType = UNSET
    speed: Annotated[float, Meta(ge=0.25, le=4)] | UnsetType = UNSET
    speaks: bool | UnsetType = UNSET  # False: text replies only
    transcribes: bool | UnsetType = UNSET
    replies: bool | UnsetType = UNSET  # False: a transcription-only session
    tools: Tools | UnsetType = UNSET
    tool_choice: str | UnsetType = UNSET
    max_output_tokens: Tokens | UnsetType | None = UNSET
    temperature: Temperature | UnsetType | None = UNSET
    audible_busy: bool | UnsetType = UNSET


class InputCommit(_Event, frozen=True, tag="input.commit"):
    """The caller's utterance ends here (turn detection by hand, or impatience). Error ``input_empty`` if there is none.

    creates_reply: Whether the utterance is answered.
    """

    creates_reply: bool = True


class InputClear(_Event, frozen=True, tag="input.clear"):
    """Forget the audio that is not committed yet."""


class ItemAppend(_Event, frozen=True, tag="item.append"):
    """Put an item into the history after ``after_key`` (empty: at the end; "root": at the start). ``may_be_gone``: the history
    is bounded, so an ``after_key`` that it no longer has means the end.

    item: The item.
    after_key: Key of the item before it; empty: at the end; root: at the start.
    may_be_gone: An unknown after_key means the end, and is no error.
    """

    item: HistoryItem
    after_key: str = ""
    may_be_gone: bool = False


class ItemDelete(_Event, frozen=True, tag="item.delete"):
    """``may_be_gone``: no error if the history does not have it (it is bounded, and an unheard reply is not in it).

    key: Key of the item.
    """

    key: Annotated[str, Meta(min_length=1)]
    may_be_gone: bool = False


class ReplyCreate(_Event, frozen=True, tag="reply.create"):
    """Answer now. Fields that are set override the session's for this reply only. ``is_out_of_band``: not part of the
    conversation; ``items`` replace the history when not None. ``key`` comes back in ``ReplyStarted``.

    key: A name of your choice; reply.started brings it back.
    instructions: System prompt of this reply; null: the session's.
    speaks: Whether it is spoken; null: as the session does.
    tools: Tools of this reply; null: the session's.
    tool_choice: Choice of tools for this reply; null: the session's.
    max_output_tokens: Most tokens of this reply; null: the session's.
    temperature: Sampling temperature of this reply; null: the session's.
    is_out_of_band: The reply is not part of the conversation.
    items: History in place of the conversation's; null: that.
    """

    key: str = ""
    instructions: str | None = None
    speaks: bool | None = None
    tools: Tools | None = None
    tool_choice: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    is_out_of_band: bool = False
    items: tuple[HistoryItem, ...] | None = None


class ReplyCancel(_Event, frozen=True, tag="reply.cancel"):
    """key: Key of the reply; empty: the one in progress."""

    key: str = ""


class ReplyPlayed(_Event, frozen=True, tag="reply.played"):
    """The client says how much of the reply of ``turn`` a person has heard (a mark, a truncate). ``is_final`` cuts the
    history there.

    turn: Turn of the reply.
    played_ms: How much of it was heard.
    is_final: Nothing more of it will be heard: the history is cut there.
    """

    turn: TurnNumber
    played_ms: Annotated[float, Meta(ge=0)]
    is_final: bool = False


class Digit(_Event, frozen=True, tag="input.digit"):
    """A telephone key.

    digit: The key that was pressed.
    """

    digit: PhoneKey


class SessionClose(_Event, frozen=True, tag="session.close"):
    """Finish the turn in progress, then close."""


ClientEvent = (
    SessionUpdate
    | InputCommit
    | InputClear
    | ItemAppend
    | ItemDelete
    | ReplyCreate
    | ReplyCancel
    | ReplyPlayed
    | Digit
    | SessionClose
)

# --------------------------------------------------------------------------------------------------- output events


class SessionReady(_Event, frozen=True, tag="session.ready"):
    """session_id: Id of the session, also in the log.
    input_rate_hz: Rate of your audio.
    output_rate_hz: Rate of the reply's audio.
    resume_token: Secret with which a lost session is picked up; empty: it cannot be.
    credit_ms: Audio that may be sent now.
    is_resumed: The session goes on after a lost connection.
    """

    session_id: str
    input_rate_hz: int
    output_rate_hz: int
    resume_token: str = ""
    credit_ms: float = 0.0
    is_resumed: bool = False
    received_ms: float = 0.0  # a resumed client continues its audio from here
    received_events: int | None = None  # how many of its text messages are here; it sends the others again


class SessionUpdated(_Event, frozen=True, tag="session.updated"):
    pass


class SpeechStarted(_Event, frozen=True, tag="speech.started"):
    """``at_ms`` includes the prefix padding. ``interrupted_turn``: the reply that this cut off, 0 for none.

    turn: The turn that begins.
    at_ms: Where the speech begins, prefix padding included.
    interrupted_turn: Turn of the reply that this cut off; 0: none.
    """

    turn: int
    at_ms: float
    interrupted_turn: int = 0


class SpeechStopped(_Event, frozen=True, tag="speech.stopped"):
    """turn: The turn that ends.
    at_ms: Where the speech ends.
    reason: What ended it.
    """

    turn: int
    at_ms: float
    reason: Literal["silence", "max_turn", "commit", "close"] = "silence"


class InputCommitted(_Event, frozen=True, tag="input.committed"):
    """turn: The turn that was handed over.
    audio_ms: Length of its audio.
    """

    turn: int
    audio_ms: float


class InputCleared(_Event, frozen=True, tag="input.cleared"):
    pass


class InputIdle(_Event, frozen=True, tag="input.idle"):
    """``idle_timeout_ms`` passed after a reply without speech.

    from_ms: Where the silence began.
    to_ms: Where it was noticed.
    """

    from_ms: float
    to_ms: float


class TranscriptPartial(_Event, frozen=True, tag="transcript.partial"):
    """The whole stable hypothesis of this turn; it only grows.

    turn: Turn of the speech.
    text: The words so far.
    """

    turn: int
    text: str


class TranscriptFinal(_Event, frozen=True, tag="transcript.final"):
    """turn: Turn of the speech.
    text: The words; empty: none were recognised.
    audio_ms: Length of the audio.
    """

    turn: int
    text: str
    audio_ms: float = 0.0


class TranscriptFailed(_Event, frozen=True, tag="transcript.failed"):
    """turn: Turn of the speech.
    code: What went wrong, for a program.
    message: What went wrong, for a person.
    """

    turn: int
    code: str
    message: str


class ReplyStarted(_Event, frozen=True, tag="reply.started"):
    """turn: Turn of the reply.
    key: Key of the reply.create that asked for it; empty: a turn did.
    speaks: Whether it is spoken.
    is_out_of_band: It is not part of the conversation.
    """

    turn: int
    key: str = ""
    speaks: bool = True
    is_out_of_band: bool = False


class ReplyText(_Event, frozen=True, tag="reply.text"):
    """The next piece of the answer, usually a sentence.

    turn: Turn of the reply.
    text: The words.
    """

    turn: int
    text: str


class ReplyFiller(_Event, frozen=True, tag="reply.filler"):
    """The reply is late, so the audio that follows says ``text`` ("": it is a tone) in its place. It counts as the reply's first
    audio in ``played_ms``, and nowhere else: not in its text, its history, or its timings.

    turn: Turn of the late reply.
    text: What is said; empty: it is a tone.
    audio_ms: Length of its audio.
    """

    turn: int
    text: str
    audio_ms: float


class ReplyToolCall(_Event, frozen=True, tag="reply.tool_call"):
    """A piece of a tool call; ``is_done`` closes call ``index`` with its whole ``arguments``.

    turn: Turn of the reply.
    index: Number of the call within the reply, from 0.
    call_id: Id of the call; the answer names it.
    name: Name of the tool.
    arguments: The next piece, none if they come whole; with is_done all of them, as JSON text.
    is_done: The call is complete.
    """

    turn: int
    index: int
    call_id: str
    name: str
    arguments: str
    is_done: bool = False


class ReplyAudio(msgspec.Struct, frozen=True, tag_field="type", tag="reply.audio", gc=False):
    """PCM16 at the session's output rate."""

    turn: int
    pcm: bytes


class Timings(msgspec.Struct, frozen=True):
    """The measured split of a turn, in ms. ``end_of_speech_ms`` is on the audio clock; the rest are durations. Each is
    None when that part did not happen. ``first_audio_ms`` counts from the end-of-turn decision.

    end_of_speech_ms: Where the caller's speech ended, on the audio clock.
    endpointing_ms: From there to the decision that the turn is over.
    stt_ms: From the decision to the final transcript.
    reply_ms: From the transcript to the first words of the reply.
    tts_ms: From the first words to their first audio.
    first_audio_ms: From the decision to the first audio.
    audio_ms: Length of the reply's audio.
    """

    end_of_speech_ms: float | None = None
    endpointing_ms: float | None = None
    stt_ms: float | None = None
    reply_ms: float | None = None
    tts_ms: float | None = None
    first_audio_ms: float | None = None
    audio_ms: float = 0.0


class ReplyDone(_Event, frozen=True, tag="reply.done"):
    """Always sent once for every ``ReplyStarted``, and once for a ``ReplyCreate`` with a key that was given up before it started
    (``turn`` 0). ``reason``: completed, interrupted (barge-in), cancelled (asked for),
    failed (code and message), limited (max_output_tokens), filtered.

    turn: Turn of the reply; 0: it never started.
    reason: How it ended.
    timings: Where the time went.
    text: All of its words.
    code: What went wrong, for a program; empty: nothing.
    message: What went wrong, for a person.
    key: Key of the reply.create that asked for it.
    input_tokens: Tokens that the model read; 0: not told.
    output_tokens: Tokens that the model wrote; 0: not told.
    """

    turn: int
    reason: Literal["completed", "interrupted", "cancelled", "failed", "limited", "filtered"]
    timings: Timings = Timings()
    text: str = ""
    code: str = ""
    message: str = ""
    key: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


class PlaybackStop(_Event, frozen=True, tag="playback.stop"):
    """Barge-in while a finished reply is still being heard: throw away what is queued for playing. ``played_ms``: the
    server's estimate of what was heard.

    turn: Turn of the reply that was still heard.
    played_ms: The server's estimate of what was heard.
    """

    turn: int
    played_ms: float


class DigitHeard(_Event, frozen=True, tag="input.digit"):
    """digit: The key."""

    digit: str


DEGRADED_REASONS: Final = ("no_partials", "lighter_engine")


class ServerBusy(_Event, frozen=True, tag="server.busy", omit_defaults=False):
    """The promise: the server is late, lost something or serves less than it could, and says so with numbers.

    A caller who is not late but degraded with the whole server hears so by the reason ``no_partials`` or ``lighter_engine``.
    ``degraded`` names ``partials`` (transcripts come when they are final) and ``STAGE engine`` (a lighter one, for this turn).

    stage: Stage that is late or lost.
    reason: Why, for a program.
    lag_ms: How far behind the server is, by the audio that waits or by its age.
    credit_ms: Audio that may be sent now.
    retry_after_ms: When it will be better; an estimate.
    dropped_ms: Audio that was dropped since the last signal.
    position: Place in the waiting room; 0: not waiting.
    turn: The turn that waits; 0: none.
    step: How far down the ladder of retreat.
    degraded: What is less than it could be until server.ready.
    """

    stage: str
    reason: str
    lag_ms: float
    credit_ms: float
    retry_after_ms: float
    dropped_ms: float = 0.0
    position: int = 0
    turn: int = 0
    step: Literal["slow", "lost", "degraded", "shed", "waiting"] = "slow"
    degraded: tuple[str, ...] = ()

    @property
    def is_late(self) -> bool:
        """This caller waits for something, and is not only served with less."""
        return self.reason not in DEGRADED_REASONS


class BusyCue(_Event, frozen=True, tag="server.cue"):
    """Say it aloud to a caller who reads no events (option ``audible_busy``): cached audio, so no stage is needed. Comes once
    for each busy time and place in line, never into a reply; and behind a turn that ended without a sound.

    cue: What is said.
    position: Place in the waiting room; 0: not waiting.
    """

    cue: Literal["busy", "waiting", "full", "draining", "failed", "no_answer", "not_understood", "try_again"]
    position: int = 0


class ServerReady(_Event, frozen=True, tag="server.ready", omit_defaults=False):
    """All that ``server.busy`` said is over, whichever stages it named. ``stage``: the one that it named last.

    stage: The stage that server.busy named last.
    credit_ms: Audio that may be sent now.
    """

    stage: str = ""
    credit_ms: float = 0.0


class ServerDraining(_Event, frozen=True, tag="server.draining", omit_defaults=False):
    """deadline_ms: How long the server still serves."""

    deadline_ms: float


class StageAccounting(msgspec.Struct, frozen=True):
    """received = consumed + dropped + discarded, in ms of audio, at close.

    received_ms: Audio that came in.
    consumed_ms: Audio that workers have processed.
    dropped_ms: Audio that was dropped, and announced.
    discarded_ms: Audio that nobody needed any more.
    """

    received_ms: float
    consumed_ms: float
    dropped_ms: float
    discarded_ms: float


class Accounting(StageAccounting, frozen=True):
    """The same for the whole session.

    stages: What became of the audio at each stage.
    """

    stages: dict[str, StageAccounting] = {}


class SessionClosing(_Event, frozen=True, tag="session.closing", omit_defaults=False):
    """reason: Why the session ends.
    accounting: What became of all audio.
    """

    reason: str
    accounting: Accounting


class ErrorEvent(_Event, frozen=True, tag="error"):
    """code: What went wrong, for a program.
    message: What went wrong, for a person.
    param: The field that is to blame; null: none.
    retryable: Whether the same may work later.
    event_id: Event_id of the message that is to blame; null: none.
    turn: The turn that failed; 0: none.
    retry_after_ms: Of a refusal: when to try again.
    """

    code: str
    message: str
    param: str | None = None
    retryable: bool = False
    event_id: str | None = None
    turn: int = 0
    retry_after_ms: float = 0.0  # of a refusal


ServerEvent = (
    SessionReady
    | SessionUpdated
    | SpeechStarted
    | SpeechStopped
    | InputCommitted
    | InputCleared
    | InputIdle
    | TranscriptPartial
    | TranscriptFinal
    | TranscriptFailed
    | ReplyStarted
    | ReplyText
    | ReplyFiller
    | ReplyToolCall
    | ReplyAudio
    | ReplyDone
    | PlaybackStop
    | DigitHeard
    | ServerBusy
    | BusyCue
    | ServerReady
    | ServerDraining
    | SessionClosing
    | ErrorEvent
)
