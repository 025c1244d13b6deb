"""Conversation items, responses and function calls on the Realtime wire: ids outside, keys inside."""

from __future__ import annotations

import base64
import gc

import pytest

from tests.voiceserver.wire.openai_client import Client, text_item
from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.events.events import HistoryItem
from voiceserver.wire import Audio
from voiceserver.wire.openai import Dialect
from voiceserver.wire.openai import items as wire_items
from voiceserver.wire.openai.codec import OpenAICodec

TOOL = {"type": "function", "name": "weather", "description": "of a place", "parameters": {"type": "object"}}


def ids(client: Client) -> list[str]:
    return [item.id for item in client.codec.conversation.in_order()]


def test_a_created_item_is_told_in_full_and_goes_into_the_history() -> None:
    client = Client()
    added, done = client.say("conversation.item.create", item=text_item("hello", id="mine"))
    assert (added["type"], done["type"]) == ("conversation.item.added", "conversation.item.done")
    assert (
        added["item"]
        == done["item"]
        == {
            "id": "mine",
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_text", "text": "hello"}],
        }
    )
    item = HistoryItem(role="user", text="hello", key="mine")
    assert client.asked == [ev.ItemAppend(item=item, may_be_gone=True)]


def test_beta_says_created_once_and_calls_text_by_its_old_name() -> None:
    client = Client(Dialect.BETA)
    item = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "hi"}]}
    (created,) = client.say("conversation.item.create", item=item)
    assert created["type"] == "conversation.item.created"
    assert created["item"]["content"] == [{"type": "text", "text": "hi"}]


def test_items_go_where_previous_item_id_says_and_the_session_is_told_by_key() -> None:
    client = Client()
    client.speech(1)
    spoken = ids(client)[0]
    for name, after in (("b", None), ("a", spoken), ("first", "root"), ("last", "")):
        client.say("conversation.item.create", item=text_item(id=name), previous_item_id=after)
    assert ids(client) == ["first", spoken, "a", "b", "last"]
    asked = [event for event in client.asked if isinstance(event, ev.ItemAppend)]
    assert [event.after_key for event in asked] == ["", "user:1", "root", ""]
    previous = [f["previous_item_id"] for f in client.received if f["type"] == "conversation.item.done"]
    assert previous == [None, spoken, spoken, None, "b"]


def test_retrieve_gives_the_item_as_it_is_now() -> None:
    client = Client()
    client.hear(ev.SpeechStarted(1, 0.0), ev.SpeechStopped(1, 900.0), ev.InputCommitted(1, 900.0))
    (item_id,) = ids(client)
    (before,) = client.say("conversation.item.retrieve", item_id=item_id)
    client.hear(ev.TranscriptFinal(turn=1, text="go"))
    (after,) = client.say("conversation.item.retrieve", item_id=item_id)
    assert before["type"] == after["type"] == "conversation.item.retrieved"
    assert before["item"]["content"] == [{"type": "input_audio", "transcript": None}]
    assert after["item"]["content"] == [{"type": "input_audio", "transcript": "go"}]


def test_delete_takes_the_item_from_the_chain_and_from_the_history() -> None:
    client = Client()
    client.speech(1)
    client.reply(1)
    heard, said = ids(client)
    (deleted,) = client.say("conversation.item.delete", item_id=said)
    assert (deleted["type"], deleted["item_id"]) == ("conversation.item.deleted", said)
    assert client.asked[-1] == ev.ItemDelete(key="reply:1", may_be_gone=True)
    added, _ = client.say("conversation.item.create", item=text_item())
    assert added["previous_item_id"] == heard
    assert client.error("conversation.item.retrieve", item_id=said)["code"] == "item_retrieve_invalid_item_id"


def test_a_deleted_reply_in_progress_does_not_come_back() -> None:
    client = Client()
    client.hear(ev.ReplyStarted(turn=1), ev.ReplyText(turn=1, text="You said"))
    (item_id,) = ids(client)
    client.say("conversation.item.delete", item_id=item_id)
    frames = client.hear(ev.ReplyDone(turn=1, reason="completed"))
    assert "conversation.item.done" not in [frame["type"] for frame in frames]
    assert ids(client) == []


