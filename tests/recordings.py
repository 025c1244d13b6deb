"""Speech for tests: people's recordings beside the project, or, where there are none, speech made by espeak.

The name tells which: made speech is called ``made-…``, so that every test report shows it.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr

RATE_HZ = 16000
ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT.parent / "shared" / "audio"
WORDS = {
    "goforward.wav": "go forward ten meters",
    "austen-0880.wav": "he was not an ill disposed young man",
    "austen-0890.wav": "unless to be rather cold hearted and rather selfish is to be ill disposed",
    "austen-0930.wav": "he might even have been made amiable himself",
    "jfk.flac": "and so my fellow americans ask not what your country can do for you "
    "ask what you can do for your country",
}
# For tests whose words only a person's speech brings across.
spoken_by_people = pytest.mark.skipif(
    not (FOLDER / "goforward.wav").is_file(), reason="the recordings in ../shared/audio are not here"
)
MADE = {"made-goforward": "go forward ten meters", "made-hello": "hello there, this is a test"}

Audio = npt.NDArray[np.float32]


class Recording(NamedTuple):
    """audio: float32 (n,) mono at 16 kHz. words: what is said. is_made: by espeak, not by a person."""

    name: str
    audio: Audio
    words: str
    is_made: bool


def plain(text: str) -> str:
    """The words of ``text`` as in ``WORDS``, whatever punctuation, capitals and spelling the recogniser chose."""
    known = {"metres": "meters", "10": "ten"}
    return " ".join(known.get(word, word) for word in re.sub(r"[^\w' ]", " ", text.lower()).split())


def likeness(heard: str, said: str) -> float:
    """How much of what was said is among the words that were heard, in order: 1.0 for all of it. A recogniser may take one
    word for another when the audio was cut up in another way."""
    words, expected = plain(heard).split(), plain(said).split()
    matcher = difflib.SequenceMatcher(None, words, expected, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / len(expected)


def names() -> list[str]:
    return [name for name in WORDS if (FOLDER / name).is_file()] or list(MADE)


@cache
def recording(name: str) -> Recording:
    if name in MADE:
        return Recording(name, _made(MADE[name]), MADE[name], True)
    audio, rate_hz = soundfile.read(FOLDER / name, dtype="float32", always_2d=True)
    return Recording(name, soxr.resample(audio.mean(1), rate_hz, RATE_HZ), WORDS[name], False)


def goforward() -> Recording:
    return recording("goforward.wav" if "goforward.wav" in names() else "made-goforward")


def _made(words: str) -> Audio:
    from voiceserver_workers.engine import Item
    from voiceserver_workers.engines.espeak import RATE_HZ as MADE_HZ
    from voiceserver_workers.engines.espeak import Espeak
    from voiceserver_workers.ipc.messages import StreamParams

    nothing = np.empty(0, np.float32)
    engine = Espeak({"voice": "en-us"})
    engine.open(1, StreamParams())
    output = engine.step([Item(1, 1, nothing, words)])[0]
    pieces = list(output.pieces)
    while output.more:
        output = engine.step([Item(1, 1, nothing, is_continued=True)])[0]
        pieces += output.pieces
    silence = np.zeros(MADE_HZ // 2, np.float32)
    frames = [payload for _, payload in pieces if isinstance(payload, np.ndarray)]
    return soxr.resample(np.concatenate((silence, *frames, silence)), MADE_HZ, RATE_HZ)
