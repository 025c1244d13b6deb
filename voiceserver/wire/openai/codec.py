"""The OpenAI Realtime wire, ``/v1/realtime``: client events to neutral ones. Rule: an error changes nothing.

Each connection has its own codec, because ids, items and the session object live here and nowhere else. What a client event
changed here is taken back when the session refuses it, which the shell says by ``encode_protocol_error``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, NoReturn

import msgspec

from voiceserver.errors import ProtocolError
from voiceserver.events.events import (
    ClientEvent,
    InputClear,
    InputCommit,
    ItemAppend,
    ItemDelete,
    ReplyCancel,
    ReplyPlayed,
    ServerEvent,
    TurnDetection,
)
from voiceserver.session.history import SHOWN, check_key
from voiceserver.wire import Audio, Codec, CodecTraits, Frame, Received
from voiceserver.wire.openai import errors, schema
from voiceserver.wire.openai.audio import AudioFormat, decode_audio
from voiceserver.wire.openai.dialect import Dialect
from voiceserver.wire.openai.items import ROOT, Conversation, Item, parse_item
from voiceserver.wire.openai.outbound import Outbound
from voiceserver.wire.openai.requests import read_create
from voiceserver.wire.openai.settings import (
    WireSettings,
    apply,
    check_voice,
    parse_format,
    to_update,
    voice_name,
)

MIN_COMMIT_MS: Final = 100.0


class OpenAICodec(Codec):
    """One connection. ``seed``: letters and digits of the session's own, for all ids; ``voices``: names that the speech engine
    knows (the service's preset names mean "the server's own voice" otherwise); ``conversation``: of a resumed session;
    ``given``: what its client token says of the session; ``detects_turns``: False on a server without vad. Raises ProtocolError
    for what is wrong with ``given``."""

    __slots__ = (
        "_answers",
        "_buffered_ms",
        "_event_id",
        "_has_heard",
        "_odd",
        "_opening",
        "_out",
        "_undo",
        "_unopened",
        "_voices",
        "input_rate_hz",
        "output_rate_hz",
    )

    # It cannot wait: every stock client takes a 503 well, and some give up at an error.
    traits = CodecTraits(
        name="openai",
        subprotocol="realtime",
        can_wait=False,
        tells_talk_limit=True,
        max_message_bytes=schema.MAX_MESSAGE_BYTES,
        resume_parameter="conversation_id",
    )

    def __init__(
        self,
        seed: str,
        dialect: Dialect = Dialect.GA,
        *,
        model: str = "",
        is_transcription: bool = False,
        turn_detection: TurnDetection | None = None,
        voices: frozenset[str] = frozenset(),
        has_vendor_events: bool = False,
        conversation: Conversation | None = None,
        given: schema.SessionBody | None = None,
        detects_turns: bool = True,
    ) -> None:
        kind: Literal["realtime", "transcription"] = "transcription" if is_transcription else "realtime"
        settings = WireSettings(
            base=turn_detection or TurnDetection(),
            model=model,
            kind=kind,
            turn_detection=schema.TurnDetectionBody() if detects_turns else None,
        )
        self._unopened = settings  # what is left if the session cannot do what its token says
        opening: dict[str, object] = {"replies": False} if is_transcription else {}
        if given is not None:
            settings, update = apply(settings, given, voices)
            opening |= update
        self._out = Outbound(
            seed, dialect, settings, Conversation() if conversation is None else conversation
        )
        self._out.has_vendor_events = has_vendor_events
        self._voices = voices
        self._opening = opening
        self._answers: list[Frame] = []
        # Given the codec: one that knew it would be a circle, which outlives the call until the collector comes.
        self._undo: Callable[[OpenAICodec], None] | None = None
        self._event_id: str | None = None
        self._odd = b""  # half a sample at the end of an append; the next one brings the rest
        self._buffered_ms = 0.0  # received since the last commit by hand
        self._has_heard = False
        self._set_rates(settings)

    # ------------------------------------------------------------------------------------------------ the shell

    @property
    def conversation(self) -> Conversation:
        return self._out.conversation

    @property
    def conversation_id(self) -> str:
        return self._out.conversation_id

    @property
    def is_resumable(self) -> bool:
        """The client asked for its conversation to be kept (``resumption.enabled``)."""
        return self._out.settings.resumes

    def set_talk_limit(self, daily_ms: float, left_ms: float, reset_s: float) -> None:
        """Audio that the caller's key may send in a day: what ``rate_limits.updated`` says after each response."""
        self._out.set_talk_limit(daily_ms, left_ms, reset_s)

    @property
    def memory_bytes(self) -> int:
        return self._out.conversation.kept_bytes

    @property
    def has_opening(self) -> bool:
        return bool(self._opening)

    def opening_events(self) -> list[ClientEvent]:
        """What the session has to know before the client says anything; taken once."""
        if not self._opening:
            return []
        opening, self._opening = self._opening, {}
        self._event_id = None
        given, self._out.settings = self._out.settings, self._unopened
        self._use(given, "")
        return [to_update(opening)]

    def receive_text(self, message: bytes) -> Received:  # hot
        self._undo = None
        self._event_id = None
        event = schema.decode_event(message)
        self._event_id = event.event_id
        return _RECEIVERS[type(event)](self, event)

    def receive_binary(self, message: bytes) -> Received:
        self._undo = None
        self._event_id = None
        raise ProtocolError(
            "invalid_value",
            "Binary messages are not part of this protocol; send audio by input_audio_buffer.append.",
        )

    def encode(self, event: ServerEvent) -> list[Frame]:  # hot
        return self._out.encode(event)

    def encode_protocol_error(self, error: ProtocolError) -> list[Frame]:
        if self._undo is not None:
            self._undo(self)
            self._undo = None
        return self._out.error(errors.describe_mistake(error, self._event_id, self._out.writer.is_beta))

    def frames_to_send(self) -> list[Frame]:
        if not self._answers:
            return []
        answers, self._answers = self._answers, []
        return answers

    def _set_rates(self, settings: WireSettings) -> None:
        self.input_rate_hz = settings.input_format.rate_hz
        self.output_rate_hz = settings.output_format.rate_hz

    def _refuse(self, code: str, message: str, param: str | None = None) -> NoReturn:
        raise ProtocolError(code, message, param=param, event_id=self._event_id)

    # -------------------------------------------------------------------------------------------------- session

    def _session_update(self, event: schema.SessionUpdateEvent) -> Received:
        return self._update(event.session, "session.updated")

    def _transcription_update(self, event: schema.TranscriptionSessionUpdateEvent) -> Received:
        body = msgspec.structs.replace(event.session, type="transcription")
        return self._update(body, "transcription_session.updated")

    def _update(self, body: schema.SessionBody, answer: str) -> Received:
        out = self._out
        before = out.settings
        after, update = apply(before, body, self._voices)
        if after.kind != before.kind and len(out.conversation):
            self._refuse(
                "invalid_value", "The type of a session cannot change once it has items.", "session.type"
            )
        if after.voice != before.voice and out.has_spoken:
            self._refuse(
                "cannot_update_voice", "Cannot update a conversation's voice if assistant audio is present."
            )
        if after.input_format.rate_hz != self.input_rate_hz and self._has_heard:
            self._refuse(
                "invalid_value",
                "The rate of input audio cannot change after audio.",
                "session.audio.input.format",
            )
        if after.output_format.rate_hz != self.output_rate_hz and (out.has_spoken or out.responses):
            self._refuse(
                "invalid_value",
                "The rate of output audio cannot change after audio.",
                "session.audio.output.format",
            )
        self._use(after, answer)
        return [to_update(update)]

    def _use(self, after: WireSettings, answer: str) -> None:
        """From now on ``after``; ``answer`` (nothing if empty) goes out when the session has agreed."""
        out, before = self._out, self._out.settings
        out.settings = after
        self._set_rates(after)
        awaited = (answer, after)
        out.updates.append(awaited)

        def undo(codec: OpenAICodec) -> None:
            if awaited in out.updates:
                out.updates.remove(awaited)
                out.settings = before
                codec._set_rates(before)

        self._undo = undo

    # ----------------------------------------------------------------------------------------------- input audio

    def _append(self, event: schema.AppendEvent) -> Received:  # hot
        audio_format = self._out.settings.input_format
        data = decode_audio(event.audio, "audio")
        if audio_format is AudioFormat.PCM:
            if self._odd or len(data) & 1:
                data = self._odd + data
                self._odd = data[len(data) & ~1 :]
                data = data[: len(data) & ~1]
        else:
            data = audio_format.to_pcm(data)
        if not data:
            return []
        self._has_heard = True
        self._buffered_ms += len(data) * 500.0 / self.input_rate_hz
        return [Audio(data)]

    def _commit(self, event: schema.CommitEvent) -> Received:
        buffered_ms, odd = self._buffered_ms, self._odd
        commits = self._out.commits
        if self._out.settings.turn_detection is None:
            if buffered_ms < MIN_COMMIT_MS:
                self._refuse(
                    "input_audio_buffer_commit_empty",
                    "Error committing input audio buffer: buffer too small. Expected at least "
                    f"{MIN_COMMIT_MS:.0f}ms of audio, but buffer only has {buffered_ms:.2f}ms of audio.",
                )
            commits.append((buffered_ms, ""))
        self._buffered_ms, self._odd = 0.0, b""

        def undo(codec: OpenAICodec) -> None:
            codec._buffered_ms, codec._odd = buffered_ms, odd
            if commits and commits[-1] == (buffered_ms, ""):
                commits.pop()

        self._undo = undo
        return [InputCommit(creates_reply=False)]

    def _clear(self, event: schema.ClearEvent) -> Received:
        self._buffered_ms, self._odd = 0.0, b""
        return [InputClear()]

    # ----------------------------------------------------------------------------------------------------- items

    def _item_create(self, event: schema.ItemCreateEvent) -> Received:
        conversation, body = self._out.conversation, event.item
        item_id = body.id or self._out.writer.new_id("item")
        check_key(item_id, "item.id")
        if item_id in conversation or self._out.writer.is_ahead_of(item_id):
            text = f"Item with id '{item_id[:SHOWN]}' already exists in the conversation."
            self._refuse("invalid_value", text, "item.id")
        after = event.previous_item_id or ""
        if after and after != ROOT and after not in conversation:
            text = f"Error adding item: the previous item with id '{after[:SHOWN]}' does not exist."
            self._refuse("item_create_invalid_previous_item_id", text, "previous_item_id")
        item = parse_item(body, item_id, "item")
        if item.type == "function_call_output" and not conversation.has_call(item.call_id):
            text = f"Tool call ID '{item.call_id[:SHOWN]}' not found in conversation."
            self._refuse("invalid_value", text, "item.call_id")
        if any(part.kind == "input_audio" and part.text is None for part in item.parts):
            return self._audio_item(body, item_id, after)
        key = conversation.key_of(after)
        self._answers += self._out.item_frames(item, conversation.add(item, after))

        def undo(codec: OpenAICodec) -> None:
            conversation.remove(item_id)
            codec._answers.clear()

        self._undo = undo
        return [ItemAppend(item=item.to_history(), after_key=key, may_be_gone=True)]

    def _audio_item(self, body: schema.ItemBody, item_id: str, after: str) -> Received:
        """A user message of audio alone: heard like a turn by hand, under the item's id."""
        parts = body.content or []
        if len(parts) != 1 or parts[0].audio is None or after:
            text = "An audio item has one part with audio or a transcript, and goes to the end of the conversation."
            self._refuse("invalid_value", text, "item.content")
        if self._out.settings.turn_detection is not None or self._buffered_ms:
            text = "Audio without a transcript needs turn_detection null and an empty input audio buffer."
            self._refuse("invalid_value", text, "item.content[0].audio")
        audio_format = self._out.settings.input_format
        data = decode_audio(parts[0].audio, "item.content[0].audio")
        pcm = audio_format.to_pcm(data[: len(data) & ~1] if audio_format is AudioFormat.PCM else data)
        if not pcm:
            self._refuse("invalid_value", "The item has no audio.", "item.content[0].audio")
        self._has_heard = True
        heard_ms = len(pcm) * 500.0 / self.input_rate_hz
        self._out.commits.append((heard_ms, item_id))
        self._undo = lambda codec: codec._out.commits.clear()  # the session answers each commit at once
        return [Audio(pcm), InputCommit(creates_reply=False)]

    def _item(self, verb: str, item_id: str, code: str) -> Item:
        item = self._out.conversation.get(item_id)
        if item is None:
            text = f"Error {verb} item: the item with id '{item_id[:SHOWN]}' does not exist."
            self._refuse(code, text, "item_id")
        return item

    def _item_retrieve(self, event: schema.ItemRetrieveEvent) -> Received:
        item = self._item("retrieving", event.item_id, "item_retrieve_invalid_item_id")
        writer = self._out.writer
        self._answers.append(writer.frame("conversation.item.retrieved", {"item": item.describe(writer)}))
        return []

    def _item_delete(self, event: schema.ItemDeleteEvent) -> Received:
        item = self._item("deleting", event.item_id, "item_delete_invalid_item_id")
        self._out.conversation.remove(item.id)
        self._answers.append(self._out.writer.frame("conversation.item.deleted", {"item_id": item.id}))
        return [ItemDelete(key=item.key, may_be_gone=True)]

    def _item_truncate(self, event: schema.ItemTruncateEvent) -> Received:
        item = self._item("truncating", event.item_id, "item_truncate_invalid_item_id")
        if not item.is_spoken_reply or not item.turn:
            self._refuse(
                "unsupported_content_type", "Only model output audio messages can be truncated", "item_id"
            )
        if event.content_index != 0:
            self._refuse(
                "invalid_value", f"Item '{item.id}' has one content part, with index 0.", "content_index"
            )
        if event.audio_end_ms > item.audio_ms:
            text = f"Audio content of {int(item.audio_ms)}ms is already shorter than {event.audio_end_ms}ms"
            self._refuse("invalid_value", text, "audio_end_ms")
        item.cut(event.audio_end_ms)
        fields = {"item_id": item.id, "content_index": 0, "audio_end_ms": event.audio_end_ms}
        self._answers.append(self._out.writer.frame("conversation.item.truncated", fields))
        return [ReplyPlayed(turn=item.turn, played_ms=float(event.audio_end_ms), is_final=True)]

    # ------------------------------------------------------------------------------------------------- responses

    def _response_create(self, event: schema.ResponseCreateEvent) -> Received:
        out, body = self._out, event.response or schema.ResponseBody()
        if out.settings.is_transcription:
            self._refuse("", "Cannot create a response on a transcription session.")
        if body.conversation not in (None, "auto", "none"):
            text = f"Invalid value: '{body.conversation[:80]}'. Supported values are: 'auto' and 'none'."
            self._refuse("invalid_value", text, "response.conversation")
        is_out_of_band = body.conversation == "none"
        active = out.active_response
        active_id = active.id if active is not None else out.awaited_response
        if active_id and not is_out_of_band:
            self._refuse(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {active_id}. "
                "Wait until the response is finished before creating a new one.",
            )
        events = self._response_voice(body)
        response_id = out.writer.new_id("resp")
        create, options = read_create(body, response_id, out.settings, out.conversation)
        out.expect_response(response_id, options)
        self._undo = lambda codec: out.forget_response(
            response_id
        )  # a voice that came with it stays: the session took it
        return [*events, create]

    def _response_voice(self, body: schema.ResponseBody) -> Received:
        """A voice or format of its own. Before any audio it is the session's from then on; after, the voice is frozen."""
        out = self._out
        spoken = (body.audio.output if body.audio is not None else None) or schema.AudioOutputBody()
        param = "response.audio.output.format" if spoken.format else "response.output_audio_format"
        wanted = parse_format(spoken.format or body.output_audio_format, param)
        if wanted is not None and wanted is not out.settings.output_format:
            self._refuse("invalid_value", "The audio format is the session's.", param)
        voice = voice_name(spoken.voice) or voice_name(body.voice)
        if voice is None or voice == out.settings.voice:
            return []
        if out.has_spoken:
            self._refuse(
                "cannot_update_voice", "Cannot update a conversation's voice if assistant audio is present."
            )
        param = "response.audio.output.voice" if voice_name(spoken.voice) else "response.voice"
        check_voice(voice, self._voices, param)
        after, update = apply(out.settings, schema.SessionBody(voice=voice), self._voices)
        self._use(after, "")
        return [to_update(update)]

    def _response_cancel(self, event: schema.ResponseCancelEvent) -> Received:
        out = self._out
        active = out.active_response
        running = {one.id for one in out.responses.values()} | ({out.awaited_response} - {""})
        default_id = active.id if active is not None else out.awaited_response
        wanted = event.response_id or default_id
        if not wanted or wanted not in running:
            self._refuse("response_cancel_not_active", "Cancellation failed: no active response found")
        if wanted == out.awaited_response:
            out.awaited_response = ""
        return [ReplyCancel(key=wanted)]

    def _output_clear(self, event: schema.OutputClearEvent) -> Received:
        self._refuse(
            "invalid_value", "'output_audio_buffer.clear' is for WebRTC and SIP connections only.", "type"
        )


_RECEIVERS: Final[dict[type, Callable[[OpenAICodec, Any], Received]]] = {
    schema.AppendEvent: OpenAICodec._append,
    schema.SessionUpdateEvent: OpenAICodec._session_update,
    schema.TranscriptionSessionUpdateEvent: OpenAICodec._transcription_update,
    schema.CommitEvent: OpenAICodec._commit,
    schema.ClearEvent: OpenAICodec._clear,
    schema.ItemCreateEvent: OpenAICodec._item_create,
    schema.ItemRetrieveEvent: OpenAICodec._item_retrieve,
    schema.ItemDeleteEvent: OpenAICodec._item_delete,
    schema.ItemTruncateEvent: OpenAICodec._item_truncate,
    schema.ResponseCreateEvent: OpenAICodec._response_create,
    schema.ResponseCancelEvent: OpenAICodec._response_cancel,
    schema.OutputClearEvent: OpenAICodec._output_clear,
}
