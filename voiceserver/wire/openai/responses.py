"""One response on the wire, from ``response.created`` to ``response.done``.

::

    created > output_item.added > item.added > content_part.added > {transcript delta, audio delta}* > audio.done >
    transcript.done > content_part.done > output_item.done > item.done > done          (a message; opened by its first piece)
    created > output_item.added > item.added > arguments.delta* > arguments.done > output_item.done > item.done > done

Rule: whatever was opened is closed, once, before ``response.done``, and holds exactly what its deltas said.
"""

from __future__ import annotations

from typing import Final

import pybase64

from voiceserver.events.events import ReplyDone, ReplyToolCall
from voiceserver.session.text import gap
from voiceserver.wire import Frame
from voiceserver.wire.openai.audio import INPUT_TOKEN_MS, OUTPUT_TOKEN_MS
from voiceserver.wire.openai.dialect import Writer
from voiceserver.wire.openai.items import Conversation, Item, Part, Status
from voiceserver.wire.openai.settings import WireSettings, describe_modalities

_STATUS: Final[dict[str, tuple[str, str | None]]] = {
    "completed": ("completed", None),
    "interrupted": ("cancelled", "turn_detected"),
    "cancelled": ("cancelled", "client_cancelled"),
    "failed": ("failed", None),
    "limited": ("incomplete", "max_output_tokens"),
    "filtered": ("incomplete", "content_filter"),
}
_b64: Final = pybase64.b64encode_as_string


class ResponseOptions:
    """What a ``response.create`` asked for, kept until and while it runs."""

    __slots__ = ("is_out_of_band", "max_output_tokens", "metadata", "settings", "speaks")

    def __init__(self, settings: WireSettings) -> None:
        self.settings = settings
        self.speaks = settings.speaks
        self.max_output_tokens = settings.max_output_tokens
        self.metadata: dict[str, str] | None = None
        self.is_out_of_band = False


