from __future__ import annotations

from array import array
from collections.abc import Mapping

import pytest

from tests.voiceserver.shell import AnsweredPool, Shell, text
from voiceserver.announcements import lines
from voiceserver.announcements.earcons import Earcons, tone
from voiceserver.announcements.spoken import Announcements
from voiceserver.config.schema import BackpressureConfig, SessionConfig
from voiceserver.events.events import BusyCue
from voiceserver.pool import Speech
from voiceserver_workers.ipc.messages import ResultKind

LINES = {"busy": "One moment.", "waiting": "Please hold.", "waiting_2": "You are number 2."}


def speak(earcons: Earcons, spoken_lines: Mapping[str, str]) -> None:
    """Have a tts pool speak the lines of ``earcons``."""
    pool = AnsweredPool("tts")
    earcons.make(pool)
    for at, name in enumerate(spoken_lines, 1):
        pool.streams[0].answer(ResultKind.AUDIO, 1, at, name.encode() * 2)
        pool.streams[0].answer(ResultKind.DONE, 1, at, b"{}")


def spoken() -> Earcons:
    """Cues whose lines a tts pool has spoken."""
    earcons = Earcons(LINES, 24_000)
    speak(earcons, LINES)
    return earcons


def test_the_line_of_the_place_comes_before_the_general_one_and_a_tone_before_silence() -> None:
    earcons = spoken()
    assert earcons.audio_of(BusyCue("waiting", 2), 24_000) == b"waiting_2" * 2
    assert earcons.audio_of(BusyCue("waiting", 5), 24_000) == b"waiting" * 2
    assert earcons.audio_of(BusyCue("failed"), 24_000) == tone(24_000)
    assert earcons.audio_of(BusyCue("busy"), 8_000) == tone(8_000)


def test_the_tone_is_audible_and_begins_and_ends_softly() -> None:
    samples = array("h", tone(16_000))
    assert len(samples) == 4_000
    assert max(samples) > 5_000
    assert abs(samples[0]) < 50
    assert abs(samples[-1]) < 50


def test_who_asked_for_it_hears_the_place_in_line_without_any_stage() -> None:
    shell = Shell("vad", limits=BackpressureConfig(max_talkers=1, waiting_room=4, tenant_share=1.0))
    speak(shell.services.announcements.earcons, lines.LINES)
    first, waiting = shell.call(), shell.call()
    waiting.receive(text({"type": "session.update", "audible_busy": True}))
    third = shell.call()
    third.receive(text({"type": "session.update", "audible_busy": True}))
    shell.loop.advance(1_100)
    heard = [bytes(frame.data) for frame in third.frames() if frame.opcode.name == "BINARY"]
    assert heard[0] == b"waiting_2" * 2
    first.receive(text({"type": "session.close"}))
    heard = [bytes(frame.data) for frame in third.frames() if frame.opcode.name == "BINARY"]
    assert heard[1:] == [b"waiting_1" * 2]
    assert shell.pools["vad"].streams == []


def speak_all(pool: AnsweredPool) -> None:
    """What was sent to the last stream, spoken as the text itself."""
    stream = pool.streams[-1]
    for _, turn, seq, payload in stream.sent:
        stream.answer(ResultKind.AUDIO, turn, seq, payload + bytes(len(payload) & 1))
        stream.answer(ResultKind.DONE, turn, seq)


def test_lines_are_in_the_language_of_the_caller_once_the_voice_has_spoken_them() -> None:
    pool = AnsweredPool("tts")
    pool.speech = Speech(languages=frozenset({"en", "de"}))
    announcements = Announcements(SessionConfig())
    announcements.make(pool)
    speak_all(pool)
    announcements.want("de-AT")
    announcements.want("fr")  # the voice does not speak it
    announcements.make(pool)
    announcements.make(pool)
    assert len(pool.streams) == 2
    speak_all(pool)
    assert pool.streams[-1].params.options == {"language": "de"}

    def heard(cue: str, position: int, language: str) -> str:
        pcm = announcements.earcons.audio_of(BusyCue(cue, position), SessionConfig().output_rate_hz, language)
        return pcm.rstrip(b"\0").decode()

    assert heard("no_answer", 0, "de") == lines.TRANSLATIONS["de"]["no_answer"]
    assert heard("waiting", 3, "de-CH").endswith("Nummer 3 in der Schlange.")
    assert heard("waiting", 99, "de") == lines.TRANSLATIONS["de"]["waiting"]
    assert heard("no_answer", 0, "fr") == heard("no_answer", 0, "") == lines.LINES["no_answer"]


@pytest.mark.parametrize("language", lines.TRANSLATIONS)
def test_a_translation_has_every_line(language: str) -> None:
    translated = lines.TRANSLATIONS[language]
    assert translated.keys() == lines.LINES.keys()
    assert len(set(translated.values())) == len(translated)
    assert all("7" in translated[name] for name in ("waiting_7",))
    assert not any("{" in text for text in translated.values())


def test_who_sets_a_language_has_the_lines_spoken_in_it() -> None:
    shell = Shell("vad", "tts")
    shell.pools["tts"].speech = Speech(languages=frozenset({"en", "de"}))
    shell.call().receive(text({"type": "session.update", "language": "de"}))
    shell.services.announcements.make(shell.pools["tts"])
    # For callers on the native wire, and for phones.
    options = [stream.params.options for stream in shell.pools["tts"].streams]
    assert options == [{}, {"language": "de"}] * 2
