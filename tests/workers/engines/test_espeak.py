"""espeak: the same sentence is the same samples, whatever was spoken before, and it can be stopped at any frame."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from tests import recordings
from voiceserver_workers.engine import EngineError, Item
from voiceserver_workers.engines.espeak import FRAME_SAMPLES, Espeak
from voiceserver_workers.engines.espeak_library import RATE_HZ
from voiceserver_workers.ipc.messages import ResultKind, StreamParams
from voiceserver_workers.sentences import MAX_TEXT_CHARS

SENTENCE = "You said: go forward ten meters."
NOTHING = np.empty(0, np.float32)


def say(engine: Espeak, stream: int, text: str) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    output = engine.step([Item(stream, 1, NOTHING, text)])[0]
    while True:
        for kind, payload in output.pieces:
            if kind == ResultKind.AUDIO:
                assert isinstance(payload, np.ndarray)
                frames.append(payload)
        if not output.more:
            break
        output = engine.step([Item(stream, 1, NOTHING, is_continued=True)])[0]
    assert output.pieces[-1].kind == ResultKind.DONE
    return frames


def digest(frames: list[np.ndarray]) -> str:
    return hashlib.sha256(np.concatenate(frames).tobytes()).hexdigest()


@pytest.fixture
def engine() -> Espeak:
    engine = Espeak({})
    engine.open(1, StreamParams())
    return engine


def test_audio_comes_in_frames_of_20_ms_and_is_speech(engine: Espeak) -> None:
    frames = say(engine, 1, SENTENCE)
    assert {len(frame) for frame in frames[:-1]} == {FRAME_SAMPLES}
    assert 0 < len(frames[-1]) <= FRAME_SAMPLES
    audio = np.concatenate(frames)
    assert 1.0 < len(audio) / RATE_HZ < 5.0
    assert 0.2 < np.abs(audio).max() <= 1.0
    assert audio.dtype == np.float32


@pytest.mark.parametrize("voice", ["en-us", "en", "de", "en-us+f3"])
def test_the_same_sentence_is_the_same_samples(voice: str) -> None:
    engine = Espeak({"voice": voice})
    engine.open(1, StreamParams())
    engine.open(2, StreamParams(options={"voice": "fr", "rate": 300}))
    first = digest(say(engine, 1, SENTENCE))
    say(engine, 1, "Something else, of another length!")
    say(engine, 2, "Et encore une phrase.")
    assert digest(say(engine, 1, SENTENCE)) == first
    assert digest(say(engine, 1, SENTENCE)) == first


def test_another_process_makes_the_same_samples(engine: Espeak) -> None:
    """What a crash replay relies on."""
    code = (
        "from tests.workers.engines.test_espeak import *\n"
        "engine = Espeak({})\n"
        "engine.open(1, StreamParams())\n"
        "say(engine, 1, 'Anything first.')\n"
        "print(digest(say(engine, 1, SENTENCE)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=recordings.ROOT,
    )
    assert done.stdout.strip() == digest(say(engine, 1, SENTENCE))


def test_the_first_frames_are_there_before_the_sentence_is_complete(engine: Espeak) -> None:
    long = "This is a rather long sentence. " * 100
    output = engine.step([Item(1, 1, NOTHING, long)])[0]
    while not output.pieces:
        output = engine.step([Item(1, 1, NOTHING, is_continued=True)])[0]
    sentence = engine._streams[1].sentences[0]
    assert output.more
    assert not sentence.is_done or sentence.chunks
    assert output.pieces[0].kind == ResultKind.AUDIO


def test_the_library_stops_in_mid_sentence_when_told() -> None:
    """In a process of its own: espeak-ng is one to a process, and this one's belongs to the engine."""
    code = (
        "from voiceserver_workers.engines.espeak_library import *\n"
        "voice = Voice(voice_paths()['en-us'])\n"
        "library = Library(voice)\n"
        "taken = []\n"
        "library.speak('Blah blah. ' * 50, voice, lambda pcm: taken.append(pcm) or len(taken) < 3)\n"
        "assert len(taken) == 3, len(taken)\n"
        "whole = []\n"
        "library.speak('Hello there.', voice, lambda pcm: whole.append(pcm) is None)\n"
        "assert len(whole) > 3\n"
        "try: Library(voice)\n"
        "except EspeakError: library.close()\n"
        "Library(voice).close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=recordings.ROOT)


def test_after_a_cancel_the_next_sentence_does_not_wait_for_the_last(engine: Espeak) -> None:
    alone = digest(say(engine, 1, SENTENCE))
    engine.step([Item(1, 1, NOTHING, "Blah blah blah. " * 200)])
    sentence = engine._streams[1].sentences[0]
    engine.cancel(1, 1)
    assert digest(say(engine, 1, SENTENCE)) == alone
    assert not engine._streams[1].sentences
    # The rest of it was never made: 200 times half a second would be here.
    assert sum(map(len, sentence.chunks)) / 2 / RATE_HZ < 100


def test_closing_in_mid_sentence_stops_it(engine: Espeak) -> None:
    engine.step([Item(1, 1, NOTHING, "Blah blah blah. " * 200)])
    sentence = engine._streams[1].sentences[0]
    engine.close(1)
    assert sentence.is_cancelled


@pytest.mark.parametrize("text", ["", "   ", "...", "\x00\x01", "?!"])
def test_what_cannot_be_spoken_is_silence_and_done(engine: Espeak, text: str) -> None:
    output = engine.step([Item(1, 1, NOTHING, text)])[0]
    assert output.pieces == [(ResultKind.DONE, b"")]
    assert not output.more


@pytest.mark.parametrize(
    "text", ["a\x00b", "<speak>hi</speak>", "[[h@l'oU]]", "10 % of 3.14 £", "naïve 你好 😀"]
)
def test_odd_text_is_spoken(engine: Espeak, text: str) -> None:
    assert say(engine, 1, text)


def test_too_long_a_text_is_refused_and_harms_nobody(engine: Espeak) -> None:
    engine.open(2, StreamParams())
    alone = digest(say(engine, 1, SENTENCE))
    with pytest.raises(EngineError) as caught:
        engine.step([Item(1, 1, NOTHING, SENTENCE), Item(2, 1, NOTHING, "a" * (MAX_TEXT_CHARS + 1))])
    assert caught.value.code == "text_too_long"
    assert digest(say(engine, 1, SENTENCE)) == alone


def test_options_change_the_voice(engine: Espeak) -> None:
    plain = say(engine, 1, SENTENCE)
    engine.open(2, StreamParams(options={"rate": 350}))
    engine.open(3, StreamParams(options={"pitch": 90}))
    engine.open(4, StreamParams(options={"language": "de"}))
    fast, high, german = (say(engine, stream, SENTENCE) for stream in (2, 3, 4))
    assert len(fast) < 0.8 * len(plain)
    assert len({digest(frames) for frames in (plain, fast, high, german)}) == 4


def test_a_language_without_a_voice_is_spoken_by_the_usual_one_and_its_country_may_be_unknown(
    engine: Espeak,
) -> None:
    for stream, language in enumerate(("tlh-klingon", "de-ZZ", "de"), 2):
        engine.open(stream, StreamParams(options={"language": language}))
    plain, klingon, unknown, german = (digest(say(engine, stream, SENTENCE)) for stream in (1, 2, 3, 4))
    assert (klingon, unknown) == (plain, german)
    assert plain != german
    configured = Espeak({"language": "de"})
    configured.open(1, StreamParams())
    assert digest(say(configured, 1, SENTENCE)) == german


def test_a_wrong_voice_is_answered_with_near_ones(engine: Espeak) -> None:
    with pytest.raises(EngineError, match="en-us"):
        engine.open(2, StreamParams(options={"voice": "en-uss"}))


_REPEAT = """
import os
from tests.workers.engines.test_espeak import say
from voiceserver_workers.ipc.messages import StreamParams
from voiceserver_workers.engines.espeak import Espeak

def resident_kib():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

engine = Espeak({})
engine.open(1, StreamParams())
for _ in range(50):
    say(engine, 1, "One.")
before = resident_kib()
for _ in range(400):
    say(engine, 1, "One.")
print(resident_kib() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_sentences_leave_no_memory_behind() -> None:
    """The library is loaded anew for each: a list it never frees (2 KB) is freed for it. In a process of its own."""
    done = subprocess.run([sys.executable, "-c", _REPEAT], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400


def test_a_session_speaks_faster_or_slower_by_a_factor(engine: Espeak) -> None:
    engine.open(11, StreamParams(options={"speed": 1.5}))
    engine.open(12, StreamParams(options={"rate": round(175 * 1.5)}))
    assert engine._streams[11].voice == engine._streams[12].voice
    with pytest.raises(EngineError, match=r"speed: must be a number from 0\.25 to 4"):
        engine.open(13, StreamParams(options={"speed": 9}))