class Response:
    """State of a response in progress, and the frames that its pieces make. ``heard_ms``: of the speech it answers."""

    __slots__ = (
        "_audio_prefix",
        "_calls",
        "_closed",
        "_conversation",
        "_conversation_id",
        "_follows_filler",
        "_message",
        "_options",
        "_where",
        "_writer",
        "heard_ms",
        "id",
        "output",
        "turn",
    )

    def __init__(
        self,
        response_id: str,
        turn: int,
        options: ResponseOptions,
        writer: Writer,
        conversation: Conversation,
        conversation_id: str,
    ) -> None:
        self.id = response_id
        self.turn = turn
        self.heard_ms = 0.0
        self.output: list[Item] = []
        self._options = options
        self._writer = writer
        self._conversation = conversation
        self._conversation_id = conversation_id
        self._message: Item | None = None
        self._calls: dict[int, Item] = {}
        self._closed: set[str] = set()
        self._where: dict[str, object] = {}  # ids of the message's part, as every delta carries them
        self._audio_prefix = ""
        self._follows_filler = False

    @property
    def is_out_of_band(self) -> bool:
        return self._options.is_out_of_band

    @property
    def speaks(self) -> bool:
        return self._options.speaks

    def created(self) -> str:
        return self._writer.frame("response.created", {"response": self._describe("in_progress", None, None)})

    # ------------------------------------------------------------------------------------------------- message

    def filler(self, text: str) -> list[Frame]:
        """Said before there is an answer: part of what is heard, so it is part of the transcript too."""
        self._follows_filler = True
        return self.text(text) if text else []

    def text(self, text: str) -> list[Frame]:
        frames = [] if self._message is not None else self._open_message()
        assert self._message is not None
        part = self._message.parts[0]
        if self._follows_filler:
            text = gap(part.text or "", text) + text
        part.text = (part.text or "") + text
        name = "response.output_audio_transcript.delta" if self.speaks else "response.output_text.delta"
        frames.append(self._writer.frame(name, {**self._where, "delta": text}))
        return frames

    def audio(self, pcm: bytes) -> list[Frame]:  # hot
        message = self._message
        if message is None:
            return [*self._open_message(), *self.audio(pcm)]
        wire_format = self._options.settings.output_format
        message.audio_ms += len(pcm) * 500.0 / wire_format.rate_hz
        event_id = self._writer.new_id("event")
        return [self._audio_prefix + event_id + '","delta":"' + _b64(wire_format.from_pcm(pcm)) + '"}']

    def _open_message(self) -> list[Frame]:
        writer = self._writer
        item = Item(writer.new_id("item"), "message", "assistant", key=f"reply:{self.turn}", turn=self.turn)
        frames = self._open_item(item)
        part = Part("output_audio" if self.speaks else "output_text", "")
        item.parts.append(part)
        self._message = item
        self._where = {
            "response_id": self.id,
            "item_id": item.id,
            "output_index": len(self.output) - 1,
            "content_index": 0,
        }
        if self.speaks:
            self._audio_prefix = (
                f'{{"type":"{writer.event_name("response.output_audio.delta")}","response_id":"{self.id}",'
                f'"item_id":"{item.id}","output_index":{len(self.output) - 1},"content_index":0,"event_id":"'
            )
        frames.append(writer.frame("response.content_part.added", {**self._where, "part": self._part("")}))
        return frames

    def _part(self, text: str) -> dict[str, object]:
        return {"type": "audio", "transcript": text} if self.speaks else {"type": "text", "text": text}

    def _close_message(self, item: Item, status: Status) -> list[Frame]:
        writer, where = self._writer, self._where
        text = item.parts[0].text or ""
        if self.speaks:
            frames: list[Frame] = [
                writer.frame("response.output_audio.done", where),
                writer.frame("response.output_audio_transcript.done", {**where, "transcript": text}),
            ]
        else:
            frames = [writer.frame("response.output_text.done", {**where, "text": text})]
        frames.append(writer.frame("response.content_part.done", {**where, "part": self._part(text)}))
        return frames + self._close_item(item, status)

    # ---------------------------------------------------------------------------------------------- tool calls

    def tool_call(self, event: ReplyToolCall) -> list[Frame]:
        frames: list[Frame] = []
        item = self._calls.get(event.index)
        if item is None:
            key = f"call:{self.turn}:{event.index}"
            item = Item(self._writer.new_id("item"), "function_call", key=key, turn=self.turn)
            item.call_id = event.call_id or self._writer.new_id("call")
            item.name = event.name
            self._calls[event.index] = item
            frames = self._open_item(item)
        if item.id in self._closed:
            return frames
        item.name = event.name or item.name
        piece = event.arguments
        if event.is_done:
            piece = piece.removeprefix(item.arguments) if piece.startswith(item.arguments) else ""
        where = {
            "response_id": self.id,
            "item_id": item.id,
            "output_index": self.output.index(item),
            "call_id": item.call_id,
        }
        if piece:
            item.arguments += piece
            frames.append(
                self._writer.frame("response.function_call_arguments.delta", {**where, "delta": piece})
            )
        if event.is_done:
            fields = {**where, "name": item.name, "arguments": item.arguments}
            frames.append(self._writer.frame("response.function_call_arguments.done", fields))
            frames += self._close_item(item, "completed")
        return frames

    # ------------------------------------------------------------------------------------------------- endings

    def done(self, event: ReplyDone) -> list[Frame]:
        """Close what is open, then ``response.done``."""
        status, reason = _STATUS[event.reason]
        item_status: Status = "completed" if status == "completed" else "incomplete"
        frames: list[Frame] = []
        for item in self.output:
            if item.id in self._closed:
                continue
            frames += (
                self._close_message(item, item_status)
                if item is self._message
                else self._close_item(item, item_status)
            )
        details: dict[str, object] | None = None
        if status != "completed":
            details = {"type": status}
            if reason is not None:
                details["reason"] = reason
            if status == "failed":
                details["error"] = {
                    "type": "server_error",
                    "code": event.code or "engine_failed",
                    "message": event.message,
                }
        response = self._describe(status, details, self._usage(event))
        return [*frames, self._writer.frame("response.done", {"response": response})]

    def _open_item(self, item: Item) -> list[Frame]:
        item.status = "in_progress"
        self.output.append(item)
        where = {"response_id": self.id, "output_index": len(self.output) - 1}
        shown = item.describe(self._writer)
        frames: list[Frame] = [self._writer.frame("response.output_item.added", {**where, "item": shown})]
        if not self.is_out_of_band:
            previous = self._conversation.add(item)
            frames.append(
                self._writer.frame("conversation.item.added", {"previous_item_id": previous, "item": shown})
            )
        return frames

    def _close_item(self, item: Item, status: Status) -> list[Frame]:
        self._closed.add(item.id)
        item.status = status
        shown = item.describe(self._writer)
        where = {"response_id": self.id, "output_index": self.output.index(item)}
        frames: list[Frame] = [self._writer.frame("response.output_item.done", {**where, "item": shown})]
        is_listed = (
            not self.is_out_of_band and item.id in self._conversation
        )  # the client may have deleted it
        if is_listed and not self._writer.is_beta:
            previous = self._conversation.previous_id(item.id)
            frames.append(
                self._writer.frame("conversation.item.done", {"previous_item_id": previous, "item": shown})
            )
        return frames

    def _usage(self, event: ReplyDone) -> dict[str, object]:
        """Text as the reply engine counted it, audio by its length."""
        spoken_ms = self._message.audio_ms if self._message is not None else 0.0
        heard, spoken = round(self.heard_ms / INPUT_TOKEN_MS), round(spoken_ms / OUTPUT_TOKEN_MS)
        total = event.input_tokens + event.output_tokens + heard + spoken
        cached = {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0}
        return {
            "total_tokens": total,
            "input_tokens": event.input_tokens + heard,
            "output_tokens": event.output_tokens + spoken,
            "input_token_details": {
                "text_tokens": event.input_tokens,
                "audio_tokens": heard,
                "image_tokens": 0,
                "cached_tokens": 0,
                "cached_tokens_details": cached,
            },
            "output_token_details": {"text_tokens": event.output_tokens, "audio_tokens": spoken},
        }

    def _describe(
        self, status: str, details: dict[str, object] | None, usage: dict[str, object] | None
    ) -> dict[str, object]:
        options, is_beta = self._options, self._writer.is_beta
        settings = options.settings
        shown: dict[str, object] = {
            "object": "realtime.response",
            "id": self.id,
            "conversation_id": None if self.is_out_of_band else self._conversation_id,
            "status": status,
            "status_details": details,
            "output": [item.describe(self._writer) for item in self.output],
            "max_output_tokens": options.max_output_tokens or "inf",
            "metadata": options.metadata,
            "usage": usage,
        }
        modalities = describe_modalities(options.speaks, is_beta)
        if is_beta:
            wire_format = settings.output_format.beta_name
            audio = {
                "voice": settings.voice,
                "output_audio_format": wire_format,
                "temperature": settings.temperature,
            }
            return {**shown, "modalities": modalities, **audio}
        spoken = {"format": settings.output_format.describe(), "voice": settings.voice}
        return {**shown, "output_modalities": modalities, "audio": {"output": spoken}}
