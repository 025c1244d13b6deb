"""A telephone call as Twilio speaks it; the documents' own messages are the samples."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from voiceserver.announcements.lines import LINES
from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.wire import Audio, Frame
from voiceserver.wire.samples import mulaw_to_pcm, pcm_to_mulaw
from voiceserver.wire.tones import tone, tones
from voiceserver.wire.twilio import TwilioCodec, is_signed, signature_of

SID = "MZ18ad3ab5a668481ce02b83e7395059f0"
START: dict[str, Any] = {
    "event": "start",
    "sequenceNumber": "1",
    "start": {
        "accountSid": "AC1",
        "streamSid": SID,
        "callSid": "CA1",
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"language": "en", "account": "42"},
    },
    "streamSid": SID,
}
PCM_100_MS = b"\x10\x02" * 800
BUSY = ev.ServerBusy("stt", "slow", 400.0, 0.0, 500.0)
SPOKEN = {"busy": b"\x01" * 800, "waiting_2": b"\x02" * 1600, "draining": b"\x03" * 2400}


def started(prerendered: dict[str, bytes] | None = None) -> TwilioCodec:
    codec = TwilioCodec(prerendered)
    assert receive(codec, {"event": "connected", "protocol": "Call", "version": "1.0.0"}) == []
    receive(codec, START)
    return codec


def receive(codec: TwilioCodec, message: dict[str, Any]) -> list[Any]:
    return list(codec.receive_text(json.dumps(message).encode()))


def media(data: bytes, track: str = "inbound") -> dict[str, Any]:
    payload = base64.b64encode(data).decode()
    return {
        "event": "media",
        "sequenceNumber": "3",
        "media": {"track": track, "chunk": "1", "timestamp": "5", "payload": payload},
        "streamSid": SID,
    }


def mark(name: str) -> dict[str, Any]:
    return {"event": "mark", "sequenceNumber": "4", "streamSid": SID, "mark": {"name": name}}


def said(frames: list[Frame]) -> list[dict[str, Any]]:
    messages = [json.loads(frame) for frame in frames]
    assert all(one["streamSid"] == SID for one in messages)
    return messages


def kinds(frames: list[Frame]) -> list[str]:
    return [one["event"] for one in said(frames)]


def marks(frames: list[Frame]) -> list[str]:
    return [one["mark"]["name"] for one in said(frames) if one["event"] == "mark"]


def reply(codec: TwilioCodec, turn: int, times: int = 1) -> list[Frame]:
    frames: list[Frame] = []
    for _ in range(times):
        frames += codec.encode(ev.ReplyAudio(turn=turn, pcm=PCM_100_MS))
    return frames


def played(codec: TwilioCodec, name: str) -> list[Any]:
    return receive(codec, mark(name))


# --------------------------------------------------------------------------------------------------------- inward


@pytest.mark.parametrize(
    ("voice", "known", "told"),
    [
        ("de", {"de", "en-us"}, "de"),
        ("en-us+f3", {"de", "en-us"}, "en-us+f3"),
        ("anything", set(), "anything"),
        ("Polly.Joanna", {"de", "en-us"}, msgspec.UNSET),
    ],
)
def test_a_voice_that_there_is_not_leaves_the_call_with_the_servers_own(
    voice: str, known: set[str], told: object
) -> None:
    codec = TwilioCodec({}, frozenset(known))
    start = {**START, "start": {**START["start"], "customParameters": {"voice": voice}}}
    (update,) = receive(codec, start)
    assert update.voice == told


def test_the_start_names_the_call_and_sets_what_its_parameters_say() -> None:
    codec = TwilioCodec()
    assert receive(codec, START) == [ev.SessionUpdate(audible_busy=True, language="en")]
    assert (codec.stream_sid, codec.call_sid, codec.account_sid) == (SID, "CA1", "AC1")
    assert codec.parameters["account"] == "42"


def test_media_of_the_caller_is_audio_and_our_own_is_not() -> None:
    codec = started()
    data = bytes(range(160))
    assert receive(codec, media(data)) == [Audio(mulaw_to_pcm(data))]
    assert receive(codec, media(data, "outbound")) == []


def test_a_key_is_a_digit_and_the_end_closes() -> None:
    codec = started()
    pressed = {"event": "dtmf", "streamSid": SID, "dtmf": {"track": "inbound_track", "digit": "#"}}
    assert receive(codec, pressed) == [ev.Digit(digit="#")]
    assert receive(codec, {"event": "stop", "stop": {"callSid": "CA1"}}) == [ev.SessionClose()]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"event": "media"}, "missing_field"),
        ({"event": "mark"}, "missing_field"),
        ({"event": "dtmf"}, "missing_field"),
        ({"event": "media", "media": {"payload": "???"}}, "invalid_audio"),
        ({"event": "media", "media": {"payload": 5}}, "invalid_message"),
        ({"event": "dance"}, "unknown_event"),
        ({"no": "event"}, "invalid_message"),
        (START, "already_started"),
    ],
)
def test_a_wrong_message_is_refused_and_the_call_goes_on(message: dict[str, Any], code: str) -> None:
    codec = started()
    with pytest.raises(ProtocolError) as caught:
        receive(codec, message)
    assert caught.value.code == code
    assert caught.value.close_code is None
    assert codec.encode_protocol_error(caught.value) == []
    assert receive(codec, media(b"\xff" * 160))


def test_media_before_the_start_and_another_format_are_refused() -> None:
    with pytest.raises(ProtocolError, match="before start"):
        receive(TwilioCodec(), media(b"\xff"))
    wrong = json.loads(json.dumps(START))
    wrong["start"]["mediaFormat"]["sampleRate"] = 16000
    with pytest.raises(ProtocolError) as caught:
        receive(TwilioCodec(), wrong)
    assert caught.value.close_code == 1003
    with pytest.raises(ProtocolError):
        TwilioCodec().receive_binary(b"\xff")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"streamSid": ""}, "start.streamSid"),
        ({"streamSid": 5}, "start.streamSid"),
        ({"customParameters": {"instructions": 5}}, "start.customParameters.instructions"),
        ({"customParameters": {"language": "x" * 65}}, "start.customParameters.language"),
        ({"customParameters": {"voice": "x" * 257}}, "start.customParameters.voice"),
        ({"customParameters": []}, "start.customParameters"),
        ({"mediaFormat": {"sampleRate": []}}, "start.mediaFormat.sampleRate"),
        ({"mediaFormat": {"sampleRate": "fast"}}, "start.mediaFormat"),
        ({"mediaFormat": {"channels": 2}}, "start.mediaFormat"),
        (None, "start"),
    ],
)
def test_a_start_that_no_call_can_begin_with_ends_the_call_and_names_the_field(
    change: dict[str, object] | None, param: str
) -> None:
    codec = TwilioCodec()
    wrong: dict[str, Any] = {**START, "start": {**START["start"], **(change or {})}}
    if change is None:
        del wrong["start"]
    with pytest.raises(ProtocolError) as caught:
        receive(codec, wrong)
    assert (caught.value.param, caught.value.close_code) == (param, 1003)
    assert param in str(caught.value) or param == "start.mediaFormat"
    assert codec.stream_sid == ""


@pytest.mark.parametrize("rate", [8000, 8000.0, "8000"])
def test_numbers_of_the_format_may_be_written_in_any_way(rate: float | str) -> None:
    codec = TwilioCodec()
    receive(
        codec, {**START, "start": {**START["start"], "mediaFormat": {"sampleRate": rate, "channels": 1.0}}}
    )
    assert codec.stream_sid == SID


def test_a_key_that_no_telephone_has_is_named_and_the_call_goes_on() -> None:
    codec = started()
    with pytest.raises(ProtocolError, match="allowed: #") as caught:
        receive(codec, {"event": "dtmf", "streamSid": SID, "dtmf": {"digit": "w"}})
    assert (caught.value.param, caught.value.close_code) == ("dtmf.digit", None)


# --------------------------------------------------------------------------------------------- replies and their marks


def test_a_reply_is_media_with_a_mark_for_every_100_ms_and_at_its_end() -> None:
    codec = started()
    frames = codec.encode(ev.ReplyAudio(turn=3, pcm=PCM_100_MS[:800]))
    assert kinds(frames) == ["media"]
    assert base64.b64decode(said(frames)[0]["media"]["payload"]) == pcm_to_mulaw(PCM_100_MS[:800])
    assert kinds(codec.encode(ev.ReplyAudio(turn=3, pcm=PCM_100_MS[:800]))) == ["media", "mark"]
    assert kinds(codec.encode(ev.ReplyAudio(turn=3, pcm=PCM_100_MS[:320]))) == ["media"]
    assert kinds(codec.encode(ev.ReplyDone(turn=3, reason="completed"))) == ["mark"]
    assert codec.encode(ev.ReplyDone(turn=3, reason="completed")) == []


def test_marks_that_come_back_tell_what_was_played() -> None:
    codec = started()
    names = marks(reply(codec, 1, 3))
    assert len(set(names)) == 3
    assert played(codec, names[0]) == [ev.ReplyPlayed(turn=1, played_ms=100.0)]
    assert played(codec, names[2]) == [ev.ReplyPlayed(turn=1, played_ms=300.0)]
    assert played(codec, names[1]) == []
    (name,) = marks(reply(codec, 2))
    assert played(codec, name) == [ev.ReplyPlayed(turn=2, played_ms=100.0)]
    assert played(codec, "not ours") == []


@pytest.mark.parametrize(
    "event",
    [
        ev.SpeechStarted(turn=2, at_ms=5.0, interrupted_turn=1),
        ev.ReplyDone(turn=1, reason="interrupted"),
        ev.ReplyDone(turn=1, reason="cancelled"),
        ev.PlaybackStop(turn=1, played_ms=50.0),
    ],
)
def test_a_barge_in_clears_once_and_cleared_marks_were_not_played(event: ev.ServerEvent) -> None:
    codec = started()
    names = marks(reply(codec, 1, 3))
    assert kinds(codec.encode(event)) == ["clear"]
    assert codec.encode(ev.ReplyDone(turn=1, reason="interrupted")) == []
    assert [played(codec, name) for name in names] == [[], [], []]
    (name,) = marks(reply(codec, 2))
    assert played(codec, name) == [ev.ReplyPlayed(turn=2, played_ms=100.0)]


def test_speech_that_interrupts_nothing_clears_nothing() -> None:
    codec = started()
    reply(codec, 1)
    assert codec.encode(ev.SpeechStarted(turn=2, at_ms=5.0)) == []


def test_what_is_said_before_the_start_waits_for_it() -> None:
    codec = TwilioCodec()
    assert codec.encode(ev.ReplyAudio(turn=1, pcm=PCM_100_MS)) == []
    assert codec.encode(ev.ReplyDone(turn=1, reason="completed")) == []
    assert codec.frames_to_send() == []
    receive(codec, START)
    assert kinds(codec.frames_to_send()) == ["media", "mark"]
    assert codec.frames_to_send() == []


# ------------------------------------------------------------------------------------------------------ audible busy


def test_busy_is_a_tone_and_is_not_piled_up() -> None:
    codec = started()
    frames = codec.encode(BUSY)
    assert kinds(frames) == ["media", "mark"]
    assert base64.b64decode(said(frames)[0]["media"]["payload"]) == tones()["busy"]
    assert codec.linger_ms == 1000.0
    assert kinds(codec.encode(BUSY)) == ["mark"]
    assert played(codec, marks(frames)[0]) == []
    assert codec.linger_ms == 0.0
    assert kinds(codec.encode(BUSY)) == ["media", "mark"]


def test_a_caller_who_is_not_late_hears_no_tone() -> None:
    assert (
        started().encode(
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
        == []
    )


def test_a_tone_does_not_go_into_a_reply() -> None:
    codec = started()
    reply(codec, 1)
    assert kinds(codec.encode(BUSY)) == ["mark"]


@pytest.mark.parametrize("event", [ev.ServerReady(), ev.ReplyAudio(turn=1, pcm=PCM_100_MS)])
def test_the_end_of_busy_cuts_the_tone_off(event: ev.ServerEvent) -> None:
    codec = started()
    codec.encode(BUSY)
    assert kinds(codec.encode(event))[0] == "clear"
    assert codec.linger_ms == 0.0


def test_a_reply_that_is_being_heard_is_not_cut_off_by_ready() -> None:
    codec = started()
    reply(codec, 1)
    assert codec.encode(ev.ServerReady()) == []


def test_a_cue_is_spoken_where_the_line_was_made_and_is_a_tone_where_not() -> None:
    codec = started(SPOKEN)
    assert set(SPOKEN) <= set(LINES)
    codec.encode(BUSY)
    frames = codec.encode(ev.BusyCue(cue="waiting", position=2))
    assert kinds(frames) == ["clear", "media", "mark"]
    assert base64.b64decode(said(frames)[1]["media"]["payload"]) == SPOKEN["waiting_2"]
    bare = started()
    frames = bare.encode(ev.BusyCue(cue="failed"))
    assert base64.b64decode(said(frames)[0]["media"]["payload"]) == tones()["failed"]


def test_an_apology_is_said_once_and_tells_how_long_it_takes() -> None:
    codec = started(SPOKEN)
    assert kinds(codec.encode(ev.ServerDraining(deadline_ms=5000.0))) == ["media", "mark"]
    assert codec.encode(ev.BusyCue(cue="draining")) == []
    assert codec.linger_ms == 300.0


def test_the_tones_have_their_pitch_and_do_not_click() -> None:
    for hz in (480, 950):
        pcm = mulaw_to_pcm(tone((hz,), 1000))
        samples = memoryview(pcm).cast("h")
        rising = sum(1 for at in range(1, len(samples)) if samples[at - 1] < 0 <= samples[at])
        assert abs(rising - hz) <= 2
    busy = memoryview(mulaw_to_pcm(tones()["busy"])).cast("h")
    assert len(busy) == 8000
    assert max(busy) < 4000
    assert abs(busy[0]) < 100
    assert abs(busy[3999]) < 2500
    assert not any(busy[4000:])


# --------------------------------------------------------------------------------------------------------- signatures


def test_the_signature_is_the_one_of_the_documents() -> None:
    # Twilio's published example, for a webhook; a stream differs only in having no parameters behind the URL.
    parameters = "CallSidCA1234567890ABCDECaller+14158675310Digits1234From+14158675310To+18005551212"
    url = f"https://example.com/myapp.php?foo=1&bar=2{parameters}"
    assert signature_of(url, "12345") == "L/OH5YylLD5NRKLltdqwSvS0BnU="


@pytest.mark.parametrize(
    "url",
    [
        "wss://voice.example.com/v1/twilio",
        "wss://voice.example.com/v1/twilio/",
        "wss://voice.example.com:443/v1/twilio",
    ],
)
def test_an_upgrade_that_twilio_asked_for_is_let_in(url: str) -> None:
    signature = signature_of(url, "token")
    assert is_signed(signature, "token", host="voice.example.com", path="/v1/twilio")
    assert not is_signed(signature, "other", host="voice.example.com", path="/v1/twilio")
    assert not is_signed(signature, "token", host="evil.example.com", path="/v1/twilio")
    assert not is_signed(signature, "token", host="voice.example.com", path="/v1/realtime")


def test_behind_a_proxy_the_public_address_counts() -> None:
    url = "wss://public.example.com/calls"
    signature = signature_of(url, "token")
    assert is_signed(signature, "token", host="10.0.0.1:8765", path="/v1/twilio", public_url=url)
    assert not is_signed(signature, "token", host="10.0.0.1:8765", path="/v1/twilio")


@pytest.mark.parametrize("signature", ["", "x", "\u00e9", "L/OH5YylLD5NRKLltdqwSvS0BnU="])
def test_nonsense_is_no_signature(signature: str) -> None:
    assert not is_signed(signature, "token", host="h", path="/p")


def test_without_a_token_nothing_is_signed() -> None:
    assert not is_signed(signature_of("wss://h/p", ""), "", host="h", path="/p")


def test_a_line_is_in_the_language_that_the_call_names() -> None:
    codec = TwilioCodec({"busy": b"\x01" * 800, "de:busy": b"\x02" * 800})
    german = {**START["start"], "customParameters": {"language": "de-AT"}}
    receive(codec, {**START, "start": german})
    frames = codec.encode(ev.BusyCue("busy"))
    assert base64.b64encode(b"\x02" * 800).decode() in "".join(map(str, frames))
