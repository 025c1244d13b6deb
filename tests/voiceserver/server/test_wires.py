"""How each wire is reached, and how each says that there is no place: in words that its stock clients take for that."""

from __future__ import annotations

import base64
import json

import pytest
from websockets.frames import Opcode

from tests.voiceserver.shell import Line, Shell, masked, text, upgrade
from voiceserver.announcements.lines import LINES
from voiceserver.config.schema import BackpressureConfig, TwilioConfig
from voiceserver.pool import Speech
from voiceserver.server.auth import Auth
from voiceserver.wire import openai, twilio, whisperlive
from voiceserver.wire.registry import WIRES
from voiceserver.wire.samples import G711_BYTES_PER_MS
from voiceserver_workers.ipc.messages import ResultKind

FULL = BackpressureConfig(max_connections=1, retry_after_ms=90_000)
START = {"event": "start", "streamSid": "MZ1", "start": {"streamSid": "MZ1", "callSid": "CA1"}}


def full(*stages: str) -> Shell:
    shell = Shell(*stages, limits=FULL)
    shell.call()
    return shell


def speak_clips(shell: Shell) -> None:
    (stream,) = shell.pools["tts"].streams
    for _, turn, seq, _ in stream.sent:
        stream.answer(ResultKind.AUDIO, turn, seq, bytes(2 * 8 * 100 * seq))
        stream.answer(ResultKind.DONE, turn, seq)
    assert stream.is_closed


def test_counters_of_every_wire_begin_at_zero_and_have_the_names_of_the_codecs() -> None:
    shell = Shell()
    opened = {wire.name: 0.0 for wire in WIRES}

    def told(name: str) -> dict[str, float]:
        return {one.labels["wire"]: one.value for one in shell.services.metrics.to_samples()[name]}

    assert told("voiceserver_sessions_opened_total") == told("voiceserver_sessions_closed_total") == opened
    for wire in WIRES:
        assert shell.call(upgrade(wire.paths[0])).status == 101
        opened[wire.name] += 1.0
        assert told("voiceserver_sessions_opened_total") == opened


@pytest.mark.parametrize("path", [openai.PATH, f"{openai.PATH}?model=gpt-realtime"])
def test_realtime_callers_without_an_origin_get_503_before_the_upgrade(path: str) -> None:
    refused = full().call(upgrade(path))
    assert refused.status == 503
    assert b"Retry-After: " in refused.transport.data
    assert refused.body["error"]["code"] == "at_capacity"


def test_a_realtime_client_of_a_server_without_vad_sees_that_turns_are_ended_by_hand() -> None:
    shell = Shell("stt")
    line = shell.call(upgrade(openai.PATH))
    assert line.events()[-1]["session"]["audio"]["input"]["turn_detection"] is None
    line.receive(text({"type": "session.update", "session": {"turn_detection": {"type": "server_vad"}}}))
    assert line.events()[-1]["error"]["code"] == "turn_detection_unavailable"
    pcm = base64.b64encode(bytes(48_000)).decode()
    line.receive(text({"type": "input_audio_buffer.append", "audio": pcm}))
    line.receive(text({"type": "input_audio_buffer.commit"}))
    assert [event["type"] for event in line.events()][2:4] == [
        "input_audio_buffer.committed",
        "conversation.item.added",
    ]


def test_a_realtime_caller_is_told_that_the_speech_engine_has_no_such_voice() -> None:
    shell = Shell("tts")
    shell.pools["tts"].speech = Speech(frozenset({"en-us", "de"}))
    line = shell.call(upgrade(openai.PATH))
    line.receive(text({"type": "session.update", "session": {"voice": "klingon"}}))
    assert line.events()[-1]["error"]["param"] == "session.voice"
    line.receive(text({"type": "session.update", "session": {"voice": "de"}}))
    assert line.events()[-1]["session"]["audio"]["output"]["voice"] == "de"


def test_a_realtime_browser_is_let_in_told_and_closed_a_second_later() -> None:
    shell = full()
    browser = shell.call(
        upgrade(openai.PATH, "Origin: https://a.test\r\nSec-WebSocket-Protocol: realtime\r\n")
    )
    assert browser.status == 101
    (event,) = browser.events()
    assert event["type"] == "error"
    assert event["error"]["type"] == "server_overloaded"
    assert event["error"]["code"] == "capacity_exhausted"
    shell.loop.advance(1_000)
    assert browser.close_code is None
    shell.loop.advance(600)
    assert browser.close_code == 1013


