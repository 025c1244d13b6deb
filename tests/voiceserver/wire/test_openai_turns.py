"""Turns on the Realtime wire, in the order that clients rely on."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from tests.voiceserver.wire.openai_client import Client
from voiceserver.events import events as ev
from voiceserver.wire import Audio
from voiceserver.wire.openai import Conversation, Dialect

GOLDEN_GA = [
    "session.created",
    "session.updated",
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
    "conversation.item.input_audio_transcription.delta",
    "conversation.item.input_audio_transcription.delta",
    "conversation.item.input_audio_transcription.completed",
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.delta",
    "response.output_audio_transcript.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
    "rate_limits.updated",
]
BETA_NAMES = {
    "conversation.item.added": "conversation.item.created",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
}


def test_a_spoken_turn_has_the_golden_order() -> None:
    client = Client()
    client.update(instructions="be brief")
    client.speech(1)
    client.reply(1)
    assert client.types == GOLDEN_GA


def test_the_beta_dialect_has_its_own_names_and_no_item_done() -> None:
    client = Client(Dialect.BETA)
    client.update(instructions="be brief")
    client.speech(1)
    client.reply(1)
    expected = [BETA_NAMES.get(name, name) for name in GOLDEN_GA if name != "conversation.item.done"]
    expected.insert(1, "conversation.created")
    assert client.types == expected


def test_one_item_id_a_turn_and_each_item_names_the_one_before() -> None:
    client = Client()
    client.speech(1)
    client.reply(1)
    client.speech(2)
    first = [frame for frame in client.received if frame.get("item_id") == client.received[1]["item_id"]]
    assert [frame["type"].split(".")[-1] for frame in first] == [
        "speech_started",
        "speech_stopped",
        "committed",
        "delta",
        "delta",
        "completed",
    ]
    added = [frame for frame in client.received if frame["type"] == "conversation.item.added"]
    ids = [frame["item"]["id"] for frame in added]
    assert [frame["previous_item_id"] for frame in added] == [None, ids[0], ids[1]]
    commits = [frame for frame in client.received if frame["type"] == "input_audio_buffer.committed"]
    assert [frame["previous_item_id"] for frame in commits] == [None, ids[1]]


def test_every_event_id_is_its_own() -> None:
    client = Client()
    client.speech(1)
    client.reply(1)
    ids = [frame["event_id"] for frame in client.received]
    assert len(set(ids)) == len(ids)


def test_transcript_deltas_add_up_and_are_never_taken_back() -> None:
    client = Client()
    client.hear(
        ev.SpeechStarted(turn=1, at_ms=0.0),
        ev.SpeechStopped(turn=1, at_ms=900.0),
        ev.InputCommitted(1, 900.0),
    )
    for text in ("go", "go for", "go", "gone far", "go for it"):
        client.hear(ev.TranscriptPartial(turn=1, text=text))
    client.hear(ev.TranscriptFinal(turn=1, text="go forth"))
    deltas = [frame["delta"] for frame in client.received if frame["type"].endswith("transcription.delta")]
    assert deltas == ["go", " for", " it"]
    assert client.received[-1]["transcript"] == "go forth"
    assert client.received[-1]["usage"] == {"type": "duration", "seconds": 0.9}


def test_partial_transcripts_wait_for_the_item_in_a_conversation_but_not_in_a_transcription_session() -> None:
    client = Client()
    assert client.hear(ev.SpeechStarted(turn=1, at_ms=0.0), ev.TranscriptPartial(turn=1, text="go"))[1:] == []
    listener = Client(is_transcription=True)
    frames = listener.hear(ev.SpeechStarted(turn=1, at_ms=0.0), ev.TranscriptPartial(turn=1, text="go"))
    assert frames[1]["delta"] == "go"


def test_transcription_null_hides_transcripts_but_not_the_turn() -> None:
    client = Client()
    client.update(audio={"input": {"transcription": None}})
    client.speech(1)
    assert not [name for name in client.types if "transcription" in name]
    item_id = next(
        frame["item"]["id"] for frame in client.received if frame["type"] == "conversation.item.done"
    )
    (answer,) = client.say("conversation.item.retrieve", item_id=item_id)
    assert answer["item"]["content"] == [{"type": "input_audio", "transcript": None}]


def test_barge_in_ends_the_response_and_no_delta_follows() -> None:
    client = Client()
    client.speech(1)
    client.hear(
        ev.ReplyStarted(turn=1), ev.ReplyText(turn=1, text="You said"), ev.ReplyAudio(turn=1, pcm=bytes(9600))
    )
    frames = client.hear(
        ev.SpeechStarted(turn=2, at_ms=5000.0, interrupted_turn=1),
        ev.ReplyDone(turn=1, reason="interrupted"),
        ev.ReplyAudio(turn=1, pcm=bytes(960)),
        ev.ReplyText(turn=1, text=" late"),
    )
    assert [frame["type"] for frame in frames] == [
        "input_audio_buffer.speech_started",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
        "rate_limits.updated",
    ]
    response = frames[6]["response"]
    assert response["status"] == "cancelled"
    assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    item = response["output"][0]
    assert item["status"] == "incomplete"
    assert item["content"] == [{"type": "output_audio", "transcript": "You said"}]
    answers = client.say("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=100)
    assert answers[0]["type"] == "conversation.item.truncated"
    assert client.asked[-1] == ev.ReplyPlayed(turn=1, played_ms=100.0, is_final=True)
    (answer,) = client.say("conversation.item.retrieve", item_id=item["id"])
    assert answer["item"]["content"][0]["transcript"] == "You"


@pytest.mark.parametrize("dialect", Dialect)
def test_a_text_reply_has_no_audio_events(dialect: Dialect) -> None:
    client = Client(dialect)
    name = "output_modalities" if dialect is Dialect.GA else "modalities"
    client.update(**{name: ["text"]})
    assert ev.SessionUpdate(speaks=False) in client.asked
    frames = client.reply(1, speaks=False)
    text = "output_text" if dialect is Dialect.GA else "text"
    assert [frame["delta"] for frame in frames if frame["type"] == f"response.{text}.delta"] == [
        "You said",
        " go forward.",
    ]
    done = frames[-2]["response"]
    assert done["output"][0]["content"] == [{"type": text, "text": "You said go forward."}]
    assert done[name] == ["text"]
    assert not [frame for frame in frames if "audio" in frame["type"]]


def test_turn_detection_by_hand_has_no_speech_events_and_commits_under_one_id() -> None:
    client = Client()
    client.update(audio={"input": {"turn_detection": None}})
    assert ev.SessionUpdate(turn_detection=None) in client.asked
    client.append(bytes(9600))
    client.say("input_audio_buffer.commit")
    assert client.asked[-1] == ev.InputCommit(creates_reply=False)
    frames = client.hear(
        ev.SpeechStarted(turn=1, at_ms=0.0),
        ev.SpeechStopped(turn=1, at_ms=0.0),
        ev.InputCommitted(turn=1, audio_ms=200.0),
        ev.TranscriptFinal(turn=1, text="yes"),
    )
    assert [frame["type"] for frame in frames][:3] == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
    ]
    assert frames[-1]["usage"]["seconds"] == 0.2
    client.say("input_audio_buffer.clear")
    assert client.asked[-1] == ev.InputClear()
    assert client.hear(ev.InputCleared())[0]["type"] == "input_audio_buffer.cleared"


def test_a_clear_in_the_middle_forgets_the_half_sample_too() -> None:
    client = Client()
    client.append(b"\x01\x02\x03")
    client.say("input_audio_buffer.clear")
    client.append(b"\x04\x05")
    assert [one.pcm for one in client.asked if isinstance(one, Audio)] == [b"\x01\x02", b"\x04\x05"]


def test_a_transcription_session_is_asked_for_at_the_door_or_later() -> None:
    client = Client(is_transcription=True)
    assert client.asked == [ev.SessionUpdate(replies=False)]
    assert client.received[0]["session"]["type"] == "transcription"
    assert client.hear(ev.SessionUpdated()) == []
    assert client.error("response.create")["type"] == "invalid_request_error"
    later = Client()
    (answer,) = later.update(type="transcription", audio={"input": {"transcription": {"language": "en"}}})
    assert answer["session"]["type"] == "transcription"
    assert later.asked == [ev.SessionUpdate(replies=False, transcribes=True, language="en")]


def test_a_transcription_session_nobody_asked_to_open_opens_with_the_first_event() -> None:
    client = Client()
    codec = type(client.codec)("x", is_transcription=True)
    assert codec.has_opening
    assert codec.opening_events() == [ev.SessionUpdate(replies=False)]
    assert not codec.has_opening
    assert codec.receive_text(b'{"type":"input_audio_buffer.clear"}') == [ev.InputClear()]


def test_the_beta_way_into_a_transcription_session() -> None:
    client = Client(Dialect.BETA)
    client.say(
        "transcription_session.update", session={"input_audio_format": "g711_ulaw", "turn_detection": None}
    )
    (answer,) = client.hear(ev.SessionUpdated())
    assert answer["type"] == "transcription_session.updated"
    assert answer["session"]["input_audio_format"] == "g711_ulaw"
    assert client.asked == [ev.SessionUpdate(replies=False, turn_detection=None)]


def test_idle_time_is_told_and_its_silence_is_committed_as_an_item() -> None:
    client = Client()
    told, *rest = client.hear(ev.InputIdle(from_ms=1000.0, to_ms=6000.0))
    assert told["type"] == "input_audio_buffer.timeout_triggered"
    assert (told["audio_start_ms"], told["audio_end_ms"]) == (1000, 6000)
    assert [frame["type"] for frame in rest] == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
    ]
    item = rest[-1]["item"]
    assert rest[0]["item_id"] == item["id"] == told["item_id"]
    assert item["content"] == [{"type": "input_audio", "transcript": ""}]
    assert client.speech(1)[0]["item_id"] != item["id"]


def test_the_id_of_a_session_stays_what_it_is() -> None:
    client = Client()
    (created,) = client.hear(ev.SessionReady("sess_7", 24_000, 24_000, resume_token="sess_7.token"))
    (updated,) = client.update(instructions="x")
    assert created["session"]["id"] == updated["session"]["id"] == "sess_7"


def test_a_failed_transcript_says_so_for_its_item() -> None:
    client = Client()
    client.hear(
        ev.SpeechStarted(turn=1, at_ms=0.0),
        ev.SpeechStopped(turn=1, at_ms=900.0),
        ev.InputCommitted(1, 900.0),
    )
    (frame,) = client.hear(ev.TranscriptFailed(turn=1, code="engine_failed", message="the engine failed"))
    assert frame["type"] == "conversation.item.input_audio_transcription.failed"
    assert frame["error"]["code"] == "engine_failed"


def test_a_stage_without_a_worker_is_late_until_audio_is_lost() -> None:
    """Some stock clients end their session at an ``error``, and here is nothing that a moment's patience does not mend."""
    client = Client()
    busy = ev.ServerBusy("vad", "no_worker", lag_ms=900.0, credit_ms=9_000.0, retry_after_ms=500.0)
    (frame,) = client.hear(busy)
    assert frame["type"] == "rate_limits.updated"
    assert (frame["busy"]["reason"], frame["busy"]["lag_ms"]) == ("no_worker", 900.0)
    (frame,) = client.hear(msgspec.structs.replace(busy, dropped_ms=20.0))
    assert (frame["type"], frame["error"]["type"]) == ("error", "server_overloaded")