def test_an_item_the_session_refuses_is_not_in_the_conversation() -> None:
    client = Client()
    client.say("conversation.item.create", event_id="e7", item=text_item(id="mine"))
    (frame,) = client.refuse(ProtocolError("item_exists", "exists already"))
    assert frame["error"]["event_id"] == "e7"
    assert ids(client) == []


def test_truncate_needs_a_spoken_reply_and_no_more_than_was_sent() -> None:
    client = Client()
    client.speech(1)
    client.reply(1, audio_ms=500)
    heard, said = ids(client)
    fields = {"content_index": 0, "audio_end_ms": 501}
    error = client.error("conversation.item.truncate", item_id=said, **fields)
    assert (error["code"], error["message"]) == (
        "invalid_value",
        "Audio content of 500ms is already shorter than 501ms",
    )
    error = client.error("conversation.item.truncate", item_id=heard, **fields)
    assert error["message"] == "Only model output audio messages can be truncated"
    assert (
        client.error("conversation.item.truncate", item_id="x", **fields)["code"]
        == "item_truncate_invalid_item_id"
    )
    fields = {"content_index": 1, "audio_end_ms": 10}
    assert client.error("conversation.item.truncate", item_id=said, **fields)["param"] == "content_index"
    fields = {"content_index": 0, "audio_end_ms": 500}
    (frame,) = client.say("conversation.item.truncate", item_id=said, **fields)
    assert frame["audio_end_ms"] == 500


def test_a_user_item_of_audio_is_heard_like_a_turn_by_hand() -> None:
    client = Client()
    client.update(audio={"input": {"turn_detection": None}})
    audio = base64.b64encode(bytes(9600)).decode()
    item = {
        "type": "message",
        "role": "user",
        "id": "said",
        "content": [{"type": "input_audio", "audio": audio}],
    }
    assert client.say("conversation.item.create", item=item) == []
    assert client.asked[-2:] == [Audio(bytes(9600)), ev.InputCommit(creates_reply=False)]
    frames = client.hear(ev.InputCommitted(turn=1, audio_ms=200.0), ev.TranscriptFinal(turn=1, text="yes"))
    assert [frame["type"].split(".")[-1] for frame in frames] == ["added", "done", "delta", "completed"]
    assert {frame.get("item_id") or frame["item"]["id"] for frame in frames} == {"said"}
    client.update(audio={"input": {"turn_detection": {"type": "server_vad"}}})
    error = client.error("conversation.item.create", item={**item, "id": "other"})
    assert error["param"] == "item.content[0].audio"


def test_the_oldest_items_leave_a_full_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_items, "MAX_ITEMS", 3)
    client = Client()
    for name in "abcde":
        client.say("conversation.item.create", item=text_item(id=name))
    assert ids(client) == ["c", "d", "e"]


# ----------------------------------------------------------------------------------------------------------- responses


def test_a_conversation_counts_what_its_items_have_become() -> None:
    conversation = wire_items.Conversation()
    for at in range(200):
        item = wire_items.Item(f"item_{at}", "message", "assistant")
        conversation.add(item)
        item.parts.append(
            wire_items.Part("output_text", "x" * 100_000)
        )  # said after it was added, as replies are
        if at % 3 == 0:
            conversation.remove(item.id)
    kept = sum(item.size for item in conversation.in_order())
    assert kept <= wire_items.MAX_CHARACTERS + 200_000
    conversation.add(wire_items.Item("last", "message", "user"))
    assert sum(item.size for item in conversation.in_order()) <= wire_items.MAX_CHARACTERS


def test_items_without_text_count_too() -> None:
    conversation = wire_items.Conversation()
    for at in range(60):
        item = wire_items.Item(f"item_{at}", "function_call")
        item.name = "x" * 100_000
        conversation.add(item)
    assert len(conversation) == wire_items.MAX_CHARACTERS // 100_000


def test_an_item_has_so_many_parts_and_no_more() -> None:
    client = Client()
    parts = [{"type": "input_text", "text": ""}] * (wire_items.MAX_PARTS + 1)
    error = client.error(
        "conversation.item.create", item={"type": "message", "role": "user", "content": parts}
    )
    assert (error["code"], error["param"]) == ("array_above_max_length", "item.content")


