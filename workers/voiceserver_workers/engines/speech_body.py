"""The body of a spoken answer, sans I/O: bytes in, float32 audio at one rate out. The rate is checked and not believed.

What the bytes are decides, before what the headers say::

    RIFF....WAVE            a WAV: rate, channels and kind of samples are those of its header; a size that a stream cannot
                            know yet (0, or beyond 2 GB) is passed over
    data: {"audio": ...}    server-sent events (``speech.audio.delta``), with either of the others in base64
    anything else           PCM, 16 bits, little-endian, mono, at the rate that the content type names, else the one expected

MP3, Ogg, FLAC, JSON and pages are refused by name: played as PCM they would be noise.
"""

from __future__ import annotations

from email.message import Message
from typing import Final

import msgspec
import numpy as np

from voiceserver_workers.audio import Resampler
from voiceserver_workers.engine import Audio
from voiceserver_workers.http.body import BodyParser, EventTooLong

MAX_EVENT_BYTES: Final = 4_194_304
MAX_HEADER_BYTES: Final = 65_536
RATES_HZ: Final = (8_000, 192_000)
MOST_CHANNELS: Final = 8
_SNIFFED_BYTES: Final = 12
_OTHERS: Final = {b"ID3": "MP3", b"OggS": "Ogg", b"fLaC": "FLAC"}
_KINDS: Final = {
    "audio/mpeg": "MP3",
    "audio/mp3": "MP3",
    "audio/ogg": "Ogg",
    "audio/opus": "Opus",
    "audio/flac": "FLAC",
    "audio/aac": "AAC",
    "application/json": "JSON",
    "text/html": "a page",
    "text/plain": "text",
}
_UNKNOWN_BYTES: Final = 0x7FFF0000
_EXTENSIBLE: Final = 0xFFFE
# Format tag and bits of a sample: the type of numpy, and what full scale is.
_SAMPLES: Final = {
    (1, 8): ("u1", 128.0),
    (1, 16): ("<i2", 32768.0),
    (1, 32): ("<i4", 2147483648.0),
    (3, 32): ("<f4", 1.0),
    (3, 64): ("<f8", 1.0),
}
_NOTHING: Audio = np.empty(0, np.float32)


class BodyError(Exception):
    """The body is no speech that can be played. The text goes on from "The endpoint ...". ``setting``: of the engine, that may
    help; empty for none."""

    def __init__(self, what: str, setting: str = "") -> None:
        super().__init__(what)
        self.setting = setting


class _Event(msgspec.Struct):
    type: str = ""
    audio: bytes = b""
    error: msgspec.Raw = msgspec.Raw(b"")


_decode_event = msgspec.json.Decoder(_Event).decode


