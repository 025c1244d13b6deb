"""Session settings and misuse on the Realtime wire: exact types and codes, the field by its path, nothing changed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.voiceserver.wire.openai_client import Client, text_item
from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.wire.openai import Dialect, OpenAICodec, read_request, read_session, schema


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def session_param(**session: Any) -> dict[str, Any]:
    return {"kind": "session.update", "session": session}


@pytest.mark.parametrize(
    ("event", "code", "param"),
    [
        ({"kind": "no.such"}, "invalid_value", "type"),
        ({"kind": "conversation.item.create"}, "missing_required_parameter", "item"),
        ({"kind": "conversation.item.delete"}, "missing_required_parameter", "item_id"),
        ({"kind": "conversation.item.delete", "item_id": "x"}, "item_delete_invalid_item_id", "item_id"),
        ({"kind": "conversation.item.create", "item": {}}, "missing_required_parameter", "item.type"),
        ({"kind": "conversation.item.create", "item": {"type": "mcp_call"}}, "invalid_value", "item.type"),
        (
            {"kind": "conversation.item.create", "item": {"type": "message"}},
            "missing_required_parameter",
            "item.role",
        ),
        ({"kind": "conversation.item.create", "item": text_item(role="robot")}, "invalid_value", "item.role"),
        (
            {"kind": "conversation.item.create", "item": text_item(), "previous_item_id": "x"},
            "item_create_invalid_previous_item_id",
            "previous_item_id",
        ),
        (
            {
                "kind": "conversation.item.create",
                "item": {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_image", "image_url": "data:"}],
                },
            },
            "invalid_value",
            "item.content[0].type",
        ),
        ({"kind": "input_audio_buffer.append", "audio": "@@@@"}, "invalid_value", "audio"),
        ({"kind": "input_audio_buffer.append", "audio": 5}, "invalid_type", "audio"),
        ({"kind": "output_audio_buffer.clear"}, "invalid_value", "type"),
        (
            {"kind": "response.create", "response": {"conversation": "mine"}},
            "invalid_value",
            "response.conversation",
        ),
        (session_param(instructions=5), "invalid_type", "session.instructions"),
        (session_param(voice="x" * 257), "string_above_max_length", "session.voice"),
        (session_param(voice={"id": "x" * 257}), "string_above_max_length", "session.voice.id"),
        (session_param(model="x" * 257), "string_above_max_length", "session.model"),
        (session_param(modalities=[]), "invalid_value", "session.modalities"),
        (session_param(output_modalities=[]), "invalid_value", "session.output_modalities"),
        (session_param(tools=[{"name": "a b"}]), "invalid_value", "session.tools[0].name"),
        (session_param(tools=[{"name": "a"}, {"name": "a"}]), "invalid_value", "session.tools[1].name"),
        (session_param(tools=[{"name": f"t{n}"} for n in range(129)]), "invalid_value", "session.tools"),
        (
            session_param(tools=[{"name": "a"}], tool_choice={"type": "function", "name": "b"}),
            "invalid_value",
            "session.tool_choice",
        ),
        (session_param(tracing=nested(65)), "invalid_value", "session.tracing"),
        *(
            ({"kind": "response.create", "response": response}, code, f"response.{param}")
            for response, code, param in (
                ({"modalities": []}, "invalid_value", "modalities"),
                ({"output_modalities": []}, "invalid_value", "output_modalities"),
                ({"output_audio_format": "mp3"}, "invalid_value", "output_audio_format"),
                ({"output_audio_format": "g711_ulaw"}, "invalid_value", "output_audio_format"),
                ({"tool_choice": {"type": "function", "name": "b"}}, "invalid_value", "tool_choice"),
                ({"tools": [{"name": "a"}, {"name": "a"}]}, "invalid_value", "tools[1].name"),
                (
                    {"input": [{"type": "item_reference"}]},
                    "missing_required_parameter",
                    "input[0].id",
                ),
                ({"metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata"),
                ({"metadata": {"k" * 65: ""}}, "invalid_value", "metadata"),
                ({"metadata": {"k": "v" * 513}}, "invalid_value", "metadata"),
            )
        ),
        *(
            ({"kind": "conversation.item.create", "item": text_item(id=taken)}, "invalid_value", "item.id")
            for taken in ("root", "user:1", "reply:1", "call:1:0", "item_abcff")
        ),
        (
            {
                "kind": "conversation.item.create",
                "item": {"type": "function_call", "name": "", "arguments": "{}"},
            },
            "missing_required_parameter",
            "item.name",
        ),
        (
            session_param(audio={"input": {"turn_detection": {"prefix_padding_ms": 1_000_000_000}}}),
            "integer_above_max_value",
            "session.audio.input.turn_detection.prefix_padding_ms",
        ),
        (
            session_param(audio={"input": {"turn_detection": {"silence_duration_ms": 60_001}}}),
            "integer_above_max_value",
            "session.audio.input.turn_detection.silence_duration_ms",
        ),
        (session_param(max_output_tokens=0), "integer_below_min_value", "session.max_output_tokens"),
        (session_param(output_modalities=["smell"]), "invalid_value", "session.output_modalities[]"),
        (session_param(tools=[{"type": "mcp", "name": "x"}]), "invalid_value", "session.tools[].type"),
        (session_param(audio={"input": {"format": "mp3"}}), "invalid_value", "session.audio.input.format"),
        (
            session_param(audio={"input": {"format": {"type": "audio/pcm", "rate": 16000}}}),
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (
            session_param(audio={"output": {"speed": 9}}),
            "decimal_above_max_value",
            "session.audio.output.speed",
        ),
        (
            session_param(audio={"input": {"turn_detection": {"type": "server_vad", "threshold": 1.5}}}),
            "decimal_above_max_value",
            "session.audio.input.turn_detection.threshold",
        ),
        (
            session_param(turn_detection={"type": "server_vad", "silence_duration_ms": -1}),
            "integer_below_min_value",
            "session.turn_detection.silence_duration_ms",
        ),
    ],
)
def test_a_mistake_is_named_and_changes_nothing(event: dict[str, Any], code: str, param: str) -> None:
    client = Client()
    fields = dict(event)
    error = client.error(fields.pop("kind"), event_id="e1", **fields)
    assert (error["type"], error["code"], error["event_id"]) == ("invalid_request_error", code, "e1")
    assert error["param"].replace("[0]", "[]") == param.replace("[0]", "[]")
    (answer,) = client.update(instructions="still here")
    assert answer["session"]["instructions"] == "still here"


@pytest.mark.parametrize("message", [b"{", b"[]", b"5", b'"x"', b"null", b'{"type":5}', b"{}", b"\xff\xfe"])
def test_what_is_not_an_event_gets_an_error_and_the_session_goes_on(message: bytes) -> None:
    codec = OpenAICodec("s")
    with pytest.raises(ProtocolError) as refused:
        codec.receive_text(message)
    (frame,) = codec.encode_protocol_error(refused.value)
    assert json.loads(frame)["error"]["type"] == "invalid_request_error"
    assert codec.receive_text(b'{"type":"input_audio_buffer.clear"}') == [ev.InputClear()]


def test_a_binary_message_is_refused() -> None:
    with pytest.raises(ProtocolError):
        OpenAICodec("s").receive_binary(bytes(2))


def test_an_empty_commit_by_hand_is_an_error_and_keeps_what_was_there() -> None:
    client = Client()
    client.update(audio={"input": {"turn_detection": None}})
    assert client.error("input_audio_buffer.commit")["code"] == "input_audio_buffer_commit_empty"
    client.append(bytes(2400))  # 50 ms
    assert "50.00ms" in client.error("input_audio_buffer.commit")["message"]
    client.append(bytes(2400))
    client.say("input_audio_buffer.commit")
    assert client.asked[-1] == ev.InputCommit(creates_reply=False)
    (frame,) = client.refuse(ProtocolError("input_empty", "there is no audio to commit"))
    assert frame["error"]["code"] == "input_audio_buffer_commit_empty"
    client.say("input_audio_buffer.commit")
    assert client.asked[-1] == ev.InputCommit(creates_reply=False)


def test_15_mib_of_audio_fit_into_one_append_and_not_a_byte_more() -> None:
    client = Client()
    client.append(bytes(schema.MAX_AUDIO_BYTES))
    assert len(client.asked[-1].pcm) == schema.MAX_AUDIO_BYTES  # type: ignore[union-attr]
    assert client.append(bytes(schema.MAX_AUDIO_BYTES + 1))[0]["error"]["code"] == "string_above_max_length"
    longest = (schema.MAX_AUDIO_BYTES + 2) // 3 * 4 + len('{"type":"input_audio_buffer.append","audio":""}')
    assert longest <= schema.MAX_MESSAGE_BYTES


def test_the_voice_is_frozen_after_the_first_audio_but_not_by_a_text_reply() -> None:
    client = Client(voices=frozenset({"cedar"}))
    client.reply(1, speaks=False)
    client.update(audio={"output": {"voice": "marin"}})
    assert client.asked[-1] == ev.SessionUpdate(voice="")
    client.update(voice="cedar")
    assert client.asked[-1] == ev.SessionUpdate(voice="cedar")
    client.reply(2)
    error = client.error(
        "session.update", session={"audio": {"output": {"voice": "marin"}}, "instructions": "x"}
    )
    assert error["code"] == "cannot_update_voice"
    assert error["message"] == "Cannot update a conversation's voice if assistant audio is present."
    error = client.error("response.create", response={"audio": {"output": {"voice": "marin"}}})
    assert error["code"] == "cannot_update_voice"
    (answer,) = client.update(voice="cedar", speed=1.2)
    assert answer["session"]["audio"]["output"]["speed"] == 1.2
    assert answer["session"]["instructions"] == ""


def test_a_voice_that_the_speech_engine_does_not_have_is_refused_with_the_nearest() -> None:
    client = Client(voices=frozenset({"en-us", "en-gb", "de"}))
    for voice in ("en-gb", "EN_US+f3", "de", "marin", "alloy"):
        client.update(voice=voice)
    asked = len(client.asked)
    error = client.error("session.update", session={"audio": {"output": {"voice": "en-gv"}}})
    assert (error["code"], error["param"]) == ("invalid_value", "session.audio.output.voice")
    assert error["message"].startswith("Invalid value: 'en-gv'. Supported values are: 'en-gb'")
    error = client.error("response.create", response={"voice": "klingon"})
    assert (error["code"], error["param"]) == ("invalid_value", "response.voice")
    error = client.error("response.create", response={"audio": {"output": {"voice": "klingon"}}})
    assert error["param"] == "response.audio.output.voice"
    assert len(client.asked) == asked
    client = Client()
    client.update(voice="anything")
    assert client.asked[-1] == ev.SessionUpdate(voice="anything")


def test_a_voice_of_the_first_response_is_the_sessions_from_then_on() -> None:
    client = Client()
    client.say("response.create", response={"audio": {"output": {"voice": "en-gb"}}})
    assert client.asked[0] == ev.SessionUpdate(voice="en-gb")
    assert client.hear(ev.SessionUpdated()) == []
    (answer,) = client.update(instructions="x")
    assert answer["session"]["audio"]["output"]["voice"] == "en-gb"


def test_the_rate_cannot_change_after_audio_but_the_law_can() -> None:
    client = Client()
    client.update(audio={"input": {"format": {"type": "audio/pcmu"}}})
    client.append(bytes(160))
    client.update(audio={"input": {"format": {"type": "audio/pcma"}}})
    assert client.asked[-1] == ev.SessionUpdate()
    error = client.error(
        "session.update", session={"audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000}}}}
    )
    assert error["param"] == "session.audio.input.format"


def test_the_type_cannot_change_once_there_are_items() -> None:
    client = Client()
    client.say("conversation.item.create", item=text_item())
    assert client.error("session.update", session={"type": "transcription"})["param"] == "session.type"


def test_a_format_of_its_own_is_refused_for_a_response() -> None:
    client = Client()
    fields = {"audio": {"output": {"format": {"type": "audio/pcmu"}}}}
    assert client.error("response.create", response=fields)["param"] == "response.audio.output.format"


# ------------------------------------------------------------------------------------------------------------ settings


def test_server_vad_has_all_its_fields_and_the_servers_own_for_the_rest() -> None:
    base = ev.TurnDetection(silence_duration_ms=700, max_turn_ms=9000)
    client = Client(turn_detection=base)
    shown = client.received[0]["session"]["audio"]["input"]["turn_detection"]
    assert shown["silence_duration_ms"] == 700
    given = {
        "type": "server_vad",
        "threshold": 0.6,
        "prefix_padding_ms": 100,
        "idle_timeout_ms": 6000,
        "create_response": False,
        "interrupt_response": False,
    }
    (answer,) = client.update(audio={"input": {"turn_detection": given}})
    assert answer["session"]["audio"]["input"]["turn_detection"] == {**given, "silence_duration_ms": 700}
    assert client.asked[-1] == ev.SessionUpdate(
        turn_detection=ev.TurnDetection(
            threshold=0.6,
            prefix_padding_ms=100,
            silence_duration_ms=700,
            max_turn_ms=9000,
            idle_timeout_ms=6000,
            creates_reply=False,
            interrupts_reply=False,
        )
    )


@pytest.mark.parametrize(
    ("eagerness", "longest_ms"), [("low", 8000), ("medium", 4000), ("auto", 4000), ("high", 2000)]
)
def test_semantic_vad_is_silence_by_eagerness(eagerness: str, longest_ms: int) -> None:
    client = Client()
    (answer,) = client.update(
        audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": eagerness}}}
    )
    assert answer["session"]["audio"]["input"]["turn_detection"]["eagerness"] == eagerness
    update = client.asked[-1]
    assert isinstance(update, ev.SessionUpdate)
    assert isinstance(update.turn_detection, ev.TurnDetection)
    assert update.turn_detection.max_silence_ms == longest_ms
    silence = {"low": 1000, "medium": 500, "auto": 500, "high": 300}[eagerness]
    assert update.turn_detection.silence_duration_ms == silence


def test_only_fields_that_are_present_change_and_null_means_absent_where_it_has_no_meaning() -> None:
    client = Client()
    client.update(instructions="one", max_output_tokens=12, tools=None, tracing=None)
    client.update(instructions=None, max_output_tokens="inf", audio={"output": {"speed": 0.5}})
    assert client.asked == [
        ev.SessionUpdate(instructions="one", max_output_tokens=12),
        ev.SessionUpdate(max_output_tokens=None, speed=0.5),
    ]
    session = client.received[-1]["session"]
    assert (session["instructions"], session["max_output_tokens"], session["tracing"]) == ("one", "inf", None)


def test_updates_sent_without_waiting_are_answered_in_order() -> None:
    client = Client()
    client.say("session.update", session={"instructions": "one"})
    client.say("session.update", session={"instructions": "two"})
    answers = client.hear(ev.SessionUpdated(), ev.SessionUpdated())
    assert [answer["session"]["instructions"] for answer in answers] == ["one", "two"]


def test_what_the_session_adds_by_error_event_keeps_its_kind() -> None:
    client = Client()
    (fault,) = client.hear(ev.ErrorEvent(code="engine_failed", message="the engine failed"))
    assert (fault["error"]["type"], fault["error"]["code"]) == ("server_error", "engine_failed")
    (load,) = client.hear(ev.ErrorEvent(code="capacity_exhausted", message="full", retryable=True))
    assert (load["error"]["type"], load["error"]["code"]) == ("server_overloaded", "capacity_exhausted")


def test_the_upgrade_request_says_which_dialect_and_key() -> None:
    plain = read_request({"model": "m"})
    assert (plain.dialect, plain.model, plain.subprotocol) == (Dialect.GA, "m", None)
    assert read_request({}, beta_header="realtime=v1").dialect is Dialect.BETA
    offered = ["realtime", "openai-insecure-api-key.sk-1", "openai-beta.realtime-v1"]
    browser = read_request(
        {"intent": "transcription", "conversation_id": "c", "vendor_events": "1"}, offered=offered
    )
    assert (browser.dialect, browser.subprotocol, browser.api_key) == (Dialect.BETA, "realtime", "sk-1")
    assert (browser.is_transcription, browser.conversation_id, browser.has_vendor_events) == (True, "c", True)


@pytest.mark.parametrize("name", ["tracing", "input_audio_noise_reduction"])
def test_what_is_kept_to_be_told_back_is_text_or_refused(name: str) -> None:
    """A field that is kept raw is not decoded before it is told back, where bytes that are no text would be a fault."""
    bad = b'{"%s":"\xed\xa0\x80"}' % name.encode()
    codec = OpenAICodec("abc")
    with pytest.raises(ProtocolError) as refused:
        codec.receive_text(b'{"type":"session.update","session":%s}' % bad)
    assert refused.value.code == "invalid_json"
    with pytest.raises(ProtocolError):
        read_session(bad)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"[]", "Invalid type for the event: expected `object`, but got `array` instead."),
        (
            b'{"type":"session.update","session":{"output_modalities":["video"]}}',
            "Invalid value: 'video'. Supported values are: 'audio', 'text'.",
        ),
        (
            b'{"type":"session.update","session":{"type":"foo"}}',
            "Invalid value: 'foo'. Supported values are: 'realtime', 'transcription'.",
        ),
        (
            b'{"type":"session.update","session":{"max_output_tokens":"all"}}',
            "Invalid value: 'all'. Supported values are: 'inf', an integer from 1 to 4096.",
        ),
        (
            b'{"type":"session.update","session":{"tools":[{"name":"f","type":"mcp"}]}}',
            "Invalid value: 'mcp'. Supported values are: 'function'.",
        ),
        (
            b'{"type":"input_audio_buffer.append","audio":"\\ud83d"}',
            "The event is not valid JSON: it is not valid JSON text (a lone surrogate).",
        ),
    ],
)
def test_the_sentence_names_what_is_wrong(message: bytes, text: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        OpenAICodec("abc").receive_text(message)
    assert refused.value.message == text


def test_an_error_shows_a_little_of_a_long_name() -> None:
    client = Client()
    for event in (
        {"item": text_item(), "previous_item_id": "x" * 500},
        {"item": {"type": "function_call_output", "call_id": "x" * 500, "output": ""}},
    ):
        assert len(client.error("conversation.item.create", **event)["message"]) < 200
    assert len(client.error("conversation.item.delete", item_id="x" * 500)["message"]) < 200


def test_a_choice_whose_tool_has_gone_is_auto_again() -> None:
    client = Client()
    client.update(tools=[{"name": "f"}], tool_choice={"type": "function", "name": "f"})
    (answer,) = client.update(tools=[{"name": "g"}])
    assert answer["session"]["tool_choice"] == "auto"
    assert client.asked[-1] == ev.SessionUpdate(tools=(ev.Tool("g"),), tool_choice="auto")


def test_an_item_that_was_deleted_may_come_again_under_its_id() -> None:
    client = Client()
    for _ in range(2):
        client.say("conversation.item.create", item=text_item(id="item_mine"))
        client.say("conversation.item.delete", item_id="item_mine")
    given = client.say("conversation.item.create", item=text_item())[0]["item"]["id"]
    client.say("conversation.item.delete", item_id=given)
    assert client.say("conversation.item.create", item=text_item(id=given))[0]["item"]["id"] == given


@pytest.mark.parametrize(
    ("session", "param"),
    [
        (b'{"voice":"nope"}', "session.voice"),
        (b'{"output_modalities":[]}', "session.output_modalities"),
        (
            b'{"audio":{"output":{"format":{"type":"audio/pcm","rate":8000}}}}',
            "session.audio.output.format.rate",
        ),
        (b'{"tools":[{"name":"a"},{"name":"a"}]}', "session.tools[1].name"),
        (b'{"type":"foo"}', "session.type"),
    ],
)
def test_a_session_for_a_token_is_refused_for_all_that_no_session_could_begin_with(
    session: bytes, param: str
) -> None:
    with pytest.raises(ProtocolError) as refused:
        read_session(session, frozenset({"en-us"}))
    assert (refused.value.code, refused.value.param) == ("invalid_value", param)


def test_a_model_of_any_length_is_not_taken_from_the_query() -> None:
    with pytest.raises(ProtocolError) as refused:
        read_request({"model": "m" * 257})
    assert refused.value.param == "model"


def test_longer_silence_for_sentences_that_sound_finished_is_held_to_the_longest() -> None:
    client = Client(turn_detection=ev.TurnDetection(min_silence_ms=9_000, max_silence_ms=9_500))
    client.update(audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}}})
    update = client.asked[-1]
    assert isinstance(update, ev.SessionUpdate)
    assert isinstance(update.turn_detection, ev.TurnDetection)
    assert (update.turn_detection.min_silence_ms, update.turn_detection.max_silence_ms) == (2_000, 2_000)
