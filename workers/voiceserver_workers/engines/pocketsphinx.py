"""CMU PocketSphinx speech to text: English, on the CPU, no network.

A decoder cannot batch and holds the GIL, so a worker has a small pool of them (``decoders``) and a stream holds one
from open to close: it is opened at the start of speech and closed after the transcript.

Nothing of one caller reaches the next. What a decoder would carry over is the cepstral mean, its guess of the channel
(microphone, gain, room). Each utterance sets it afresh: the mean of the first ``cmn_ms`` of the utterance itself, leaning
on a prior while that is short. A fixed prior instead costs twice the word errors. The price: words are looked for only
once that much is heard, or the utterance ends.

Audio is decoded in blocks of 100 ms at fixed places, so the result does not depend on how the audio was cut up. One
step takes 100 ms of a stream's audio at most and asks for ``more``, so that callers take turns.

A pause ends a segment: its words are settled while the server still waits to see whether the caller goes on, so the
transcript is ready when the turn ends. A segment that follows keeps the channel found in the one before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from voiceserver_workers import parameters
from voiceserver_workers.audio import float_to_pcm16
from voiceserver_workers.engine import EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

if TYPE_CHECKING:
    from pocketsphinx import Decoder

RATE_HZ = 16000
_SAMPLE_BYTES = 2
_BLOCK_BYTES = RATE_HZ // 10 * _SAMPLE_BYTES
_BLOCKS_PER_STEP = 1
# A partial is what two hypotheses this far apart agree on.
_BLOCKS_PER_PARTIAL = 3
# Frames of the front end: 25.6 ms every 10 ms.
_FRAME_BYTES, _HOP_BYTES = 410 * _SAMPLE_BYTES, 160 * _SAMPLE_BYTES
# A search for one word, run where only the features are wanted: ending an utterance searches all of it, and with the
# language model that takes a third of a second for the 1.2 s that the channel is judged by; with this one, 3 ms.
_TINY_SEARCH, _ONE_WORD = "tiny", "ah"
# The live mean counts what was set as this many frames of audio.
_FRAMES_OF_SET_MEAN = 500
# The model's training data, and how many frames of the utterance weigh as much.
_PRIOR_MEAN = (41.00, -5.29, -0.12, 5.09, 2.48, -4.07, -1.37, -1.78, -5.08, -2.05, -6.45, -1.42, 1.17)
_PRIOR_FRAMES = 30


@dataclass(frozen=True, slots=True)
class _Settings:
    """``PocketSphinxParameters`` whose paths exist."""

    decoders: int
    cmn_ms: int
    hmm: str
    lm: str
    dict: str

    @classmethod
    def read(cls, params: Mapping[str, object]) -> _Settings:
        """Raises ValueError naming the key."""
        given = parameters.read("pocketsphinx", parameters.PocketSphinxParameters, params)
        paths = (_path(key, getattr(given, key)) for key in ("hmm", "lm", "dict"))
        return cls(given.decoders, given.cmn_ms, *paths)

    def make_decoder(self) -> Decoder:
        from pocketsphinx import Decoder

        paths = {key: value for key in ("hmm", "lm", "dict") if (value := getattr(self, key))}
        decoder = Decoder(fwdflat=False, loglevel="FATAL", samprate=RATE_HZ, **paths)
        if decoder.lookup_word(_ONE_WORD) is not None:  # another dictionary may lack it
            decoder.add_jsgf_string(_TINY_SEARCH, f"#JSGF V1.0; grammar tiny; public <word> = {_ONE_WORD};")
        return decoder


# Made in the forkserver, taken by the worker: what is forked from one loaded parent shares the model's memory.
_preloaded: dict[_Settings, list[Decoder]] = {}


class _Stream:
    """One lane: a decoder, and the utterance on it, if there is one."""

    __slots__ = (
        "blocks",
        "decoder",
        "is_ending",
        "is_final_only",
        "is_pausing",
        "is_started",
        "last_words",
        "mean",
        "pending",
        "settled_words",
        "stable_words",
        "turn",
    )

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.is_started = False
        self.is_final_only = False
        self.forget()

    def forget(self) -> None:
        """Drop the utterance."""
        if self.is_started:
            self.decoder.end_utt()
        self.is_started = False
        self.is_ending = False
        self.is_pausing = False
        self.mean = ""  # the channel, once a segment has found it
        self.settled_words: list[str] = []  # of segments that a pause has ended
        self.turn = 0
        self.pending = bytearray()
        self.blocks = 0
        self.last_words: list[str] = []
        self.stable_words: list[str] = []


class PocketSphinx:
    """STT engine. Stream options: language, which must be English."""

    def __init__(self, params: Mapping[str, object]) -> None:
        self._settings = _Settings.read(params)
        self.info = EngineInfo(
            "pocketsphinx",
            "stt",
            RATE_HZ,
            self._settings.decoders,
            _BLOCK_BYTES // _SAMPLE_BYTES,
            works_ahead=True,
        )
        self._free = _preloaded.pop(self._settings, [])
        while len(self._free) < self._settings.decoders:
            self._free.append(self._settings.make_decoder())
        self._cmn_bytes = self._settings.cmn_ms * RATE_HZ // 1000 * _SAMPLE_BYTES
        self._streams: dict[int, _Stream] = {}

    @staticmethod
    def preload(params: Mapping[str, object]) -> None:
        """Make the decoders once; forked workers share their memory until they write to it."""
        settings = _Settings.read(params)
        if settings not in _preloaded:
            _preloaded[settings] = [settings.make_decoder() for _ in range(settings.decoders)]

    def open(self, stream: int, params: StreamParams) -> None:
        for key, value in params.options.items():
            if key != "language":
                raise EngineError("bad_option", f"{key}: pocketsphinx has no such option; it has language")
            if not isinstance(value, str) or value.lower().replace("_", "-").partition("-")[0] != "en":
                raise EngineError("bad_option", f"language: pocketsphinx understands en, not {value!r}")
        if stream in self._streams:
            raise EngineError("stream_open", "the stream is open already")
        if not self._free:
            raise EngineError("engine_full", f"all {self._settings.decoders} decoders are taken")
        self._streams[stream] = _Stream(self._free.pop())

    def cancel(self, stream: int, turn: int) -> None:
        state = self._streams.get(stream)
        if state is not None and state.turn <= turn:
            state.forget()

    def close(self, stream: int) -> None:
        state = self._streams.pop(stream, None)
        if state is not None:
            state.forget()
            self._free.append(state.decoder)

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        states = [self._streams[item.stream] for item in batch]
        return [self._advance(state, item) for state, item in zip(states, batch, strict=True)]

    def _advance(self, state: _Stream, item: Item) -> Output:
        pieces: list[Piece] = []
        state.is_final_only = item.is_final_only
        if not item.is_continued:
            if state.is_ending or state.is_pausing:
                # More came before the last was asked for to its end.
                while not self._decode(state, pieces):
                    pass
            state.turn = item.turn
            state.pending += float_to_pcm16(item.audio)
            state.is_ending, state.is_pausing = item.is_flush, item.is_pause
        is_done = self._decode(state, pieces)
        return Output(pieces, more=not is_done)

    def _decode(self, state: _Stream, pieces: list[Piece]) -> bool:
        """Decode what one step may. True: nothing is left to do until more audio comes."""
        is_last = state.is_ending or state.is_pausing
        if not state.is_started:
            if len(state.pending) < (_BLOCK_BYTES if state.mean else self._cmn_bytes) and not is_last:
                return True
            if state.pending:
                self._start(state)
        for _ in range(_BLOCKS_PER_STEP):
            if len(state.pending) < _BLOCK_BYTES:
                break
            state.decoder.process_raw(bytes(state.pending[:_BLOCK_BYTES]), False, False)
            del state.pending[:_BLOCK_BYTES]
            state.blocks += 1
            is_due = state.blocks % _BLOCKS_PER_PARTIAL == 0 and not state.is_final_only
            if is_due and _agree(state):
                pieces.append(Piece(ResultKind.TEXT, _text(state, state.stable_words)))
        if len(state.pending) >= _BLOCK_BYTES:
            return False
        if is_last:
            _settle(state)
            if state.is_ending:
                pieces.append(Piece(ResultKind.FINAL, _text(state, [])))
                state.forget()
            elif state.settled_words:
                pieces.append(Piece(ResultKind.TEXT, _text(state, [])))
            state.is_pausing = False
        return True

    def _start(self, state: _Stream) -> None:
        if not state.mean:
            state.mean = _channel_mean(state.decoder, bytes(state.pending[: self._cmn_bytes]))
        _forget_channel(state.decoder, state.mean)
        state.decoder.start_utt()
        state.is_started = True


def _settle(state: _Stream) -> None:
    """End the segment: its words will not change any more, and the decoder is ready for the next."""
    if not state.is_started:
        return
    if state.pending:
        state.decoder.process_raw(bytes(state.pending), False, False)
        state.pending = bytearray()
    state.decoder.end_utt()
    state.is_started = False
    state.settled_words += _words(state.decoder)
    state.blocks = 0
    state.last_words, state.stable_words = [], []


def _text(state: _Stream, words: Sequence[str]) -> str:
    return " ".join((*state.settled_words, *words))


def _words(decoder: Decoder) -> list[str]:
    hypothesis = decoder.hyp()
    return hypothesis.hypstr.split() if hypothesis is not None else []


def _agree(state: _Stream) -> bool:
    """True if two hypotheses in a row now agree on more words than were told. What was told is never taken back."""
    words, last_words = _words(state.decoder), state.last_words
    state.last_words = words
    count = 0
    for word, last_word in zip(words, last_words, strict=False):
        if word != last_word:
            break
        count += 1
    told = len(state.stable_words)
    if count <= told or words[:told] != state.stable_words:
        return False
    state.stable_words = words[:count]
    return True


def _channel_mean(decoder: Decoder, audio: bytes) -> str:
    """The cepstral mean of ``audio`` (PCM16), leaning on the prior, in the form that ``set_cmn`` takes."""
    frames = (len(audio) - _FRAME_BYTES) // _HOP_BYTES + 1
    if frames < 1:
        return _cmn_text(_PRIOR_MEAN)
    search = decoder.current_search()
    if decoder.lookup_word(_ONE_WORD) is not None:
        decoder.activate_search(_TINY_SEARCH)
    _forget_channel(decoder, _cmn_text(_PRIOR_MEAN))
    decoder.start_utt()
    decoder.process_raw(audio, True, False)
    blended = [float(value) for value in decoder.get_cmn(True).split(",")]
    decoder.end_utt()
    decoder.activate_search(search)
    means = []
    for value, prior in zip(blended, _PRIOR_MEAN, strict=True):
        total = value * (_FRAMES_OF_SET_MEAN + frames) - prior * _FRAMES_OF_SET_MEAN
        means.append((total + prior * _PRIOR_FRAMES) / (frames + _PRIOR_FRAMES))
    return _cmn_text(means)


def _forget_channel(decoder: Decoder, mean: str) -> None:
    # A new front end: the old one keeps an estimate of the noise, which would pass to the next utterance.
    decoder.reinit_feat()
    decoder.set_cmn(mean)


def _cmn_text(mean: Sequence[float]) -> str:
    return ",".join(f"{value:.6g}" for value in mean)


def _path(key: str, value: object) -> str:
    if not isinstance(value, str) or (value and not Path(value).exists()):
        raise ValueError(f"{key}: must be a path that exists, not {value!r}")
    return value