def test_realtime_callers_are_not_kept_in_line_but_browsers_are() -> None:
    shell = Shell(limits=BackpressureConfig(max_talkers=1, waiting_room=8))
    shell.call()
    assert shell.call(upgrade(openai.PATH)).status == 503
    browser = shell.call(upgrade(openai.PATH, "Origin: https://a.test\r\n"))
    shell.loop.settle()
    # Nothing of it is lost, and some clients end their session at an ``error``.
    assert [event["type"] for event in browser.events()] == ["session.created", "rate_limits.updated"]
    assert (browser.events()[1]["busy"]["code"], browser.events()[1]["busy"]["position"]) == (
        "capacity_exhausted",
        1,
    )
    shell.loop.advance(5_000)
    assert browser.close_code is None


@pytest.mark.parametrize("path", ["/", whisperlive.PATH])
def test_a_whisperlive_client_is_told_to_wait_in_minutes(path: str) -> None:
    shell = full()
    client = shell.call(upgrade(path))
    assert client.status == 101
    assert client.events() == []
    client.receive(text({"uid": "u1", "language": "en", "task": "transcribe"}))
    assert client.events() == [{"uid": "u1", "status": "WAIT", "message": 1.5}]
    client.receive(masked(Opcode.BINARY, bytes(4096)))
    shell.loop.advance(1_600)
    assert client.close_code == 1013
    assert shell.metrics.to_text().count(b'voiceserver_refused_total{reason="at_capacity"} 1.0') == 1


def test_a_refused_caller_who_talks_nonsense_is_closed_all_the_same() -> None:
    shell = full()
    client = shell.call(upgrade("/"))
    client.receive(masked(Opcode.TEXT, b"{"))
    assert client.events() == []
    shell.loop.advance(1_600)
    assert client.close_code == 1013