@pytest.mark.parametrize("step", ["slow", "lost", "waiting", "degraded"])
@pytest.mark.parametrize(
    "reason", ["capacity", "full", "tenant_share", "waiting", "no_worker", "worker_lost", "slow"]
)
def test_only_audio_that_was_dropped_is_an_error(step: Any, reason: str) -> None:
    client = Client()
    busy = ev.ServerBusy("stt", reason, 900.0, 9_000.0, 500.0, position=2, step=step)
    assert [frame["type"] for frame in client.hear(busy)] == ["rate_limits.updated"]
    assert [frame["type"] for frame in client.hear(msgspec.structs.replace(busy, dropped_ms=0.1))] == [
        "error"
    ]


def test_busy_draining_and_vendor_events() -> None:
    client = Client()
    busy = ev.ServerBusy("stt", "slow", lag_ms=400.0, credit_ms=100.0, retry_after_ms=50.0, dropped_ms=20.0)
    (frame,) = client.hear(busy)
    assert frame["type"] == "error"
    assert (frame["error"]["type"], frame["error"]["code"]) == ("server_overloaded", "input_backpressure")
    numbers = {
        name: frame["error"][name]
        for name in ("stage", "lag_ms", "credit_ms", "retry_after_ms", "dropped_ms")
    }
    assert numbers == {
        "stage": "stt",
        "lag_ms": 400.0,
        "credit_ms": 100.0,
        "retry_after_ms": 50.0,
        "dropped_ms": 20.0,
    }
    (late,) = client.hear(ev.ServerBusy("stt", "slow", lag_ms=400.0, credit_ms=9600.0, retry_after_ms=50.0))
    assert late["type"] == "rate_limits.updated"  # an error would end the session of some stock clients
    (limit,) = late["rate_limits"]
    assert limit == {"name": "tokens", "limit": 100, "remaining": 96, "reset_seconds": 0.4}
    assert (late["busy"]["stage"], late["busy"]["lag_ms"]) == ("stt", 400.0)
    (waiting,) = client.hear(ev.ServerBusy("stt", "waiting", 0.0, 0.0, 900.0, position=3))
    assert waiting["type"] == "rate_limits.updated"
    assert (waiting["busy"]["code"], waiting["busy"]["position"]) == ("capacity_exhausted", 3)
    (draining,) = client.hear(ev.ServerDraining(deadline_ms=5000.0))
    assert (
        draining["type"] == "rate_limits.updated"
    )  # the turn is still finished: no error, which some take for the end
    assert draining["rate_limits"] == [{"name": "requests", "limit": 1, "remaining": 0, "reset_seconds": 5.0}]
    assert (draining["draining"]["code"], draining["draining"]["deadline_ms"]) == ("server_draining", 5000.0)
    assert client.hear(ev.ServerReady(stage="stt", credit_ms=900.0)) == []
    curious = Client(has_vendor_events=True)
    (ready,) = curious.hear(ev.ServerReady(stage="stt", credit_ms=900.0))
    assert (ready["type"], ready["credit_ms"]) == ("voiceserver.server.ready", 900.0)


