"""voiceserver_clients.talk end to end against a scripted server, and the pure parts beneath it."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.clients.native_server import Caller, native_server
from voiceserver.events.events import (
    Accounting,
    ErrorEvent,
    ReplyAudio,
    ReplyDone,
    ReplyFiller,
    ReplyStarted,
    ReplyText,
    ServerBusy,
    ServerEvent,
    SessionClose,
    SessionClosing,
    SessionReady,
    SpeechStarted,
    SpeechStopped,
    Timings,
    TranscriptFinal,
)
from voiceserver_clients import talk, voice
from voiceserver_clients.conversation import EMPTY_TURN_MS, ConversationState
from voiceserver_clients.made_speech import NoSpeech
from voiceserver_clients.recording import BadRecording, Recording, read_recording, write_wav
from voiceserver_clients.talk import EXIT_LOST, EXIT_REFUSED, EXIT_UNANSWERED, EXIT_USAGE, Options
from voiceserver_clients.timeline import describe

RECORDED = Path(__file__).resolve().parents[2].parent / "shared" / "audio"
READY = SessionReady("s1", 16_000, 24_000, "token")


def tone(path: Path, rate_hz: int, channels: int, seconds: float = 0.3) -> Path:
    wave = 0.5 * np.sin(2 * math.pi * 440 * np.arange(int(rate_hz * seconds)) / rate_hz)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate_hz)
    return path


class TestRecording:
    @pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
    @pytest.mark.parametrize("channels", [1, 2, 6])
    @pytest.mark.parametrize("suffix", ["wav", "flac"])
    def test_any_rate_and_channels_become_mono_at_the_session_rate(
        self, tmp_path: Path, rate_hz: int, channels: int, suffix: str
    ) -> None:
        recording = read_recording(tone(tmp_path / f"tone.{suffix}", rate_hz, channels), 16_000)
        samples = np.frombuffer(recording.pcm, "<i2")
        assert recording.duration_ms == pytest.approx(300, abs=1)
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
        assert np.argmax(spectrum) * 16_000 / len(samples) == pytest.approx(440, abs=4)
        assert 0.45 < np.abs(samples).max() / 32_767 < 0.55

    def test_what_cannot_be_spoken_says_why(self, tmp_path: Path) -> None:
        text = tmp_path / "notes.wav"
        text.write_text("not audio")
        soundfile.write(tmp_path / "empty.wav", np.zeros((0, 1)), 16_000)
        for path, reason in (
            (tmp_path / "no.wav", "no such file"),
            (text, "not a sound file"),
            (tmp_path, "is a directory"),
        ):
            with pytest.raises(BadRecording, match=reason):
                read_recording(path, 16_000)
        with pytest.raises(BadRecording, match="no audio"):
            read_recording(tmp_path / "empty.wav", 16_000)

    def test_without_the_extra_the_command_that_helps_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "soundfile", None)
        with pytest.raises(BadRecording, match=r"pip install 'voiceserver\[clients\]'"):
            read_recording(tmp_path / "t.wav", 16_000)

    @pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings in ../shared/audio are not here")
    @pytest.mark.parametrize(
        ("name", "seconds"), [("jfk.flac", 11.0), ("goforward.wav", 2.79), ("austen-0890.wav", 5.3)]
    )
    def test_real_recordings(self, name: str, seconds: float) -> None:
        recording = read_recording(RECORDED / name, 16_000)
        assert recording.duration_ms / 1000 == pytest.approx(seconds, abs=0.05)
        assert np.abs(np.frombuffer(recording.pcm, "<i2")).max() > 3_000

    @pytest.mark.parametrize(
        ("riff_size", "data_size"), [(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (36, 0), (7, 99_999_999), (0, 2**31)]
    )
    def test_a_wav_file_whose_recorder_was_killed_is_read_to_its_end(
        self, tmp_path: Path, riff_size: int, data_size: int
    ) -> None:
        path, pcm = tmp_path / "killed.wav", np.arange(-500, 500, dtype="<i2").tobytes()
        write_wav(path, pcm, 16_000)
        data = bytearray(path.read_bytes())
        data[4:8], data[40:44] = riff_size.to_bytes(4, "little"), data_size.to_bytes(4, "little")
        path.write_bytes(data)
        assert len(read_recording(path, 16_000).pcm) == len(pcm)

    def test_samples_that_are_no_numbers_are_silence_and_said_in_one_line(self, tmp_path: Path) -> None:
        path, samples = tmp_path / "nan.wav", np.full(1_000, 0.5, np.float32)
        samples[[3, 700]], samples[900] = np.nan, np.inf
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
        recording = read_recording(path, 16_000)
        heard = np.frombuffer(recording.pcm, "<i2")
        assert (heard[[3, 700, 900]] == 0).all()
        assert heard[4] == heard[899] == 16_383
        assert recording.warning == f"{path}: 3 of 1000 samples are no numbers; they are silence here"
        assert read_recording(RECORDED / "goforward.wav", 16_000).warning == ""

    def test_written_wav_reads_back(self, tmp_path: Path) -> None:
        pcm = np.arange(-500, 500, dtype="<i2").tobytes()
        write_wav(tmp_path / "out.wav", pcm, 24_000)
        samples, rate_hz = soundfile.read(tmp_path / "out.wav", dtype="int16")
        assert (samples.tobytes(), rate_hz) == (pcm, 24_000)


class TestExchange:
    def test_a_filler_is_heard_and_is_not_the_answer(self) -> None:
        state = ConversationState()
        filled: list[tuple[float, ServerEvent]] = [
            (0.0, SpeechStopped(1, 0.0)),
            (5.0, ReplyStarted(1)),
            (900.0, ReplyFiller(1, "One moment.", 400.0)),
            (900.0, ReplyAudio(1, bytes(100))),
            (1_500.0, ReplyAudio(1, bytes(200))),
        ]
        for now_ms, event in filled:
            state.receive_event(event, now_ms)
        assert state.turns[1].answer_ms == 1_500.0
        assert state.turns[1].audio_bytes == 300

    def test_settled_when_every_turn_is_answered(self) -> None:
        state = ConversationState()
        assert state.is_settled(0)
        steps: list[tuple[ServerEvent, bool]] = [
            (SpeechStarted(1, 0), False),
            (SpeechStopped(1, 900), False),
            (TranscriptFinal(1, "hello"), False),
            (ReplyStarted(1), False),
            (ReplyDone(1, "completed"), True),
            (SpeechStarted(2, 2_000), False),
        ]
        for now_ms, (event, is_settled) in enumerate(steps):
            state.receive_event(event, now_ms)
            assert state.is_settled(now_ms) is is_settled, event

    def test_a_turn_that_the_caller_went_on_from_is_answered_with_the_next(self) -> None:
        state = ConversationState()
        for event in (
            SpeechStarted(1, 0),
            SpeechStopped(1, 900),
            SpeechStarted(2, 1_000),
            SpeechStopped(2, 1_900),
        ):
            state.receive_event(event, 0)
        state.receive_event(TranscriptFinal(1, "and so"), 0)
        assert not state.is_settled(1e6)
        assert not state.is_answered
        for event in (TranscriptFinal(2, "my friends"), ReplyStarted(2), ReplyDone(2, "completed")):
            state.receive_event(event, 0)
        assert state.is_settled(0)
        assert state.is_answered

    def test_a_failed_reply_is_no_answer(self) -> None:
        state = ConversationState()
        for event in (SpeechStarted(1, 0), SpeechStopped(1, 900), ReplyStarted(1), ReplyDone(1, "failed")):
            state.receive_event(event, 0)
        assert state.is_settled(0)
        assert not state.is_answered

    def test_a_turn_without_words_may_stay_unanswered(self) -> None:
        state = ConversationState()
        for event in (SpeechStarted(1, 0), SpeechStopped(1, 900), TranscriptFinal(1, "")):
            state.receive_event(event, 100)
        assert not state.is_settled(100 + EMPTY_TURN_MS - 1)
        assert state.is_settled(100 + EMPTY_TURN_MS)

    def test_playback_ends_when_the_audio_has_been_heard_or_interrupted(self) -> None:
        state = ConversationState()
        second = bytes(24_000 * 2)
        state.receive_event(READY, 0)
        state.receive_event(ReplyAudio(1, second), 100)
        state.receive_event(ReplyAudio(1, second), 150)
        assert state.playing_until_ms == 2_100
        state.receive_event(SpeechStarted(2, 0, interrupted_turn=1), 500)
        assert state.playing_until_ms == 500


class TestTimeline:
    def test_busy_is_told_with_its_numbers(self) -> None:
        row = describe(
            ServerBusy(
                "stt",
                "lighter_engine",
                0.0,
                10_000.0,
                250.0,
                step="degraded",
                degraded=("partials", "stt engine"),
            )
        )
        assert row is not None
        assert row.what == "busy; degraded for now: partials, stt engine"
        row = describe(ServerBusy("stt", "no_free_stream", 412, 90, 1_500, dropped_ms=20, position=3))
        assert row is not None
        for number in ("412 ms behind", "credit 90 ms", "20 ms dropped", "place 3", "1.5 s"):
            assert number in row.what

    def test_closing_tells_the_conservation_law(self) -> None:
        row = describe(SessionClosing("client", Accounting(1_000, 700, 200, 100)))
        assert row is not None
        assert "1000 ms received = 700 consumed + 200 dropped + 100 discarded" in row.what

    def test_errors_carry_their_code(self) -> None:
        row = describe(ErrorEvent("input_empty", "nothing to commit"))
        assert row == ("error", "input_empty: nothing to commit", False)


async def answer_all(caller: Caller) -> None:
    """A server that hears one turn in the first 300 ms of audio and answers it."""
    await caller.say(READY)
    await caller.receive_audio(16_000 * 2 * 3 // 10)
    await caller.say(
        SpeechStarted(1, 0),
        SpeechStopped(1, 300),
        TranscriptFinal(1, "a tone"),
        ReplyStarted(1),
        ReplyText(1, "I heard a tone."),
        b"\x10\x00" * 2_400,
        ReplyDone(
            1, "completed", Timings(endpointing_ms=500, stt_ms=12.5, first_audio_ms=9.25, audio_ms=100)
        ),
    )
    while not isinstance(await caller.receive(), SessionClose):
        pass
    await caller.say(SessionClosing("client", Accounting(1_800, 1_800, 0, 0)))


async def run_talk(
    script: Callable[[Caller], Awaitable[None]],
    path: Path,
    *,
    out: Path | None = None,
    is_json: bool = False,
    refusals: tuple[tuple[int, str, str], ...] = (),
    before: Callable[[Caller], Awaitable[None]] | None = None,
    path_of_url: str = "/v1/stream",
) -> int:
    """``before``: a first connection, after which the client comes back for ``script``."""
    scripts = (script,) if before is None else (before, script)
    async with native_server(*scripts, refusals=refusals) as server:
        reconnects = before is not None
        url = server.url.replace("/v1/stream", path_of_url)
        options = Options(url, 16_000, out, is_json, is_realtime=False, reconnects=reconnects)
        recordings = [read_recording(path, 16_000)]
        return await asyncio.to_thread(talk.run, recordings, options)


class TestTalk:
    async def test_timeline_split_and_reply_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        reply = tmp_path / "reply.wav"
        assert await run_talk(answer_all, tone(tmp_path / "t.wav", 44_100, 2), out=reply) == 0
        shown = capsys.readouterr().out
        for text in (
            "plays t.wav",
            "44.1 kHz stereo",
            "“a tone”",
            "“I heard a tone.”",
            "12.5",
            "9.2",
            "reply.wav",
        ):
            assert text in shown, shown
        samples, rate_hz = soundfile.read(reply, dtype="int16")
        assert (len(samples), rate_hz, set(samples)) == (2_400, 24_000, {16})

    async def test_json_is_one_object_per_event(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert await run_talk(answer_all, tone(tmp_path / "t.wav", 16_000, 1), is_json=True) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["type"] for line in lines][-2:] == ["reply.done", "session.closing"]
        assert all(line["t_ms"] >= 0 for line in lines)

    async def test_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tone(tmp_path / "t.wav", 16_000, 1)
        assert (
            await run_talk(answer_all, path, refusals=((503, "7", "all places are taken"),)) == EXIT_REFUSED
        )
        assert "all places are taken; try again in 7.0 s" in capsys.readouterr().err

    @pytest.mark.parametrize(("status", "code"), [(401, EXIT_REFUSED), (403, EXIT_REFUSED), (500, EXIT_LOST)])
    async def test_a_key_that_is_not_taken_is_a_refusal(self, tmp_path: Path, status: int, code: int) -> None:
        path = tone(tmp_path / "t.wav", 16_000, 1)
        assert await run_talk(answer_all, path, refusals=((status, "", "no"),)) == code

    async def test_another_wire_is_told_and_not_waited_for(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(voice, "READY_TIMEOUT_S", 0.05)

        async def speak_realtime(caller: Caller) -> None:
            await caller.socket.send('{"type":"session.created","event_id":"e1","session":{}}')
            await caller.socket.wait_closed()

        path = tone(tmp_path / "t.wav", 16_000, 1)
        assert await run_talk(speak_realtime, path, path_of_url="/v1/realtime") == EXIT_LOST
        told = capsys.readouterr().err
        assert "/v1/realtime is not the native wire, which is at /v1/stream" in told

    async def test_lost(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        async def cut(caller: Caller) -> None:
            await caller.say(READY)
            await caller.receive()
            caller.socket.transport.abort()

        assert await run_talk(cut, tone(tmp_path / "t.wav", 16_000, 1)) == EXIT_LOST
        assert "connection lost (close code 1006)" in capsys.readouterr().err

    async def test_words_that_went_with_a_session_are_told(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async def cut(caller: Caller) -> None:
            await caller.say(READY)
            await caller.receive_audio(16_000)
            caller.socket.transport.abort()

        path = tone(tmp_path / "t.wav", 16_000, 1)
        assert await run_talk(answer_all, path, before=cut) == EXIT_UNANSWERED
        assert "s of speech went with a session that could not be picked up" in capsys.readouterr().err

    async def test_a_session_that_the_server_ends_ends_the_conversation_with_its_reason(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async def quarantine(caller: Caller) -> None:
            await caller.say(READY, ErrorEvent("quarantined", "this audio made its worker fail"))
            await caller.socket.close(1011, "quarantined")

        path = tone(tmp_path / "t.wav", 16_000, 1)
        assert await run_talk(answer_all, path, before=quarantine) == EXIT_LOST
        assert "1011: quarantined: this audio made its worker fail" in capsys.readouterr().err

    async def test_silence_all_the_way_is_said(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async def deaf(caller: Caller) -> None:
            await caller.say(READY)
            while not isinstance(await caller.receive(), SessionClose):
                pass

        assert await run_talk(deaf, tone(tmp_path / "t.wav", 16_000, 1)) == EXIT_UNANSWERED
        assert "heard no speech" in capsys.readouterr().out

    def test_bad_file_and_bad_usage(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        import typer
        from typer.testing import CliRunner

        app = typer.Typer()
        app.command()(talk.talk)
        runner = CliRunner()
        missing = runner.invoke(app, [str(tmp_path / "no.wav")])
        assert (missing.exit_code, "no such file" in missing.stderr) == (EXIT_USAGE, True)
        nothing = runner.invoke(app, [])
        assert (nothing.exit_code, "give recordings" in nothing.stderr) == (EXIT_USAGE, True)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--url", "http://127.0.0.1:8765"], "'http://127.0.0.1:8765' is not a ws:// or wss:// address"),
            (["--url", "ws://"], "not a ws://"),
            (["--url", "ws://127.0.0.1:99999"], "out of range"),
            (["--mic"], "not both"),
            (["--mic", "--say", "hello"], "not both"),
        ],
    )
    def test_what_cannot_work_is_usage_and_not_a_lost_connection(
        self, tmp_path: Path, arguments: list[str], words: str
    ) -> None:
        import typer
        from typer.testing import CliRunner

        app = typer.Typer()
        app.command()(talk.talk)
        ended = CliRunner().invoke(app, [str(tone(tmp_path / "t.wav", 16_000, 1)), *arguments])
        assert (ended.exit_code, words in ended.stderr) == (EXIT_USAGE, True), ended.output

    def test_words_are_spoken_after_the_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import typer
        from typer.testing import CliRunner

        def make_speech(text: str, rate_hz: int) -> Recording:
            if not text:
                raise NoSpeech("it made no sound")
            return Recording(text, bytes(2), rate_hz)

        spoken: list[str] = []

        def run(recordings: list[Recording], _: Options, *, uses_microphone: bool) -> int:
            spoken.extend(recording.name for recording in recordings)
            return 0

        monkeypatch.setattr(talk, "make_speech", make_speech)
        monkeypatch.setattr(talk, "run", run)
        app = typer.Typer()
        app.command()(talk.talk)
        path = tone(tmp_path / "t.wav", 16_000, 1)
        assert CliRunner().invoke(app, ["--say", "one", str(path), "--say", "two"]).exit_code == 0
        assert CliRunner().invoke(app, ["--say", "three"]).exit_code == 0
        assert spoken == ["t.wav", "one", "two", "three"]
        silent = CliRunner().invoke(app, ["--say", ""])
        assert (silent.exit_code, "no sound" in silent.stderr) == (EXIT_USAGE, True)

    async def test_the_key_is_sent_and_never_shown(self) -> None:
        options = Options("ws://127.0.0.1:1", 16_000, None, False, True, False, "sk-hush")
        assert options.headers == {"Authorization": "Bearer sk-hush"}
        assert "sk-hush" not in repr(options)
