"""espeak-ng by ctypes: load, speak, unload.

Used by one thread at a time, because the library is one global state per process. ``reload`` is how that state is
forgotten: flutter, gain and noise of the last sentence are nowhere to be reset but in a fresh copy of the library.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import espeakng_loader

RATE_HZ = 22050
_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_UTF8 = 1
_POSITION_CHARACTER = 1
_RTLD_NOW = 2
_RATE, _PITCH = 1, 3

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_INITIALIZE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_SET_CALLBACK = ctypes.CFUNCTYPE(None, _CALLBACK)
_SET_VOICE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)
_SET_PARAMETER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int)
_SET_SEED = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_long)
_LIST_VOICES = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_TERMINATE = ctypes.CFUNCTYPE(ctypes.c_int)
_SYNTH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_size_t,
    ctypes.c_uint,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint,
    ctypes.c_void_p,
    ctypes.c_void_p,
)

# Two in one process would be one state under two owners.
_is_free = threading.Lock()

Taker = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Voice:
    """path: of the voice file under ``lang``, with ``+variant``. rate_wpm: words per minute. pitch: 0 to 99."""

    path: str
    rate_wpm: int = 175
    pitch: int = 50


class EspeakError(Exception):
    """espeak-ng refused; the text is for the log."""


class Library:
    """A loaded, initialised espeak-ng with one voice set and nothing spoken yet."""

    def __init__(self, voice: Voice) -> None:
        self._libc = _libc()
        self._data_path = espeakng_loader.get_data_path().encode()
        self._taker: Taker | None = None
        self._callback = _CALLBACK(self._receive)
        self._has_spoken = False
        if not _is_free.acquire(blocking=False):
            raise EspeakError("this process has an espeak-ng already")
        self._load(voice)

    def speak(self, text: str, voice: Voice, taker: Taker) -> None:
        """Call ``taker`` with PCM16 at ``RATE_HZ`` as it is made, until the text ends or ``taker`` returns False."""
        if voice != self._voice or self._has_spoken:
            self.reload(voice)
        self._taker = taker
        self._has_spoken = True
        encoded = text.encode()
        status = self._synth(encoded, len(encoded) + 1, 0, _POSITION_CHARACTER, 0, _UTF8, None, None)
        self._taker = None
        if status:
            raise EspeakError(f"espeak_Synth returned {status}")

    def reload(self, voice: Voice) -> None:
        """Forget all that was spoken, and be ready for ``voice``."""
        self._unload()
        self._load(voice)

    def close(self) -> None:
        """Unload, so that the process may have another. Nothing may be asked of this one after it."""
        self._unload()
        _is_free.release()

    def _unload(self) -> None:
        # A voice file with capitals is found through the voice list, an array that espeak-ng never frees.
        listed = None if self._voice.path.islower() else self._list_voices(None)
        self._terminate()
        if listed:
            self._libc.free(listed)
        self._libc.dlclose(self._handle)

    def _load(self, voice: Voice) -> None:
        # Not ctypes.CDLL: it could not be unloaded again.
        self._handle = self._libc.dlopen(espeakng_loader.get_library_path().encode(), _RTLD_NOW)
        if not self._handle:
            raise EspeakError("espeak-ng cannot be loaded")
        rate_hz = _INITIALIZE(self._symbol("espeak_Initialize"))(
            _SYNCHRONOUS, 20, self._data_path, _DONT_EXIT
        )
        if rate_hz != RATE_HZ:
            raise EspeakError(f"espeak_Initialize returned {rate_hz}")
        self._list_voices = _LIST_VOICES(self._symbol("espeak_ListVoices"))
        self._terminate = _TERMINATE(self._symbol("espeak_Terminate"))
        self._synth = _SYNTH(self._symbol("espeak_Synth"))
        _SET_CALLBACK(self._symbol("espeak_SetSynthCallback"))(self._callback)
        _SET_SEED(self._symbol("espeak_ng_SetRandSeed"))(1)
        if _SET_VOICE(self._symbol("espeak_SetVoiceByName"))(voice.path.encode()):
            raise EspeakError(f"espeak-ng has no voice {voice.path}")
        set_parameter = _SET_PARAMETER(self._symbol("espeak_SetParameter"))
        set_parameter(_RATE, voice.rate_wpm, 0)
        set_parameter(_PITCH, voice.pitch, 0)
        self._voice = voice
        self._has_spoken = False

    def _symbol(self, name: str) -> int:
        address: int | None = self._libc.dlsym(self._handle, name.encode())
        if not address:
            raise EspeakError(f"espeak-ng has no {name}")
        return address

    def _receive(self, samples: int | None, count: int, events: int | None) -> int:
        if not samples or not count or self._taker is None:
            return 0
        return 0 if self._taker(ctypes.string_at(samples, 2 * count)) else 1


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.dlopen.restype = libc.dlsym.restype = ctypes.c_void_p
    libc.dlopen.argtypes = [ctypes.c_char_p, ctypes.c_int]
    libc.dlsym.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    libc.dlclose.argtypes = libc.free.argtypes = [ctypes.c_void_p]
    libc.free.restype = None
    return libc


@cache
def voice_paths() -> dict[str, str]:
    """Every voice by file name and by language code, in lower case -> its path under ``lang``."""
    root = Path(espeakng_loader.get_data_path()) / "lang"
    by_language: dict[str, tuple[int, str]] = {}
    by_name: dict[str, str] = {}
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        path = file.relative_to(root).as_posix()
        by_name[file.name.lower()] = path
        for line in file.read_text("utf-8", "replace").splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "language":
                # The lowest number is the voice that fits the language best.
                rank = int(words[2]) if len(words) > 2 and words[2].isdigit() else 5
                code = words[1].lower()
                by_language[code] = min(by_language.get(code, (rank, path)), (rank, path))
    return {code: path for code, (_, path) in by_language.items()} | by_name


@cache
def variants() -> frozenset[str]:
    """Timbres that can be put behind a voice: ``en-us+f3``."""
    root = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    return frozenset(path.name for path in root.iterdir())