def test_a_resumed_client_is_told_its_conversation_and_its_items() -> None:
    client = Client()
    (updated, created) = client.update(resumption={"enabled": True})
    assert updated["session"]["resumption"] == {"enabled": True}
    assert created["conversation"]["id"] == client.codec.conversation_id == "conv_abc"
    assert client.codec.is_resumable
    client.speech(1)
    client.reply(1)
    again = Client(conversation=client.codec.conversation)
    frames = again.hear(ev.SessionReady("abc", 24_000, 24_000, resume_token="conv_abc", is_resumed=True))
    assert [frame["type"] for frame in frames] == [
        "session.created",
        "conversation.created",
        "conversation.item.created",
        "conversation.item.created",
    ]
    assert frames[3]["previous_item_id"] == frames[2]["item"]["id"]
    assert frames[2]["item"]["content"][0]["transcript"] == "go forward"
    empty = Conversation()
    assert Client(conversation=empty).codec.conversation is empty


@pytest.mark.parametrize("name", ["g711_ulaw", "g711_alaw"])
def test_g711_is_8_khz_pcm_for_the_session(name: str) -> None:
    client = Client(Dialect.BETA)
    client.update(input_audio_format=name, output_audio_format=name)
    assert client.asked == [ev.SessionUpdate()]
    assert (client.codec.input_rate_hz, client.codec.output_rate_hz) == (8000, 8000)
    client.append(bytes(range(256)))
    assert len(client.asked[-1].pcm) == 512  # type: ignore[union-attr]
    client.hear(ev.ReplyStarted(turn=1))
    frames = client.hear(ev.ReplyAudio(turn=1, pcm=bytes(320)))
    assert len(base64.b64decode(frames[-1]["delta"])) == 160


def test_the_opened_format_is_kept_when_the_session_refuses_the_update() -> None:
    from voiceserver.errors import ProtocolError

    client = Client()
    client.say("session.update", session={"audio": {"input": {"format": {"type": "audio/pcmu"}}}})
    assert client.codec.input_rate_hz == 8000
    (frame,) = client.refuse(ProtocolError("reply_unavailable", "no"))
    assert frame["error"]["code"] == "reply_unavailable"
    assert client.codec.input_rate_hz == 24_000
    (updated,) = client.update(instructions="x")
    assert updated["session"]["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
