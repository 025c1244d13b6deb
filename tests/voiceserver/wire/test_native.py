from __future__ import annotations

import pytest

from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.wire import Audio
from voiceserver.wire.native import codec_for, codec_from_query

codec = codec_for(16_000, 24_000)


def error_of(message: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        codec.receive_text(message)
    return caught.value


def test_binary_is_audio_and_text_is_a_neutral_event() -> None:
    assert codec.receive_binary(b"\x01\x00\x02\x00") == [Audio(b"\x01\x00\x02\x00")]
    assert codec.receive_binary(b"") == []
    assert codec.receive_text(b'{"type": "input.commit"}') == [ev.InputCommit()]
    assert codec.receive_text(b'{"type":"session.update","turn_detection":null,"event_id":"e"}') == [
        ev.SessionUpdate(turn_detection=None)
    ]


def test_half_a_sample_is_an_error_that_keeps_the_connection() -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.receive_binary(b"abc")
    assert caught.value.code == "audio_misaligned"
    assert caught.value.close_code is None


@pytest.mark.parametrize(
    ("message", "code", "param", "words"),
    [
        (b"hello", "invalid_json", None, "JSON"),
        (b"[1, 2]", "invalid_event", None, "object"),
        (b"{}", "missing_field", "type", "input.commit"),
        (b'{"type": 3}', "invalid_field", "type", "string"),
        (b'{"type": "input.comit"}', "unknown_type", "type", "Did you mean 'input.commit'"),
        (b'{"type": "session.update", "voce": "x"}', "unknown_field", "voce", "Did you mean 'voice'"),
        (b'{"type": "session.update", "speed": "fast"}', "invalid_field", "speed", "float"),
        (
            b'{"type": "session.update", "turn_detection": {"threshold": "x"}}',
            "invalid_field",
            "turn_detection.threshold",
            "float",
        ),
        (
            b'{"type": "session.update", "turn_detection": {"thresold": 1}}',
            "invalid_field",
            "turn_detection.thresold",
            "unknown field",
        ),
        *(
            (
                f'{{"type": "session.update", "turn_detection": {{"{name}": {value}}}}}'.encode(),
                "invalid_field",
                f"turn_detection.{name}",
                words,
            )
            for name, value, words in (
                ("threshold", "1.5", "<= 1"),
                ("threshold", "-0.1", ">= 0"),
                ("prefix_padding_ms", "5001", "<= 5000"),
                ("silence_duration_ms", "-1", ">= 0"),
                ("silence_duration_ms", "60001", "<= 60000"),
                ("min_speech_ms", "-1", ">= 0"),
                ("max_turn_ms", "99", ">= 100"),
                ("max_turn_ms", "600001", "<= 600000"),
                ("idle_timeout_ms", "0", ">= 100"),
                ("max_silence_ms", "-4", ">= 0"),
                ("min_silence_ms", "60001", "<= 60000"),
            )
        ),
        (b'{"type": "session.update", "speed": 0.1}', "invalid_field", "speed", ">= 0.25"),
        (b'{"type": "session.update", "temperature": 3}', "invalid_field", "temperature", "<= 2"),
        (b'{"type": "reply.create", "max_output_tokens": 0}', "invalid_field", "max_output_tokens", ">= 1"),
        (b'{"type": "session.update", "language": "%s"}' % (b"x" * 65), "invalid_field", "language", "<= 64"),
        (b'{"type": "reply.played", "turn": 1, "played_ms": -1}', "invalid_field", "played_ms", ">= 0"),
        (b'{"type": "reply.played"}', "missing_field", "turn", "turn"),
        (b'{"type": "reply.played", "turn": 0, "played_ms": 1}', "invalid_field", "turn", ">= 1"),
        (b'{"type": "reply.played", "turn": 1e300, "played_ms": 1}', "invalid_field", "turn", "int"),
        (b'{"type": "input.digit", "digit": "E"}', "invalid_field", "digit", "*, 0, 1"),
        (b'{"type": "input.digit", "digit": "12"}', "invalid_field", "digit", "9, A, B, C, D"),
        (b'{"type": "item.delete", "key": ""}', "invalid_field", "key", ">= 1"),
        *(
            (b'{"type": "item.append", "item": ' + item + b"}", code, param, words)
            for item, code, param, words in (
                (b'{"role": "bad"}', "invalid_field", "item.role", "allowed: assistant, system, tool, user"),
                (b'{"role": "user", "txt": "a"}', "invalid_field", "item.txt", "unknown field"),
                (b'{"role": "user", "turn": 3}', "invalid_field", "item.turn", "leave it out"),
                (b'{"role": "tool", "text": "1"}', "missing_field", "item.call_id", "answers a call"),
                (b'{"role": "assistant", "call_id": "c"}', "missing_field", "item.name", "calls a tool"),
            )
        ),
        (
            b'{"type": "reply.create", "items": [{"role": "user"}, {"role": "tool"}]}',
            "missing_field",
            "items[1].call_id",
            "missing",
        ),
        *(
            (b'{"type": "session.update", "tools": [' + tools + b"]}", code, param, words)
            for tools, code, param, words in (
                (b'{"name": "a b"}', "invalid_field", "tools[0].name", "[A-Za-z0-9_-]{1,64}"),
                (b'{"name": "a", "paramters": {}}', "invalid_field", "tools[0].paramters", "unknown field"),
                (b",".join([b'{"name": "a"}'] * 129), "invalid_field", "tools", "<= 128"),
            )
        ),
        (b'{"type": "input.commit", "key": "\\ud83d"}', "invalid_json", None, "a lone surrogate"),
        (b'{"type": "input.commit", "key": "\\ude00 and more"}', "invalid_json", None, "a lone surrogate"),
        (b'{"type": "input.commit", "key": "\\ud83d\\ude00', "invalid_json", None, "truncated"),
        (b'{"type": ' + b"[" * 100_000, "invalid_json", None, "deep"),
        (
            b'{"type": "session.update", "tools": ' + b'[{"name": "x", "parameters": {"a": ' * 50_000,
            "invalid_json",
            None,
            "",
        ),
    ],
)
def test_a_mistake_names_the_field_and_what_is_allowed(
    message: bytes, code: str, param: str | None, words: str
) -> None:
    error = error_of(message)
    assert (error.code, error.param) == (code, param)
    assert words in str(error)
    assert error.close_code is None


def test_an_error_carries_the_event_id_of_what_was_wrong() -> None:
    error = error_of(b'{"type": "nope", "event_id": "e7"}')
    assert error.event_id == "e7"
    (frame,) = codec.encode_protocol_error(error)
    assert isinstance(frame, str)
    assert '"event_id":"e7"' in frame


def test_items_and_tools_that_are_whole_are_taken() -> None:
    (event,) = codec.receive_text(
        b'{"type": "item.append", "item": {"role": "assistant", "call_id": "c", "name": "look"}}'
    )
    assert event == ev.ItemAppend(ev.HistoryItem("assistant", call_id="c", name="look"))
    (event,) = codec.receive_text(b'{"type": "reply.create", "tools": [{"name": "Look-1_a"}]}')
    assert event == ev.ReplyCreate(tools=(ev.Tool("Look-1_a"),))


def test_reply_audio_is_binary_and_everything_else_is_json_with_its_type() -> None:
    assert codec.encode(ev.ReplyAudio(turn=1, pcm=b"\x00\x01")) == [b"\x00\x01"]
    assert codec.encode(ev.TranscriptFinal(turn=2, text="hé")) == [
        '{"type":"transcript.final","turn":2,"text":"hé"}'
    ]
    (busy,) = codec.encode(ev.ServerBusy("stt", "slow", 300.0, 9_700.0, 250.0))
    assert isinstance(busy, str)
    for name in ("stage", "reason", "lag_ms", "credit_ms", "retry_after_ms", "dropped_ms", "position"):
        assert f'"{name}":' in busy


def test_rates_come_from_the_query_and_equal_rates_share_a_codec() -> None:
    assert codec_from_query({}, 24_000) is codec
    asked = codec_from_query({"rate": "8000", "reply_rate": "48000"}, 24_000)
    assert (asked.input_rate_hz, asked.output_rate_hz) == (8_000, 48_000)


@pytest.mark.parametrize("text", ["7999", "48001", "", "-16000", "16e3", "١٦٠٠٠", "9" * 5_000])
@pytest.mark.parametrize("name", ["rate", "reply_rate"])
def test_an_unsupported_rate_is_refused_with_the_range(name: str, text: str) -> None:
    with pytest.raises(ProtocolError, match="from 8000 to 48000") as caught:
        codec_from_query({name: text}, 24_000)
    assert caught.value.param == name


@pytest.mark.parametrize(("query", "param"), [({"resume": ""}, "resume"), ({"after": "3"}, "after")])
def test_a_resume_that_names_no_session_is_refused(query: dict[str, str], param: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        codec_from_query(query, 24_000)
    assert (caught.value.code, caught.value.param) == ("bad_parameter", param)


def test_a_misspelt_parameter_is_refused() -> None:
    with pytest.raises(ProtocolError, match="Did you mean 'rate'"):
        codec_from_query({"rte": "8000"}, 24_000)