class SpokenBody:
    """rate_hz: of the audio that comes out. pcm_hz: of PCM that does not name its own."""

    def __init__(self, content_type: str, rate_hz: int, pcm_hz: int) -> None:
        header = Message()
        header["Content-Type"] = content_type
        self._kind = header.get_content_type() if content_type else ""
        self._rate_hz = rate_hz
        self._pcm_hz = _checked_rate(str(header.get_param("rate") or pcm_hz))
        self._events = BodyParser(MAX_EVENT_BYTES) if self._kind == "text/event-stream" else None
        self._head: bytearray | None = bytearray()  # until the samples begin
        self._format = ("<i2", 32768.0, 1)  # of a sample; channels
        self._left_bytes: int | None = None  # of the samples of a WAV; what is behind them is no sound
        self._rest = b""
        self._resampler: Resampler | None = None

    def feed(self, data: bytes) -> Audio:
        """What can be played by now. Raises BodyError."""
        if self._events is None:
            return self._audio(data)
        try:
            return _joined([self._event(event) for event in self._events.feed(data)])
        except EventTooLong:
            raise BodyError("sent an event without an end") from None

    def finish(self) -> Audio:
        """The body is over: the rest. Raises BodyError."""
        parts = [self._event(event) for event in self._events.finish()] if self._events is not None else []
        if self._head:  # shorter than what tells one kind from the other
            if self._head.startswith(b"RIFF"):
                raise BodyError("broke off within the header of a WAV")
            self._begin_pcm()
            parts.append(self._samples(self._take_head()))
        if self._resampler is not None:
            parts.append(self._resampler.flush())
        return _joined(parts)

    def _event(self, event: bytes) -> Audio:
        if event == b"[DONE]":
            return _NOTHING
        try:
            told = _decode_event(event)
        except (msgspec.DecodeError, RecursionError):
            raise BodyError("sent an event that cannot be read") from None
        if told.error or told.type == "error":
            raise BodyError("failed in its answer")
        return self._audio(told.audio)

    def _audio(self, data: bytes) -> Audio:
        if self._head is None:
            return self._samples(data)
        self._head += data
        if len(self._head) < _SNIFFED_BYTES:
            return _NOTHING
        if not self._head.startswith(b"RIFF"):
            self._begin_pcm()
        elif not self._read_header(self._head):
            if len(self._head) > MAX_HEADER_BYTES:
                raise BodyError("sent the header of a WAV without an end")
            return _NOTHING
        return self._samples(self._take_head())

    def _take_head(self) -> bytes:
        data, self._head = bytes(self._head or b""), None
        return data

    def _begin_pcm(self) -> None:
        assert self._head is not None
        found = next((name for magic, name in _OTHERS.items() if self._head.startswith(magic)), "")
        found = found or ("" if self._events is not None else _KINDS.get(self._kind, ""))
        if found:
            raise BodyError(f"answered with {found}, not with PCM or WAV", "response_format")
        self._set_rate(self._pcm_hz)

    def _set_rate(self, rate_hz: int) -> None:
        if rate_hz != self._rate_hz:
            self._resampler = Resampler(rate_hz, self._rate_hz)

    def _read_header(self, head: bytearray) -> bool:
        """True: it is whole, and what is left in ``head`` are samples. Raises BodyError."""
        if head[8:12] != b"WAVE":
            raise BodyError("answered with a RIFF file that is no WAV")
        at, has_format = 12, False
        while at + 8 <= len(head):
            name, size = bytes(head[at : at + 4]), int.from_bytes(head[at + 4 : at + 8], "little")
            if name == b"data":
                if not has_format:
                    raise BodyError("sent a WAV with a broken header")
                self._left_bytes = size if 0 < size < _UNKNOWN_BYTES else None
                del head[: at + 8]
                return True
            if at + 8 + size > len(head):
                return False
            if name == b"fmt ":
                has_format = True
                self._read_format(bytes(head[at + 8 : at + 8 + size]))
            at += 8 + size + (size & 1)
        return False

    def _read_format(self, body: bytes) -> None:
        if len(body) < 16:
            raise BodyError("sent a WAV with a broken header")
        tag, channels, bits = (int.from_bytes(body[at : at + 2], "little") for at in (0, 2, 14))
        if tag == _EXTENSIBLE and len(body) >= 26:
            tag = int.from_bytes(body[24:26], "little")
        if (tag, bits) not in _SAMPLES or not 1 <= channels <= MOST_CHANNELS:
            raise BodyError(f"sent a WAV of a kind that cannot be played (format {tag}, {bits} bits)")
        self._format = (*_SAMPLES[tag, bits], channels)
        self._set_rate(_checked_rate(str(int.from_bytes(body[4:8], "little"))))

    def _samples(self, data: bytes) -> Audio:
        kind, scale, channels = self._format
        if self._left_bytes is not None:
            data = data[: self._left_bytes]
            self._left_bytes -= len(data)
        data = self._rest + data
        size = np.dtype(kind).itemsize * channels
        end = len(data) - len(data) % size
        self._rest = data[end:]
        audio = np.frombuffer(data[:end], kind).astype(np.float32)
        if kind == "u1":
            audio -= np.float32(scale)
        audio *= np.float32(1.0 / scale)
        if channels > 1:
            audio = audio.reshape(-1, channels).mean(axis=1, dtype=np.float32)
        return audio if self._resampler is None else self._resampler.process(audio)


def _checked_rate(text: str) -> int:
    rate_hz = int(text) if text.isascii() and text.isdigit() else 0
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise BodyError(f"names a rate that no speech has: {text[:20]!r}")
    return rate_hz


def _joined(parts: list[Audio]) -> Audio:
    return np.concatenate(parts) if parts else _NOTHING
