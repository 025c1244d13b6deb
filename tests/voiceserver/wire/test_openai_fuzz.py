"""Client and session talk at random, in every state: nothing but protocol errors, every opened thing closed, ids unique."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.voiceserver.wire.openai_client import Client, text_item
from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.wire.openai import Dialect


def client_event(rng: random.Random, client: Client) -> tuple[str, dict[str, Any]]:
    known = [item.id for item in client.codec.conversation.in_order()] or ["none"]
    item_id = rng.choice([*known, "nobody"])
    response = {
        "conversation": rng.choice(("none", "auto", None)),
        "input": rng.choice((None, [], [{"type": "item_reference", "id": item_id}], [text_item("x")])),
        "output_modalities": rng.choice((None, ["text"], ["audio"])),
    }
    call = {"type": "function_call_output", "call_id": rng.choice(("c0", "c9")), "output": "x"}
    session = rng.choice(
        (
            {"audio": {"input": {"turn_detection": None, "transcription": None}}},
            {"audio": {"input": {"turn_detection": {"type": "semantic_vad"}, "transcription": {}}}},
            {"audio": {"output": {"voice": rng.choice(("a", "b")), "format": {"type": "audio/pcmu"}}}},
            {"input_audio_format": rng.choice(("pcm16", "g711_alaw"))},
        )
    )
    return rng.choice(
        (
            ("session.update", {"session": session}),
            ("input_audio_buffer.append", {"audio": rng.choice(("AAAA", "AAA=", "A" * 6400, "?"))}),
            ("input_audio_buffer.commit", {}),
            ("input_audio_buffer.clear", {}),
            (
                "conversation.item.create",
                {"item": rng.choice((text_item(), call)), "previous_item_id": item_id},
            ),
            ("conversation.item.create", {"item": text_item(id=rng.choice("pqr"))}),
            ("conversation.item.retrieve", {"item_id": item_id}),
            ("conversation.item.delete", {"item_id": item_id}),
            (
                "conversation.item.truncate",
                {"item_id": item_id, "content_index": 0, "audio_end_ms": rng.choice((0, 9, 99))},
            ),
            ("response.create", {"response": response}),
            ("response.cancel", {}),
        )
    )


def server_event(rng: random.Random, turns: dict[str, int], keys: list[str]) -> ev.ServerEvent:
    """What a session may say: a turn grows, a reply begins before it ends."""
    heard, said = turns["heard"], turns["said"]
    kind = rng.randrange(10)
    if kind == 0:
        turns["heard"] = max(turns.values()) + 1
        return ev.SpeechStarted(turn=turns["heard"], at_ms=1.0)
    if kind == 1:
        return ev.SpeechStopped(turn=heard, at_ms=2.0)
    if kind == 2:
        return ev.InputCommitted(turn=heard, audio_ms=2.0)
    if kind == 3:
        return ev.TranscriptPartial(turn=heard, text="a b"[: rng.randint(0, 3)])
    if kind == 4:
        return ev.TranscriptFinal(turn=heard, text="a b c")
    if kind == 5 and not turns["is_saying"]:
        turns["said"], turns["is_saying"] = max(heard, said + 1), 1
        key = keys.pop() if keys else ""
        return ev.ReplyStarted(
            turn=turns["said"], key=key, speaks=rng.random() < 0.7, is_out_of_band=rng.random() < 0.2
        )
    if kind == 6:
        return ev.ReplyText(turn=said, text=" word")
    if kind == 7:
        return ev.ReplyAudio(turn=said, pcm=bytes(320))
    if kind == 8:
        index = rng.randint(0, 1)
        return ev.ReplyToolCall(said, index, f"c{index}", "f", "{}", is_done=rng.random() < 0.5)
    turns["is_saying"] = 0
    return ev.ReplyDone(turn=said, reason=rng.choice(("completed", "interrupted", "failed", "limited")))


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("seed", range(40))
def test_any_conversation_is_coherent_on_the_wire(dialect: Dialect, seed: int) -> None:
    rng = random.Random(seed)
    client = Client(dialect)
    turns = {"heard": 1, "said": 0, "is_saying": 0}
    keys: list[str] = []
    for _ in range(200):
        if rng.random() < 0.4:
            kind, fields = client_event(rng, client)
            before = len(client.asked)
            client.say(kind, **fields)
            asked = client.asked[before:]
            if asked and rng.random() < 0.1:
                client.refuse(ProtocolError("session_draining", "the session is ending"))
                continue
            for event in asked:
                if isinstance(event, ev.ReplyCreate):
                    keys = [event.key]
                elif isinstance(event, ev.SessionUpdate):
                    client.hear(ev.SessionUpdated())
        else:
            client.hear(server_event(rng, turns, keys))
    client.hear(ev.ReplyDone(turn=turns["said"], reason="completed"))
    check(client)


def check(client: Client) -> None:
    ids = [frame["event_id"] for frame in client.received]
    assert len(set(ids)) == len(ids)
    done: set[str] = set()
    opened: dict[str, set[str]] = {}
    for frame in client.received:
        json.dumps(frame)
        name = frame["type"]
        if name == "response.created":
            opened[frame["response"]["id"]] = set()
        elif name == "response.output_item.added":
            opened[frame["response_id"]].add(frame["item"]["id"])
        elif name == "response.output_item.done":
            opened[frame["response_id"]].remove(frame["item"]["id"])
        elif name == "response.done":
            response_id = frame["response"]["id"]
            assert opened.pop(response_id) == set(), "an output item was left open"
            done.add(response_id)
        elif name.startswith("response."):
            assert frame["response_id"] not in done, f"{name} after response.done"
            assert frame["item_id"] in opened[frame["response_id"]]
    assert opened == {}
