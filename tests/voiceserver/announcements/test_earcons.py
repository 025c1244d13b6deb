from __future__ import annotations

from array import array
from collections.abc import Mapping

from tests.voiceserver.shell import AnsweredPool, Shell, text
from voiceserver.announcements import lines
from voiceserver.announcements.earcons import Earcons, tone
from voiceserver.config.schema import BackpressureConfig
from voiceserver.events.events import BusyCue
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
