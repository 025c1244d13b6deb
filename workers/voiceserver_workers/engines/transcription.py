"""Speech to text behind a URL: any endpoint with OpenAI's ``/v1/audio/transcriptions``.

    utterance --WAV, multipart POST--> {"text": ...}, or events ``transcript.text.delta`` and ``.done`` --> TEXT, FINAL

One request hears the whole utterance. It is asked at a pause already (``works_ahead``), so that the transcript is ready when the
turn ends; if the caller goes on speaking, it is superseded and its connection is closed. Nothing is told of it before the turn
ends, because what is told is never taken back. Silence is not sent anywhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from voiceserver_workers import parameters
from voiceserver_workers.audio import wav_of
from voiceserver_workers.engine import Audio, EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.engines.windows import AUTO, RATE_HZ, is_silent
from voiceserver_workers.http.body import BodyParser, EventTooLong
from voiceserver_workers.http.requests import Asked, Requests
from voiceserver_workers.ipc.messages import ResultKind, StreamParams, encode

REST_MS: Final = 5.0
_MIN_SAMPLES: Final = RATE_HZ // 10
_MAX_LANGUAGE_CHARS: Final = 40
_NO_AUDIO: Audio = np.empty(0, np.float32)


class TranscriptError(Exception):
    """The answer is no transcript. The text goes on from "The endpoint ..."."""


class _Event(msgspec.Struct):
    type: str = ""
    text: str | None = None
    delta: str = ""
    error: msgspec.Raw = msgspec.Raw(b"")


_decode_event = msgspec.json.Decoder(_Event).decode


class Transcript:
    """The body of an answer, sans I/O. ``text``: what is known by now."""

    __slots__ = ("_has_text", "_parser", "text")

    def __init__(self) -> None:
        self._parser = BodyParser()
        self._has_text = False
        self.text = ""

    def feed(self, data: bytes) -> None:
        """Raises TranscriptError."""
        try:
            for event in self._parser.feed(data):
                self._take(event)
        except EventTooLong:
            raise TranscriptError("sent an event without an end") from None

    def finish(self) -> str:
        """The body is over: the transcript. Raises TranscriptError."""
        for event in self._parser.finish():
            self._take(event)
        if not self._has_text:
            raise TranscriptError("answered with something else than a transcript")
        return self.text.strip()

    def _take(self, event: bytes) -> None:
        if event == b"[DONE]":
            return
        try:
            told = _decode_event(event)
        except (msgspec.DecodeError, RecursionError):
            raise TranscriptError("sent an event that cannot be read") from None
        if (told.error and told.error != b"null") or told.type == "error":
            raise TranscriptError("failed in its answer")
        if told.type == "transcript.text.delta":
            self.text += told.delta
            self._has_text = True
        elif told.text is not None and told.type in ("", "transcript.text.done"):
            self.text = told.text
            self._has_text = True


class _Stream:
    """One caller's utterance. ``asked`` hears its first ``asked_samples``."""

    __slots__ = ("asked", "asked_samples", "audio", "is_ending", "language", "told", "transcript", "turn")

    def __init__(self, language: str) -> None:
        self.language = language
        self.forget()

    def forget(self) -> None:
        """Drop the utterance."""
        self.turn = 0
        self.audio: Audio = _NO_AUDIO
        self.is_ending = False
        self.told = ""
        self.drop_request()

    def drop_request(self) -> None:
        self.asked: Asked | None = None
        self.asked_samples = 0
        self.transcript = Transcript()


