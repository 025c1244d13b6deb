"""A client of the OpenAI codec without a socket: says events, reads what comes back, and plays the session's part in words."""

from __future__ import annotations

import base64
import json
from typing import Any

from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.wire import Audio
from voiceserver.wire.openai import Dialect, OpenAICodec

Wire = dict[str, Any]


class Client:
    def __init__(self, dialect: Dialect = Dialect.GA, **options: Any) -> None:
        self.codec = OpenAICodec("abc", dialect, **options)
        self.received: list[Wire] = []
        self.asked: list[ev.ClientEvent | Audio] = list(self.codec.opening_events())
        self.hear(ev.SessionReady("abc", 24_000, 24_000))

    def hear(self, *events: ev.ServerEvent) -> list[Wire]:
        """What the client receives when the session says ``events``."""
        frames = [json.loads(frame) for event in events for frame in self.codec.encode(event)]
        self.received += frames
        return frames

    def say(self, kind: str, **fields: Any) -> list[Wire]:
        """One client event; what the codec answers by itself. What it asks of the session is added to ``asked``."""
        message = json.dumps({"type": kind, **fields}).encode()
        try:
            self.asked += self.codec.receive_text(message)
        except ProtocolError as error:
            return self.refuse(error)
        frames = [json.loads(frame) for frame in self.codec.frames_to_send()]
        self.received += frames
        return frames

    def refuse(self, error: ProtocolError) -> list[Wire]:
        frames = [json.loads(frame) for frame in self.codec.encode_protocol_error(error)]
        self.received += frames
        return frames

    def update(self, **session: Any) -> list[Wire]:
        answers = self.say("session.update", session=session)
        return answers or self.hear(ev.SessionUpdated())

    def append(self, pcm: bytes) -> list[Wire]:
        return self.say("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())

    def error(self, kind: str, **fields: Any) -> Wire:
        """The ``error`` object that saying this gives; asserts that nothing was asked of the session."""
        before = len(self.asked)
        (frame,) = self.say(kind, **fields)
        assert frame["type"] == "error"
        assert len(self.asked) == before
        return dict(frame["error"])

    @property
    def types(self) -> list[str]:
        return [frame["type"] for frame in self.received]

    # ------------------------------------------------------------------------------------------------- the session

    def speech(self, turn: int, text: str = "go forward", at_ms: float = 0.0) -> list[Wire]:
        """A spoken turn, from its first sound to its transcript."""
        return self.hear(
            ev.SpeechStarted(turn=turn, at_ms=at_ms),
            ev.TranscriptPartial(turn=turn, text=text.split()[0]),
            ev.SpeechStopped(turn=turn, at_ms=at_ms + 1000.0),
            ev.InputCommitted(turn=turn, audio_ms=at_ms + 1500.0),
            ev.TranscriptFinal(turn=turn, text=text),
        )

    def reply(
        self, turn: int, key: str = "", audio_ms: int = 200, reason: Any = "completed", **started: Any
    ) -> list[Wire]:
        """A reply in two pieces, with ``audio_ms`` of audio in all unless ``speaks`` is False."""
        speaks = started.get("speaks", True)
        audio = (
            [ev.ReplyAudio(turn=turn, pcm=bytes(self.codec.output_rate_hz * audio_ms // 1000))] * 2
            if speaks
            else []
        )
        return self.hear(
            ev.ReplyStarted(turn=turn, key=key, **started),
            ev.ReplyText(turn=turn, text="You said"),
            *audio,
            ev.ReplyText(turn=turn, text=" go forward."),
            ev.ReplyDone(turn=turn, reason=reason, key=key, input_tokens=7, output_tokens=4),
        )


def text_item(text: str = "hello", role: str = "user", **fields: Any) -> Wire:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}], **fields}