@pytest.mark.parametrize("last", ["session.update", "item", "commit"])
def test_a_call_that_is_over_needs_no_collector(last: str) -> None:
    client = Client()
    if last == "session.update":
        client.say("session.update", session={"type": "realtime", "instructions": "Be brief."})
    elif last == "item":
        client.say("conversation.item.create", item=text_item("hello"))
    else:
        client.append(bytes(48_000))
        client.say("input_audio_buffer.commit")
    gc.disable()
    try:
        assert any(one is client.codec for one in gc.get_objects())
        name = id(client.codec)
        del client
        assert not any(id(one) == name and isinstance(one, OpenAICodec) for one in gc.get_objects())
    finally:
        gc.enable()


def test_a_response_by_hand_has_the_id_it_was_asked_under_and_its_metadata() -> None:
    client = Client()
    client.codec.set_talk_limit(60_000.0, 45_000.0, 1.5)
    response = {
        "metadata": {"topic": "a"},
        "output_modalities": ["text"],
        "instructions": "rhyme",
        "max_output_tokens": 9,
    }
    assert client.say("response.create", response=response) == []
    create = client.asked[-1]
    assert isinstance(create, ev.ReplyCreate)
    assert (create.speaks, create.instructions, create.max_output_tokens) == (False, "rhyme", 9)
    frames = client.reply(1, key=create.key, speaks=False)
    created, done, limits = frames[0], frames[-2], frames[-1]
    assert created["response"]["id"] == done["response"]["id"] == create.key
    assert done["response"]["metadata"] == {"topic": "a"}
    assert done["response"]["max_output_tokens"] == 9
    assert limits["rate_limits"] == [{"name": "tokens", "limit": 600, "remaining": 450, "reset_seconds": 1.5}]


def test_usage_counts_text_by_the_engine_and_audio_by_its_length() -> None:
    client = Client()
    client.speech(1)
    frames = client.reply(1, audio_ms=500)
    usage = frames[-2]["response"]["usage"]
    assert usage["input_token_details"]["audio_tokens"] == 10
    assert usage["output_token_details"] == {"text_tokens": 4, "audio_tokens": 10}
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (17, 14, 31)


@pytest.mark.parametrize(
    ("reason", "status", "details"),
    [
        ("completed", "completed", None),
        ("cancelled", "cancelled", {"type": "cancelled", "reason": "client_cancelled"}),
        ("limited", "incomplete", {"type": "incomplete", "reason": "max_output_tokens"}),
        ("filtered", "incomplete", {"type": "incomplete", "reason": "content_filter"}),
    ],
)
def test_a_response_ends_with_its_reason(reason: str, status: str, details: object) -> None:
    client = Client()
    done = client.reply(1, reason=reason)[-2]["response"]
    assert (done["status"], done["status_details"]) == (status, details)


def test_a_failed_response_before_any_output_is_still_created_and_done() -> None:
    client = Client()
    frames = client.hear(
        ev.ReplyStarted(turn=1), ev.ReplyDone(1, "failed", code="reply_timeout", message="no answer")
    )
    assert [frame["type"] for frame in frames][:2] == ["response.created", "response.done"]
    error = frames[1]["response"]["status_details"]["error"]
    assert error == {"type": "server_error", "code": "reply_timeout", "message": "no answer"}


def test_one_response_at_a_time_writes_the_conversation() -> None:
    client = Client()
    client.say("response.create")
    waiting = client.error("response.create", event_id="e2")
    assert (waiting["code"], waiting["event_id"]) == ("conversation_already_has_active_response", "e2")
    key = client.asked[-1].key  # type: ignore[union-attr]
    client.hear(ev.ReplyStarted(turn=1, key=key))
    assert key in client.error("response.create")["message"]
    client.hear(ev.ReplyDone(turn=1, reason="completed", key=key))
    client.say("response.create")
    assert isinstance(client.asked[-1], ev.ReplyCreate)


def test_a_response_the_session_refused_does_not_stand_in_the_way() -> None:
    client = Client()
    client.say("response.create")
    (frame,) = client.refuse(ProtocolError("reply_active", "the reply of turn 1 is still in progress"))
    assert frame["error"]["code"] == "conversation_already_has_active_response"
    client.say("response.create")
    assert len(client.asked) == 2