class Transcription:
    """STT engine that asks an endpoint with OpenAI's `/v1/audio/transcriptions`. Stream options: language."""

    def __init__(self, params: Mapping[str, object]) -> None:
        kind = parameters.TranscriptionParameters
        self._settings = settings = parameters.read("transcription", kind, params)
        path, noun = "/audio/transcriptions", "transcription endpoint"
        self._requests = Requests("transcription", "stt", noun, path, settings)
        self.info = EngineInfo(
            "transcription", "stt", RATE_HZ, works_ahead=settings.works_ahead, options=("language",)
        )
        self._streams: dict[int, _Stream] = {}
        self._requests.open(self)

    def open(self, stream: int, params: StreamParams) -> None:
        for key in params.options:
            if key != "language":
                message = f"{key}: transcription has no such option; it has language"
                raise EngineError("bad_option", message)
        language = params.options.get("language", self._settings.language)
        if not isinstance(language, str) or not 0 < len(language) <= _MAX_LANGUAGE_CHARS:
            raise EngineError("bad_option", f"language: must be a language, such as de, not {language!r}")
        if stream in self._streams:
            raise EngineError("stream_open", "the stream is open already")
        self._streams[stream] = _Stream(language)

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        states = [self._streams[item.stream] for item in batch]
        for item, state in zip(batch, states, strict=True):
            if not item.is_continued:
                self._hear(item, state)
        return [self._output(item, state) for item, state in zip(batch, states, strict=True)]

    def cancel(self, stream: int, turn: int) -> None:
        state = self._streams.get(stream)
        if state is not None and state.turn <= turn:
            self._supersede(state)
            state.forget()

    def close(self, stream: int) -> None:
        state = self._streams.pop(stream, None)
        if state is not None:
            self._supersede(state)

    def _hear(self, item: Item, state: _Stream) -> None:
        state.turn = item.turn
        state.audio = np.concatenate((state.audio, item.audio))
        state.is_ending = state.is_ending or item.is_flush
        asked = state.asked
        # One that was asked ahead and failed: the turn is worth another.
        has_failed = asked is not None and asked.is_done and asked.failure is not None
        if has_failed or not self._is_silent(state.audio[state.asked_samples :]):
            self._supersede(state)
        is_due = item.is_flush or (item.is_pause and self.info.works_ahead)
        is_long = len(state.audio) >= _MIN_SAMPLES
        if is_due and is_long and state.asked is None and not self._is_silent(state.audio):
            state.asked = self._ask(state)
            state.asked_samples = len(state.audio)

    def _is_silent(self, audio: Audio) -> bool:
        return is_silent(audio, self._settings.silence_db)

    def _supersede(self, state: _Stream) -> None:
        if state.asked is not None:
            self._requests.cancel(state.asked)
            state.drop_request()

    def _ask(self, state: _Stream) -> Asked:
        settings = self._settings
        fields = {"model": settings.model, "response_format": "json"}
        if state.language.lower() != AUTO:
            # Endpoints know the two letters of a language, and not its countries.
            fields["language"] = state.language.replace("_", "-").partition("-")[0].lower()
        if settings.prompt:
            fields["prompt"] = settings.prompt
        if settings.streams:
            fields["stream"] = "true"
        boundary = secrets.token_hex(16)
        body = multipart(boundary, fields, wav_of(state.audio, RATE_HZ))
        return self._requests.ask(body, f"multipart/form-data; boundary={boundary}")

    def _output(self, item: Item, state: _Stream) -> Output:
        output = Output()
        if not state.is_ending:
            return output
        asked = state.asked
        if asked is None:
            output.pieces.append(Piece(ResultKind.FINAL, ""))
            state.forget()
            return output
        is_done = asked.is_done  # before looking: nothing is added after it
        try:
            self._read(asked, state)
            if is_done:
                self._end(asked, state, output)
                return output
        except TranscriptError as error:
            failure = self._requests.wrong(str(error))
            output.pieces.append(Piece(ResultKind.FAILED, encode(failure)))
            self._supersede(state)
            state.forget()
            return output
        text = state.transcript.text.strip()
        if len(text) > len(state.told) and not item.is_final_only:
            state.told = text
            output.pieces.append(Piece(ResultKind.TEXT, text))
        output.more, output.rest_ms = True, REST_MS
        return output

    def _read(self, asked: Asked, state: _Stream) -> None:
        while asked.chunks:
            state.transcript.feed(asked.chunks.popleft())

    def _end(self, asked: Asked, state: _Stream, output: Output) -> None:
        """The endpoint has said all."""
        if asked.failure is not None:
            output.pieces.append(Piece(ResultKind.FAILED, encode(asked.failure)))
        else:
            output.pieces.append(Piece(ResultKind.FINAL, state.transcript.finish()))
        state.forget()


def multipart(boundary: str, fields: Mapping[str, str], wav: bytes) -> bytes:
    """The body of a form with a recording in it (RFC 7578)."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="turn.wav"\r\n'
    return b"".join(
        (*parts, head.encode(), b"Content-Type: audio/wav\r\n\r\n", wav, f"\r\n--{boundary}--\r\n".encode())
    )
