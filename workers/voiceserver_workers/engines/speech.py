"""Text to speech behind a URL: any endpoint with OpenAI's ``/v1/audio/speech``.

    sentence --POST--> body (PCM, WAV, events) --``SpokenBody``--> AUDIO as it comes, DONE once

The worker never waits: a step hands out what has come and lets the stream rest. A cancel closes the connection. What goes
wrong is FAILED with a message that names the setting, see ``http.requests``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from voiceserver_workers import parameters
from voiceserver_workers.engine import EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.engines.sentence_voice import number
from voiceserver_workers.engines.speech_body import BodyError, SpokenBody
from voiceserver_workers.http.requests import Asked, Requests
from voiceserver_workers.ipc.messages import Failure, ResultKind, StreamParams, encode
from voiceserver_workers.sentences import check_sentences, speakable

REST_MS: Final = 5.0
_OPTIONS: Final = ("voice", "speed")
_CHUNKS_PER_STEP: Final = 8  # of 4 KiB, so that sentences of several callers come out side by side
_MAX_VOICE_CHARS: Final = 200


@dataclass(slots=True)
class _Sentence:
    """``asked`` None: there is nothing to say. ``is_over``: all of it was handed out, or it failed."""

    turn: int
    asked: Asked | None
    is_over: bool = False
    body: SpokenBody | None = None
    spoken_samples: int = 0


@dataclass(slots=True)
class _Stream:
    voice: str
    speed: float
    sentences: deque[_Sentence]


class Speech:
    """TTS engine that asks an endpoint with OpenAI's `/v1/audio/speech`. Stream options: voice, speed."""

    def __init__(self, params: Mapping[str, object]) -> None:
        self._settings = settings = parameters.read("speech", parameters.SpeechParameters, params)
        self._requests = Requests("speech", "tts", "speech endpoint", "/audio/speech", settings)
        self.info = EngineInfo("speech", "tts", settings.rate_hz, options=_OPTIONS)
        self._streams: dict[int, _Stream] = {}
        self._requests.open(self)

    def open(self, stream: int, params: StreamParams) -> None:
        if stream in self._streams:
            raise EngineError("stream_open", "the stream is open already")
        for key in params.options:
            if key not in _OPTIONS:
                known = ", ".join(_OPTIONS)
                raise EngineError("bad_option", f"{key}: speech has no such option; it has {known}")
        voice = params.options.get("voice", self._settings.voice)
        if not isinstance(voice, str) or not 0 < len(voice) <= _MAX_VOICE_CHARS:
            raise EngineError("bad_option", f"voice: must be the name of a voice, not {voice!r}")
        try:
            speed = number("speed", params.options.get("speed", self._settings.speed), 0.25, 4.0)
        except ValueError as error:
            raise EngineError("bad_option", str(error)) from None
        self._streams[stream] = _Stream(voice, speed, deque())

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        states = [self._streams[item.stream] for item in batch]
        check_sentences(batch)
        for item, state in zip(batch, states, strict=True):
            if item.text is not None and not item.is_continued:
                text = speakable(item.text)
                asked = self._ask(text, state) if any(map(str.isalnum, text)) else None
                state.sentences.append(_Sentence(item.turn, asked))
        return [self._output(state) for state in states]

    def cancel(self, stream: int, turn: int) -> None:
        state = self._streams.get(stream)
        if state is None:
            return
        for sentence in state.sentences:
            if sentence.turn <= turn and sentence.asked is not None:
                self._requests.cancel(sentence.asked)
        state.sentences = deque(sentence for sentence in state.sentences if sentence.turn > turn)

    def close(self, stream: int) -> None:
        state = self._streams.pop(stream, None)
        for sentence in state.sentences if state is not None else ():
            if sentence.asked is not None:
                self._requests.cancel(sentence.asked)

    def _ask(self, text: str, state: _Stream) -> Asked:
        settings = self._settings
        body: dict[str, object] = {
            "model": settings.model,
            "input": text,
            "voice": state.voice,
            "response_format": settings.response_format,
        }
        if state.speed != 1.0:
            body["speed"] = state.speed
        if settings.instructions:
            body["instructions"] = settings.instructions
        if settings.stream_format != "auto":
            body["stream_format"] = settings.stream_format
        return self._requests.ask(encode(body), "application/json")

    def _output(self, state: _Stream) -> Output:
        if not state.sentences:
            return Output()
        output = Output()
        sentence = state.sentences[0]
        failure = self._take(sentence, output.pieces)
        if failure is not None:
            sentence.is_over = True
            output.pieces.append(Piece(ResultKind.FAILED, encode(failure)))
            if sentence.asked is not None:
                self._requests.cancel(sentence.asked)
        if sentence.is_over:
            state.sentences.popleft()
        output.more = bool(state.sentences)
        output.rest_ms = 0.0 if output.pieces else REST_MS
        return output

    def _take(self, sentence: _Sentence, pieces: list[Piece]) -> Failure | None:
        """Hand out what has come of ``sentence``."""
        asked = sentence.asked
        if asked is None:
            sentence.is_over = True
            pieces.append(Piece(ResultKind.DONE))
            return None
        is_done = asked.is_done  # before looking: nothing is added after it
        try:
            for _ in range(min(len(asked.chunks), _CHUNKS_PER_STEP)):
                self._hear(sentence, asked, asked.chunks.popleft(), pieces)
            if not is_done or asked.chunks:
                return None
            if asked.failure is not None:
                return asked.failure
            return self._end(sentence, pieces)
        except BodyError as error:
            return self._requests.wrong(str(error), setting=error.setting)

    def _hear(self, sentence: _Sentence, asked: Asked, data: bytes, pieces: list[Piece]) -> None:
        rate_hz = self.info.rate_hz
        if sentence.body is None:
            sentence.body = SpokenBody(asked.content_type, rate_hz, rate_hz)
        audio = sentence.body.feed(data)
        if audio.size:
            sentence.spoken_samples += audio.size
            pieces.append(Piece(ResultKind.AUDIO, audio))
        if sentence.spoken_samples > self._settings.max_audio_ms * rate_hz / 1000.0:
            seconds = self._settings.max_audio_ms / 1000.0
            raise BodyError(f"was cut off after {seconds:g} s of speech", "max_audio_ms")

    def _end(self, sentence: _Sentence, pieces: list[Piece]) -> Failure | None:
        audio = sentence.body.finish() if sentence.body is not None else None
        if audio is not None and audio.size:
            sentence.spoken_samples += audio.size
            pieces.append(Piece(ResultKind.AUDIO, audio))
        if not sentence.spoken_samples:
            return self._requests.wrong("answered without a sound")
        sentence.is_over = True
        pieces.append(Piece(ResultKind.DONE))
        return None