def test_cancel_needs_an_active_response() -> None:
    client = Client()
    assert client.error("response.cancel")["code"] == "response_cancel_not_active"
    client.hear(ev.ReplyStarted(turn=1))
    assert client.error("response.cancel", response_id="resp_other")["code"] == "response_cancel_not_active"
    client.say("response.cancel")
    assert isinstance(client.asked[-1], ev.ReplyCancel)
    frames = client.hear(ev.ReplyDone(turn=1, reason="cancelled"))
    assert frames[0]["response"]["status_details"]["reason"] == "client_cancelled"
    assert client.error("response.cancel")["code"] == "response_cancel_not_active"


def test_an_out_of_band_response_leaves_the_conversation_alone() -> None:
    client = Client()
    client.speech(1)
    (heard,) = ids(client)
    client.hear(ev.ReplyStarted(turn=1))
    inputs = [{"type": "item_reference", "id": heard}, text_item("classify this")]
    client.say(
        "response.create", response={"conversation": "none", "input": inputs, "output_modalities": ["text"]}
    )
    create = client.asked[-1]
    assert isinstance(create, ev.ReplyCreate)
    assert create.is_out_of_band
    assert create.items is not None
    assert [(item.role, item.text) for item in create.items] == [
        ("user", "go forward"),
        ("user", "classify this"),
    ]
    frames = client.reply(2, key=create.key, speaks=False, is_out_of_band=True)
    assert not [frame for frame in frames if frame["type"].startswith("conversation.")]
    assert frames[0]["response"]["conversation_id"] is None
    assert ids(client) == [heard]
    error = client.error(
        "response.create", response={"conversation": "none", "input": [{"type": "item_reference", "id": "x"}]}
    )
    assert error["param"] == "response.input[0].id"


def test_a_function_call_streams_and_its_output_feeds_the_next_response() -> None:
    client = Client()
    client.update(tools=[TOOL], tool_choice={"type": "function", "name": "weather"})
    update = client.asked[-1]
    assert isinstance(update, ev.SessionUpdate)
    assert update.tools == (ev.Tool("weather", "of a place", {"type": "object"}),)
    assert update.tool_choice == "weather"
    frames = client.hear(
        ev.ReplyStarted(turn=1),
        ev.ReplyToolCall(1, 0, "c1", "weather", '{"place"'),
        ev.ReplyToolCall(1, 0, "c1", "weather", ':"Oslo"}'),
        ev.ReplyToolCall(1, 0, "c1", "weather", '{"place":"Oslo"}', is_done=True),
        ev.ReplyDone(turn=1, reason="completed"),
    )
    assert [frame["type"] for frame in frames] == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
        "rate_limits.updated",
    ]
    done = frames[5]
    assert (done["call_id"], done["name"], done["arguments"]) == ("c1", "weather", '{"place":"Oslo"}')
    assert frames[8]["response"]["output"][0]["arguments"] == '{"place":"Oslo"}'
    output = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
    added, _ = client.say("conversation.item.create", item=output)
    assert added["item"]["output"] == "rain"
    history = client.asked[-1]
    assert isinstance(history, ev.ItemAppend)
    assert (history.item.role, history.item.call_id, history.item.text) == ("tool", "c1", "rain")
    error = client.error("conversation.item.create", item={**output, "call_id": "nobody"})
    assert error["param"] == "item.call_id"


def test_arguments_that_come_whole_with_the_end_are_a_delta_too() -> None:
    client = Client()
    client.hear(ev.ReplyStarted(turn=1))
    frames = client.hear(ev.ReplyToolCall(1, 0, "", "weather", "{}", is_done=True))
    assert [f["delta"] for f in frames if f["type"].endswith("arguments.delta")] == ["{}"]
    assert frames[0]["item"]["call_id"].startswith("call_")


def test_a_message_and_two_calls_have_their_own_output_indexes() -> None:
    client = Client()
    frames = client.hear(
        ev.ReplyStarted(turn=1),
        ev.ReplyText(turn=1, text="Let me look."),
        ev.ReplyToolCall(1, 0, "c1", "a", "{}", is_done=True),
        ev.ReplyToolCall(1, 1, "c2", "b", "{"),
        ev.ReplyDone(turn=1, reason="interrupted"),
    )
    closed = [
        (f["output_index"], f["item"]["status"]) for f in frames if f["type"] == "response.output_item.done"
    ]
    assert closed == [(1, "completed"), (0, "incomplete"), (2, "incomplete")]
    assert [item["type"] for item in frames[-2]["response"]["output"]] == [
        "message",
        "function_call",
        "function_call",
    ]
