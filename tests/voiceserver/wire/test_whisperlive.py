"""WhisperLive as its own client speaks it (0.10)."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.voiceserver.shell import Shell, audio, upgrade
from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.wire import Audio
from voiceserver.wire.whisperlive import END_OF_AUDIO, WhisperLiveCodec, float32_to_pcm, uint8_to_pcm

OPTIONS: dict[str, Any] = {
    "uid": "u1",
    "language": "en",
    "task": "transcribe",
    "model": "small",
    "use_vad": True,
    "send_last_n_segments": 10,
    "no_speech_thresh": 0.45,
    "hotwords": None,
    "known_speakers": [],
    "vad_parameters": None,
}
BOOKS = ev.Accounting(1.0, 1.0, 0.0, 0.0)
BUSY = ev.ServerBusy("stt", "full", 400.0, 0.0, 90_000.0, 40.0, 1)


def opened(**options: object) -> WhisperLiveCodec:
    codec = WhisperLiveCodec()
    assert codec.encode(ev.SessionReady("s", 16_000, 16_000)) == []
    codec.receive_text(json.dumps({**OPTIONS, **options}).encode())
    codec.frames_to_send()
    return codec


def said(frames: list[Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [json.loads(frame) for frame in frames]
    assert all(one["uid"] == "u1" for one in messages)
    return messages


def segments(frames: list[Any]) -> list[tuple[str, str, str, bool]]:
    (message,) = said(frames)
    return [(one["start"], one["end"], one["text"], one["completed"]) for one in message["segments"]]


def speak(codec: WhisperLiveCodec, ms: int) -> None:
    codec.receive_binary(bytes(ms * 16 * 4))


# ------------------------------------------------------------------------------------------------------- beginnings


def test_the_options_are_answered_with_ready_and_ask_for_a_transcript_only() -> None:
    codec = WhisperLiveCodec()
    codec.encode(ev.SessionReady("s", 16_000, 16_000))
    update = codec.receive_text(json.dumps(OPTIONS).encode())
    assert update == [ev.SessionUpdate(replies=False, speaks=False, transcribes=True, language="en")]
    assert said(codec.frames_to_send()) == [
        {"uid": "u1", "message": "SERVER_READY", "backend": "faster_whisper"}
    ]


def test_a_client_without_a_language_leaves_it_to_the_server() -> None:
    codec = WhisperLiveCodec()
    (update,) = codec.receive_text(json.dumps({**OPTIONS, "language": None}).encode())
    assert update == ev.SessionUpdate(replies=False, speaks=False, transcribes=True)


def test_a_full_server_says_wait_with_minutes_and_ready_when_it_has_room() -> None:
    codec = WhisperLiveCodec()
    assert codec.encode(BUSY) == []
    codec.receive_text(json.dumps(OPTIONS).encode())
    assert said(codec.frames_to_send()) == [{"uid": "u1", "status": "WAIT", "message": 1.5}]
    assert codec.encode(ev.SessionReady("s", 16_000, 16_000)) == []
    assert said(codec.encode(ev.ServerReady()))[0]["message"] == "SERVER_READY"
    assert codec.encode(ev.ServerReady()) == []


def test_a_task_that_is_not_ours_is_told() -> None:
    codec = WhisperLiveCodec()
    codec.receive_text(json.dumps({**OPTIONS, "task": "translate"}).encode())
    (warning,) = said(codec.frames_to_send())
    assert warning["status"] == "WARNING"
    assert "translate" in warning["message"]


@pytest.mark.parametrize(
    "message", [b"{", b"[]", b"{}", b'{"uid": 5}', b'{"uid": ""}', b'{"uid": "u1", "audio_format": "mp3"}']
)
def test_wrong_options_are_an_error_and_the_end(message: bytes) -> None:
    codec = WhisperLiveCodec()
    with pytest.raises(ProtocolError) as caught:
        codec.receive_text(message)
    assert json.loads(str(codec.encode_protocol_error(caught.value)[0]))["status"] == "ERROR"
    assert caught.value.close_code == 1003


def test_audio_before_the_options_is_one_error_and_the_end() -> None:
    line = Shell("vad", "stt").call(upgrade("/"))
    line.receive(audio(bytes(4_096)) * 5)
    assert [one["status"] for one in line.events()] == ["ERROR"]
    assert line.close_code == 1003


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"uid": ""}, "uid", ">= 1"),
        ({"uid": "u" * 129}, "uid", "<= 128"),
        ({"language": "x" * 65}, "language", "<= 64"),
        ({"language": 5}, "language", "str"),
        ({"audio_format": "mp3"}, "audio_format", "allowed: float32, int16, uint8"),
        ({"send_last_n_segments": "many"}, "send_last_n_segments", "int"),
    ],
)
def test_a_wrong_option_is_named_to_the_client_that_sent_it(
    wrong: dict[str, object], param: str, words: str
) -> None:
    codec = WhisperLiveCodec()
    with pytest.raises(ProtocolError, match=f"'{param}'.*{words}") as caught:
        codec.receive_text(json.dumps({**OPTIONS, **wrong}).encode())
    assert caught.value.param == param
    if "uid" not in wrong:
        assert said(codec.encode_protocol_error(caught.value))[0]["status"] == "ERROR"


@pytest.mark.parametrize(("asked", "given"), [(-5, 1), (0, 1), (2, 2), (10**9, 50)])
def test_how_many_segments_are_sent_is_held_to_its_range(asked: int, given: int) -> None:
    codec = opened(send_last_n_segments=asked)
    for turn in range(1, 60):
        frames = codec.encode(ev.TranscriptFinal(turn=turn, text="yes"))
    assert len(segments(frames)) == given


def test_audio_before_the_options_after_the_end_and_half_samples_are_refused() -> None:
    with pytest.raises(ProtocolError, match="first message"):
        WhisperLiveCodec().receive_binary(bytes(4))
    codec = opened()
    with pytest.raises(ProtocolError, match="not used") as caught:
        codec.receive_binary(bytes(5))
    assert said(codec.encode_protocol_error(caught.value))[0]["status"] == "WARNING"
    assert codec.receive_binary(END_OF_AUDIO) == [ev.SessionClose()]
    with pytest.raises(ProtocolError, match="after END_OF_AUDIO"):
        codec.receive_binary(bytes(4))


# --------------------------------------------------------------------------------------------------------- segments


def test_a_transcript_grows_and_completes() -> None:
    codec = opened()
    speak(codec, 500)
    codec.encode(ev.SpeechStarted(turn=1, at_ms=200.0))
    speak(codec, 500)
    assert segments(codec.encode(ev.TranscriptPartial(turn=1, text="go"))) == [
        ("0.200", "1.000", " go", False)
    ]
    codec.encode(ev.SpeechStopped(turn=1, at_ms=1234.5))
    grown, completed = codec.encode(ev.TranscriptFinal(turn=1, text="go forward"))
    assert segments([grown]) == [("0.200", "1.234", " go forward", False)]
    assert segments([completed]) == [("0.200", "1.234", " go forward", True)]
    codec.encode(ev.SpeechStarted(turn=2, at_ms=1100.0))
    speak(codec, 900)
    assert segments(codec.encode(ev.TranscriptPartial(turn=2, text="ten"))) == [
        ("0.200", "1.234", " go forward", True),
        ("1.234", "1.900", " ten", False),
    ]


def test_times_do_not_overlap_for_a_client_drops_what_does() -> None:
    codec = opened()
    speak(codec, 3000)
    last_end = 0.0
    for turn, (start, stop) in enumerate([(0.0, 900.0), (700.0, 1500.0), (1400.0, 1450.0)], 1):
        codec.encode(ev.SpeechStarted(turn=turn, at_ms=start))
        codec.encode(ev.SpeechStopped(turn=turn, at_ms=stop))
        begin, end, _, _ = segments(codec.encode(ev.TranscriptFinal(turn=turn, text="x")))[-1]
        assert last_end <= float(begin) <= float(end)
        last_end = float(end)


def test_only_the_last_segments_are_sent_again() -> None:
    codec = opened(send_last_n_segments=2)
    for turn in range(1, 100):
        codec.encode(ev.SpeechStarted(turn=turn, at_ms=turn * 1000.0))
        codec.encode(ev.SpeechStopped(turn=turn, at_ms=turn * 1000.0 + 500))
        frames = codec.encode(ev.TranscriptFinal(turn=turn, text=str(turn)))
    assert [one[2] for one in segments(frames)] == [" 98", " 99"]


def test_a_turn_without_words_leaves_no_segment() -> None:
    codec = opened()
    codec.encode(ev.SpeechStarted(turn=1, at_ms=0.0))
    assert codec.encode(ev.TranscriptFinal(turn=1, text=" ")) == []
    codec.encode(ev.SpeechStarted(turn=2, at_ms=1000.0))
    assert len(segments(codec.encode(ev.TranscriptFinal(turn=2, text="yes")))) == 1


def test_a_transcript_comes_once() -> None:
    codec = opened()
    assert codec.encode(ev.TranscriptFinal(turn=1, text="yes"))
    assert codec.encode(ev.TranscriptFinal(turn=1, text="yes")) == []
    assert codec.encode(ev.TranscriptPartial(turn=1, text="yes and no")) == []


# ------------------------------------------------------------------------------------------------- trouble and ends


def test_busy_in_a_session_is_a_warning_with_its_numbers() -> None:
    (warning,) = said(opened().encode(BUSY))
    assert warning["status"] == "WARNING"
    assert all(number in warning["message"] for number in ("400 ms", "40 ms", "90000 ms"))


def test_a_server_that_makes_do_with_less_says_with_what() -> None:
    (warning,) = said(
        opened().encode(
            ev.ServerBusy(
                "stt",
                "lighter_engine",
                0.0,
                10_000.0,
                250.0,
                step="degraded",
                degraded=("partials", "stt engine"),
            )
        )
    )
    assert warning["status"] == "WARNING"
    assert "partials, stt engine" in warning["message"]
    assert "behind" not in warning["message"]


def test_trouble_is_told_and_does_not_end_a_client_that_goes_on() -> None:
    codec = opened()
    for event in (
        ev.ErrorEvent(code="engine_failed", message="no"),
        ev.TranscriptFailed(turn=1, code="engine_failed", message="no"),
        ev.ServerDraining(deadline_ms=100.0),
    ):
        assert said(codec.encode(event))[0]["status"] == "WARNING"


def test_disconnect_is_said_only_to_a_client_that_did_not_end() -> None:
    codec = opened()
    assert said(codec.encode(ev.SessionClosing("draining", BOOKS))) == [
        {"uid": "u1", "message": "DISCONNECT"}
    ]
    ended = opened()
    ended.receive_binary(END_OF_AUDIO)
    assert ended.encode(ev.SessionClosing("client", BOOKS)) == []


# ----------------------------------------------------------------------------------------------------------- samples


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


@given(st.lists(st.integers(-32_768, 32_767), max_size=200))
def test_what_was_int16_comes_back_exactly(samples: list[int]) -> None:
    pcm = struct.pack(f"<{len(samples)}h", *samples)
    assert float32_to_pcm(floats(*(sample / 32_768 for sample in samples))) == pcm


def test_what_is_too_loud_is_clipped_and_what_is_no_number_is_silent() -> None:
    pcm = float32_to_pcm(
        floats(1.0, 1.5, 32_767.0, -1.0, -2.0, -32_768.0, math.nan, math.inf, -math.inf, 0.0, -0.0)
    )
    assert struct.unpack("<11h", pcm) == (32767, 32767, 32767, -32768, -32768, -32768, 0, 0, 0, 0, 0)


@given(st.floats(-0.9375, 0.9375, width=32))
def test_the_nearest_sample_is_taken(number: float) -> None:
    (sample,) = struct.unpack("<h", float32_to_pcm(floats(number)))
    assert abs(sample - number * 32_768) <= 0.5


@given(st.binary(max_size=400))
def test_any_bytes_are_samples(data: bytes) -> None:
    whole = data[: len(data) // 4 * 4]
    assert len(float32_to_pcm(whole)) == len(whole) // 2


def test_the_other_formats() -> None:
    pcm = struct.pack("<3h", 1, -2, 3)
    assert opened(audio_format="int16").receive_binary(pcm) == [Audio(pcm)]
    assert opened(audio_format="uint8").receive_binary(b"\x80\xff\x00") == [
        Audio(struct.pack("<3h", 0, 127 * 256, -32768))
    ]
    assert uint8_to_pcm(b"") == b""


def test_the_last_text_that_grew_is_the_one_that_was_completed() -> None:
    """The stock client writes the last text that it saw growing behind the transcript, unless it is the last completed one."""
    codec = opened()
    grown: list[str] = []
    told = ((1, "go", False), (1, "Go forward.", True), (2, "Stop.", True), (3, "we", False), (3, "we", True))
    for turn, text, is_final in told:
        event = (
            ev.TranscriptFinal(turn=turn, text=text)
            if is_final
            else ev.TranscriptPartial(turn=turn, text=text)
        )
        for message in said(codec.encode(event)):
            last = message["segments"][-1]
            grown += [] if last["completed"] else [last["text"].strip()]
            assert [one["completed"] for one in message["segments"][:-1]] == [True] * (
                len(message["segments"]) - 1
            )
        if is_final:
            assert grown[-1] == text