def media_ms(line: Line) -> float:
    chunks = [event["media"]["payload"] for event in line.events() if event["event"] == "media"]
    return sum(len(chunk) * 3 // 4 for chunk in chunks) / G711_BYTES_PER_MS


def test_a_phone_hears_that_all_lines_are_busy_before_it_is_closed() -> None:
    shell = full("tts")
    phone = shell.call(upgrade(twilio.PATH))
    speak_clips(shell)
    phone.receive(text({"event": "connected"}))
    phone.receive(text(START))
    said = [event["event"] for event in phone.events()]
    assert said == ["media", "mark", "clear", "media", "mark"]  # the tone gives way to words
    lines = list(LINES)
    spoken_ms = 100 * (lines.index("full") + 1)
    assert media_ms(phone) == pytest.approx(1_000 + spoken_ms, abs=2)
    shell.loop.advance(1_600)
    assert phone.close_code == 1013


def test_a_phone_hears_a_tone_where_there_are_no_words() -> None:
    shell = full()
    phone = shell.call(upgrade(twilio.PATH))
    phone.receive(text(START))
    assert media_ms(phone) == pytest.approx(1_000, abs=2)


def test_the_last_word_to_a_phone_is_played_before_the_connection_closes() -> None:
    shell = Shell("tts")
    phone = shell.call(upgrade(twilio.PATH))
    speak_clips(shell)
    phone.receive(text(START))
    phone.connection.drain(1_000)
    shell.loop.settle()
    spoken_ms = 100 * (list(LINES).index("draining") + 1)
    assert media_ms(phone) == pytest.approx(spoken_ms, abs=2)
    shell.loop.advance(spoken_ms - 10)
    assert phone.close_code is None
    shell.loop.advance(20)
    assert phone.close_code == 1012


def test_an_upgrade_that_twilio_did_not_sign_is_forbidden() -> None:
    config = TwilioConfig(auth_token="secret", public_url="wss://voice.example.com/v1/twilio")
    shell = Shell(twilio=config)
    signature = twilio.signature_of(config.public_url, config.auth_token)
    assert shell.call(upgrade(twilio.PATH)).status == 403
    forged = shell.call(upgrade(twilio.PATH, "X-Twilio-Signature: AAAA\r\n"))
    assert forged.status == 403
    assert "secret" not in json.dumps(forged.body)
    assert shell.call(upgrade(twilio.PATH, f"X-Twilio-Signature: {signature}\r\n")).status == 101


def test_clips_are_begun_again_after_their_worker_was_lost() -> None:
    shell = Shell("tts")
    shell.call(upgrade(twilio.PATH))
    (lost,) = shell.pools["tts"].streams
    lost.answer(ResultKind.AUDIO, 1, 1, bytes(320))
    lost.answer(ResultKind.DONE, 1, 1)
    lost.owner.on_stream_lost("tts", "worker_lost")
    shell.call(upgrade(twilio.PATH))
    again = shell.pools["tts"].streams[1]
    assert [seq for _, _, seq, _ in again.sent] == [seq for _, _, seq, _ in lost.sent[1:]]
    for _, turn, seq, _ in again.sent:
        again.answer(ResultKind.AUDIO, turn, seq, bytes(320))
        again.answer(ResultKind.DONE, turn, seq)
    shell.call(upgrade(twilio.PATH))
    assert len(shell.pools["tts"].streams) == 2


def test_a_call_whose_start_is_wrong_is_closed_with_the_field_in_the_reason() -> None:
    shell = Shell("stt")
    line = shell.call(upgrade(twilio.PATH))
    line.receive(text({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
    line.receive(text({**START, "start": {"streamSid": "", "callSid": "CA1"}}))
    (close,) = (frame for frame in line.frames() if frame.opcode is Opcode.CLOSE)
    assert line.close_code == 1003
    assert close.data[2:] == b"invalid_message: start.streamSid"
    line.lose()
    assert shell.logged[-1]["reason"] == "invalid_message: start.streamSid"
    assert 'code="invalid_message"' in shell.services.metrics.to_text().decode()


@pytest.mark.parametrize(
    ("session", "param"),
    [
        (b'{"audio":{"input":{"transcription":{"model":"x"}}}}', "session.audio.input.transcription"),
        (b'{"type":"realtime","instructions":"x"}', None),
    ],
)
def test_what_a_token_says_is_applied_before_and_apart_from_what_its_client_says(
    session: bytes, param: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without an engine for it refuses what the token says, not what came with it, and answers go on in order."""
    shell = Shell("reply")
    auth = shell.services.auth
    assert isinstance(auth, Auth)
    monkeypatch.setattr(auth, "session_of", lambda caller: session)
    line = shell.call(upgrade(openai.PATH))
    for name in ("one", "two"):
        update = {"instructions": name, "output_modalities": ["text"]}
        line.receive(text({"type": "session.update", "event_id": name, "session": update}))
    said = line.events()[1:]
    errors = [event["error"] for event in said if event["type"] == "error"]
    assert [(error["param"], error["event_id"]) for error in errors] == ([(param, None)] if param else [])
    updated = [event["session"] for event in said if event["type"] == "session.updated"]
    assert [one["instructions"] for one in updated] == ["one", "two"]


@pytest.mark.parametrize(
    ("path", "event", "param"),
    [
        (
            openai.PATH,
            {"session": {"audio": {"input": {"transcription": {}}}}},
            "session.audio.input.transcription",
        ),
        (openai.PATH, {"session": {"output_modalities": ["audio"]}}, "session.output_modalities"),
        (openai.PATH, {"session": {"turn_detection": {}}}, "session.audio.input.turn_detection"),
    ],
)
def test_what_this_server_cannot_do_is_named_as_the_wire_names_it(
    path: str, event: dict[str, object], param: str
) -> None:
    line = Shell("reply").call(upgrade(path))
    line.receive(text({"type": "session.update", "event_id": "e1", **event}))
    error = line.events()[-1]["error"]
    assert (error["param"], error["event_id"]) == (param, "e1")
    beta = Shell("reply").call(upgrade(path, "OpenAI-Beta: realtime=v1\r\n"))
    beta.receive(text({"type": "session.update", "session": {"input_audio_transcription": {}}}))
    assert beta.events()[-1]["error"]["param"] == "session.input_audio_transcription"


@pytest.mark.parametrize("levels", [65, 900, 960, 970, 975, 980, 990, 2_000])
def test_tools_that_are_nested_too_deep_are_refused_and_the_call_goes_on(levels: int) -> None:
    shell = Shell("vad", "reply")
    line = shell.call(upgrade(openai.PATH))
    parameters = '{"a":' * levels + "{}" + "}" * levels
    deep = f'{{"type":"session.update","session":{{"tools":[{{"name":"f","parameters":{parameters}}}]}}}}'
    line.receive(masked(Opcode.TEXT, deep.encode()))
    error = line.events()[-1]["error"]
    assert error["code"] in ("invalid_value", "invalid_json")
    assert "too deep" in error["message"]
    if levels < 900:
        assert error["param"] == "session.tools[0].parameters"
    line.receive(text({"type": "session.update", "session": {"instructions": "x"}}))
    assert line.events()[-1]["type"] == "session.updated"
    assert [entry for entry in shell.logged if "fault" in str(entry.get("event"))] == []
