"""The WhisperLive protocol, ``/v1/whisperlive``: transcription only, for the clients that WhisperLive 0.10 has.

::

    client                                  server
    JSON options {uid, language, ...}  -->
                                       <--  {uid, message: "SERVER_READY", backend}   or  {uid, status: "WAIT", message: minutes}
    binary audio, 16 kHz               -->
                                       <--  {uid, segments: [{start, end, text, completed}]}
    binary "END_OF_AUDIO"              -->

Options: ``uid`` (1 to 128 characters), ``language`` (at most 64), ``task``, ``audio_format``, ``send_last_n_segments``
(completed segments in each message; less than 1 means 1, more than 50 means 50); others are passed over.

Times are strings with three decimals and never run backwards; only the last segment may still change. ``WAIT`` makes a
client go away, so it is said before SERVER_READY only; later trouble is a ``WARNING`` with the numbers in its text. Nothing is
sent before the options, because a client drops what does not carry its uid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Annotated, Final, Literal

import msgspec

from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.events.events import ServerEvent
from voiceserver.events.fields import Language
from voiceserver.wire import Audio, Codec, CodecTraits, Frame, Received
from voiceserver.wire.decoding import field_error, why_unreadable
from voiceserver.wire.request import Wire
from voiceserver.wire.samples import float32_to_pcm, uint8_to_pcm

PATH: Final = "/v1/whisperlive"
RATE_HZ: Final = 16_000
END_OF_AUDIO: Final = b"END_OF_AUDIO"
BACKEND: Final = "faster_whisper"  # clients collect transcripts and write subtitles for this one only
# By ``audio_format``: bytes of a sample, and how to make PCM16 of them.
FORMATS: Final[dict[str, tuple[int, Callable[[bytes], bytes]]]] = {
    "float32": (4, float32_to_pcm),
    "int16": (2, bytes),
    "uint8": (1, uint8_to_pcm),
}
MAX_SEGMENTS: Final = 50
BAD_START: Final = 1003  # nothing can follow: without options there is no audio
_MS_PER_MINUTE: Final = 60_000.0


class _Options(msgspec.Struct, frozen=True):
    uid: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    language: Language | None = None
    task: str = "transcribe"
    audio_format: Literal["float32", "int16", "uint8"] = "float32"
    send_last_n_segments: int = 10


class _Uid(msgspec.Struct, frozen=True):
    uid: str = ""


class _Segment:
    __slots__ = ("end_ms", "is_completed", "is_stopped", "start_ms", "text", "turn")

    def __init__(self, turn: int, start_ms: float) -> None:
        self.turn = turn
        self.start_ms = start_ms
        self.end_ms = 0.0
        self.text = ""
        self.is_completed = False
        self.is_stopped = False


_decode: Final = msgspec.json.Decoder(_Options).decode
_decode_uid: Final = msgspec.json.Decoder(_Uid).decode
_encode: Final = msgspec.json.Encoder().encode


class WhisperLiveCodec(Codec):
    """One connection."""

    __slots__ = (
        "_format",
        "_grown",
        "_is_busy",
        "_is_ended",
        "_is_open",
        "_is_ready",
        "_last",
        "_named_uid",
        "_own",
        "_received",
        "_segments",
        "_wait_ms",
        "uid",
    )

    # Its clients know WAIT, and take an HTTP 503 for a broken server.
    traits = CodecTraits(name="whisperlive", tells_refusal=True)
    input_rate_hz = RATE_HZ
    output_rate_hz = RATE_HZ

    def __init__(self) -> None:
        self.uid = ""
        self._named_uid = ""  # of options that were refused: a client drops what does not carry its uid
        self._format = ""
        self._grown = ""  # the text that was last shown as not completed
        self._last = 10  # completed segments in each message
        self._received = 0  # samples
        self._is_open = False  # the session has begun
        self._is_ready = False  # SERVER_READY was said
        self._is_busy = False
        self._is_ended = False
        self._wait_ms = 0.0
        self._own: list[Frame] = []
        self._segments: deque[_Segment] = deque()

    # ------------------------------------------------------------------------------------------------------ inward

    def receive_text(self, message: bytes) -> Received:
        """The options, once. Raises ProtocolError."""
        if self.uid:
            raise ProtocolError("unexpected_text", "After the options there are binary messages only.")
        try:
            options = _decode(message)
        except msgspec.ValidationError as error:
            self._named_uid = _uid_of(message)
            found = field_error(error, _Options, code="invalid_options")
            code = "unsupported_format" if found.param == "audio_format" else found.code
            text = f"The options are wrong. {found.message}"
            raise ProtocolError(code, text, param=found.param, close_code=BAD_START) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(
                "invalid_options",
                f"The first message must be a JSON object with a 'uid': {why_unreadable(error, message)}.",
                close_code=BAD_START,
            ) from None
        self.uid, self._format = options.uid, options.audio_format
        self._last = min(max(options.send_last_n_segments, 1), MAX_SEGMENTS)
        if options.task != "transcribe":
            self._own += self._status(
                "WARNING", f"There is no task {options.task[:40]!r} here: this is transcribed."
            )
        if self._is_busy:
            self._own += self._wait()
        elif self._is_open:
            self._own += self._ready()
        language = options.language or msgspec.UNSET
        return [ev.SessionUpdate(replies=False, speaks=False, transcribes=True, language=language)]

    def receive_binary(self, message: bytes) -> Received:  # hot
        """Audio in the format of the options, or the end of it. Raises ProtocolError."""
        if not self.uid:
            text = "The first message must be the options, as JSON text."
            raise ProtocolError("options_missing", text, close_code=BAD_START)
        if message == END_OF_AUDIO:
            self._is_ended = True
            return [ev.SessionClose()]
        if self._is_ended:
            raise ProtocolError("audio_ended", "There was audio after END_OF_AUDIO. It was not used.")
        sample_bytes, to_pcm = FORMATS[self._format]
        if len(message) % sample_bytes:
            raise ProtocolError(
                "audio_misaligned",
                f"A message must be whole {self._format} samples; this one has {len(message)} bytes. It was not used.",
            )
        if not message:
            return []
        self._received += len(message) // sample_bytes
        return [Audio(to_pcm(message))]

    # ----------------------------------------------------------------------------------------------------- outward

    def encode(self, event: ServerEvent) -> list[Frame]:
        if isinstance(event, ev.TranscriptPartial):
            return self._transcript(event.turn, event.text, is_completed=False)
        if isinstance(event, ev.TranscriptFinal):
            return self._transcript(event.turn, event.text, is_completed=True)
        if isinstance(event, ev.SpeechStarted):
            self._segment(event.turn, event.at_ms)
        elif isinstance(event, ev.SpeechStopped):
            segment = self._segment(event.turn, event.at_ms)
            segment.end_ms, segment.is_stopped = max(event.at_ms, segment.start_ms), True
        elif isinstance(event, ev.SessionReady):
            self._is_open = True
            return self._ready() if self.uid and not self._is_busy else []
        elif isinstance(event, ev.ServerBusy):
            return self._busy(event)
        elif isinstance(event, ev.ServerReady):
            self._is_busy = False
            return self._ready() if self.uid and self._is_open and not self._is_ready else []
        else:
            return self._trouble(event)
        return []

    def encode_protocol_error(self, error: ProtocolError) -> list[Frame]:
        # An ERROR makes a client give up, which is right for one that could not even begin.
        return self._status("WARNING" if self._is_ready else "ERROR", str(error), is_early=True)

    def frames_to_send(self) -> list[Frame]:
        own, self._own = self._own, []
        return own

    def _ready(self) -> list[Frame]:
        self._is_ready = True
        return [self._frame(message="SERVER_READY", backend=BACKEND)]

    def _busy(self, event: ev.ServerBusy) -> list[Frame]:
        if not event.is_late:
            text = f"The server is busy; degraded for now: {', '.join(event.degraded)}."
            return self._status("WARNING", text) if self._is_ready else []
        if self._is_ready:
            text = f"The server is busy ({event.stage}): {event.lag_ms:.0f} ms behind"
            text += f", {event.dropped_ms:.0f} ms dropped" if event.dropped_ms else ""
            return self._status("WARNING", f"{text}; about {event.retry_after_ms:.0f} ms to go.")
        self._is_busy = True
        self._wait_ms = event.retry_after_ms
        return self._wait() if self.uid else []

    def _wait(self) -> list[Frame]:
        minutes = round(self._wait_ms / _MS_PER_MINUTE, 3)
        return [self._frame(status="WAIT", message=minutes)]

    def _trouble(self, event: ServerEvent) -> list[Frame]:
        if isinstance(event, ev.ErrorEvent):
            return self._status("WARNING" if self._is_ready else "ERROR", event.message)
        if isinstance(event, ev.TranscriptFailed):
            return self._status("WARNING", f"A part was not transcribed: {event.message}")
        if isinstance(event, ev.ServerDraining):
            return self._status("WARNING", "The server is shutting down; the turn in progress is finished.")
        if isinstance(event, ev.SessionClosing) and not self._is_ended and self.uid:
            return [self._frame(message="DISCONNECT")]
        return []

    def _status(self, status: str, message: str, *, is_early: bool = False) -> list[Frame]:
        return [self._frame(status=status, message=message)] if self.uid or is_early else []

    def _frame(self, **fields: object) -> Frame:
        return _encode({"uid": self.uid or self._named_uid, **fields}).decode()

    # ---------------------------------------------------------------------------------------------------- segments

    def _segment(self, turn: int, start_ms: float) -> _Segment:
        """The segment of ``turn``; a new one begins no earlier than the last has ended, for padding overlaps."""
        for segment in reversed(self._segments):
            if segment.turn == turn:
                return segment
        last = self._segments[-1] if self._segments else None
        segment = _Segment(turn, max(start_ms, last.end_ms if last is not None else 0.0))
        self._segments.append(segment)
        while len(self._segments) > MAX_SEGMENTS:
            self._segments.popleft()
        return segment

    def _transcript(self, turn: int, text: str, *, is_completed: bool) -> list[Frame]:
        clock_ms = self._received * 1000.0 / RATE_HZ
        segment = self._segment(turn, clock_ms)
        if segment.is_completed:
            return []
        if is_completed and not text.strip():
            self._segments.remove(segment)
            return []
        segment.text = text.strip()
        if not segment.is_stopped:
            segment.end_ms = max(clock_ms, segment.start_ms)
        frames: list[Frame] = []
        # The client writes the last text that it saw growing behind the transcript, unless the completed one is the same.
        if not is_completed or self._grown not in ("", segment.text):
            self._grown = segment.text
            frames = self._shown()
        if is_completed:
            segment.is_completed = True
            frames += self._shown()
        return frames

    def _shown(self) -> list[Frame]:
        shown = [one for one in self._segments if one.text]
        completed = [one for one in shown if one.is_completed][-self._last :]
        growing = [one for one in shown if not one.is_completed]
        return (
            [self._frame(segments=[_segment_fields(one) for one in (*completed, *growing)])] if shown else []
        )


# Its clients can be told a host and a port, but no path.
WIRE: Final = Wire(name="whisperlive", paths=(PATH, "/"), make_codec=lambda request: WhisperLiveCodec())


def _uid_of(message: bytes) -> str:
    """Of options that are wrong otherwise; "" where that cannot be read or is itself what is wrong."""
    try:
        return _decode_uid(message).uid[:128]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _segment_fields(segment: _Segment) -> dict[str, object]:
    """As Whisper does, text begins with a space, so that clients may join it."""
    return {
        "start": f"{segment.start_ms / 1000.0:.3f}",
        "end": f"{segment.end_ms / 1000.0:.3f}",
        "text": f" {segment.text}",
        "completed": segment.is_completed,
    }
