"""The published Python packages as judges of every event we send. Optional: ``openai`` and ``openai-agents``."""

from __future__ import annotations

import pytest

from tests.voiceserver.wire.openai_client import Client, Wire, text_item
from voiceserver.events import events as ev
from voiceserver.wire.openai import Dialect

openai = pytest.importorskip("openai", reason="the openai package is not installed")

from pydantic import TypeAdapter  # noqa: E402


def everything(dialect: Dialect) -> list[Wire]:
    """At least one of every server event that this wire has."""
    client = Client(dialect, model="gpt-realtime")  # the beta schema lists the models it knows
    client.codec.set_talk_limit(60_000.0, 45_000.0, 1.5)
    tool = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
    client.update(
        tools=[tool], turn_detection={"type": "server_vad"}, resumption={"enabled": True}, tracing=None
    )
    client.speech(1)
    client.reply(1)
    first = client.codec.conversation.in_order()[-1].id
    client.say("conversation.item.retrieve", item_id=first)
    client.say("conversation.item.truncate", item_id=first, content_index=0, audio_end_ms=100)
    client.say("conversation.item.delete", item_id=first)
    for item in (text_item("hello"), text_item("be brief", "system"), text_item("hi", "assistant")):
        client.say("conversation.item.create", item=item)
    client.reply(2, speaks=False)
    client.hear(
        ev.ReplyStarted(turn=3),
        ev.ReplyToolCall(3, 0, "c1", "weather", "{}"),
        ev.ReplyToolCall(3, 0, "c1", "weather", "{}", is_done=True),
        ev.ReplyDone(turn=3, reason="completed"),
    )
    output = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
    client.say("conversation.item.create", item=output)
    client.hear(
        ev.ReplyStarted(turn=4),
        ev.ReplyText(turn=4, text="It"),
        ev.SpeechStarted(5, 9000.0, interrupted_turn=4),
    )
    client.hear(ev.ReplyDone(turn=4, reason="interrupted"))
    client.hear(
        ev.SpeechStopped(5, 9500.0),
        ev.InputCommitted(5, 9600.0),
        ev.TranscriptFailed(5, "failed", "no words"),
    )
    client.hear(
        ev.ReplyStarted(turn=5), ev.ReplyDone(5, "failed", code="engine_failed", message="the engine failed")
    )
    client.hear(ev.ServerBusy("stt", "slow", 400.0, 0.0, 100.0), ev.ServerDraining(deadline_ms=9.0))
    client.hear(ev.InputCleared())
    if dialect is Dialect.GA:
        client.hear(ev.InputIdle(from_ms=0.0, to_ms=5000.0))
    client.say("response.cancel", event_id="e1")
    return client.received


def check(adapter: TypeAdapter[object], frames: list[Wire]) -> None:
    for frame in frames:
        event = adapter.validate_python(frame)
        assert event.type == frame["type"]  # type: ignore[attr-defined]


def test_the_ga_schema_takes_every_event() -> None:
    from openai.types.realtime import RealtimeServerEvent

    frames = everything(Dialect.GA)
    check(TypeAdapter(RealtimeServerEvent), frames)
    types = {frame["type"] for frame in frames}
    assert len(types) == 32, sorted(types)


def test_the_beta_schema_takes_every_event() -> None:
    from openai.types.beta.realtime import RealtimeServerEvent

    check(TypeAdapter(RealtimeServerEvent), everything(Dialect.BETA))


def test_the_agents_package_takes_every_event() -> None:
    pytest.importorskip("agents", reason="the openai-agents package is not installed")
    from agents.realtime.openai_realtime import get_server_event_type_adapter

    frames = everything(Dialect.GA)
    # As that package does before it validates.
    check(
        get_server_event_type_adapter(),
        [{**f, "previous_item_id": f.get("previous_item_id") or ""} for f in frames],
    )


def test_the_ga_session_object_is_known_for_what_it_is() -> None:
    from openai.types.realtime import SessionCreatedEvent
    from openai.types.realtime.realtime_session_create_request import RealtimeSessionCreateRequest

    event = TypeAdapter(SessionCreatedEvent).validate_python(Client(model="m").received[0])
    assert isinstance(event.session, RealtimeSessionCreateRequest)
    assert event.session.audio is not None
    assert event.session.audio.input is not None
    detection = event.session.audio.input.turn_detection
    assert detection is not None
    assert detection.interrupt_response is True
