"""Whole connections, socket to session, under callers who say anything: nothing is met but protocol errors.

A caller mixes what its protocol has with spoiled copies of it, between answers, losses and refusals of the stages and the
passing of time. ``fault`` in the log would be a bug that a caller can reach. A failing seed is in the name of the test.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from websockets.frames import Opcode

from tests.voiceserver.shell import AnsweredStream, Line, Shell, masked, upgrade
from voiceserver.config.schema import BackpressureConfig, SessionConfig
from voiceserver.errors import Refusal
from voiceserver_workers.ipc.messages import RequestKind, ResultKind, pack_speech

SEEDS = range(40)
STEPS = 120
STAGES = ("vad", "stt", "reply", "tts")
ANYTHING: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 1e308, "", "x", "\x00", "ÿ", "auto", [], [[]], {}, {"a": None}, "A" * 5_000,
)  # fmt: skip

ReplayBuffer = tuple[Opcode, bytes]
Speak = Callable[[random.Random, Line], dict[str, Any] | bytes]


def native(rng: random.Random, line: Line) -> dict[str, Any] | bytes:
    item = {"role": rng.choice(("user", "assistant", "tool")), "text": "hello", "key": rng.choice("abc")}
    return rng.choice(
        (
            bytes(2 * rng.choice((0, 160, 480, 8_000))),
            bytes(rng.randrange(9)),
            {"type": "session.update", "turn_detection": rng.choice((None, {}, {"threshold": 0.9}))},
            {"type": "session.update", "speaks": rng.random() < 0.5, "voice": "x", "audible_busy": True},
            {"type": "input.commit", "key": "k"},
            {"type": "input.clear"},
            {"type": "item.append", "item": item, "after_key": rng.choice(("", "root", "a"))},
            {"type": "item.delete", "key": rng.choice("abc")},
            {"type": "reply.create", "key": rng.choice("pq"), "is_out_of_band": rng.random() < 0.5},
            {"type": "reply.cancel", "key": rng.choice(("", "p", "q"))},
            {
                "type": "reply.played",
                "turn": rng.randrange(5),
                "played_ms": 20.0,
                "is_final": rng.random() < 0.5,
            },
            {"type": "input.digit", "digit": "5"},
        )
    )


def realtime(rng: random.Random, line: Line) -> dict[str, Any] | bytes:
    items = [one["item"]["id"] for one in line.events() if one["type"] == "conversation.item.added"]
    item_id = rng.choice([*items, "none"])
    content = [{"type": "input_text", "text": "hello"}]
    detection = rng.choice((None, {"type": "server_vad"}, {"type": "semantic_vad", "eagerness": "low"}))
    audio = base64.b64encode(bytes(rng.choice((0, 3, 4_800, 24_000)))).decode()
    sides = {
        "input": {"turn_detection": detection, "format": {"type": rng.choice(("audio/pcm", "audio/pcmu"))}}
    }
    return rng.choice(
        (
            {"type": "session.update", "session": {"type": "realtime", "audio": sides}},
            {
                "type": "session.update",
                "session": {"output_modalities": ["text"], "max_output_tokens": "inf"},
            },
            {"type": "input_audio_buffer.append", "audio": audio},
            {"type": "input_audio_buffer.commit"},
            {"type": "input_audio_buffer.clear"},
            {
                "type": "conversation.item.create",
                "item": {"type": "message", "role": "user", "content": content},
            },
            {"type": "conversation.item.retrieve", "item_id": item_id},
            {"type": "conversation.item.delete", "item_id": item_id},
            {
                "type": "conversation.item.truncate",
                "item_id": item_id,
                "content_index": 0,
                "audio_end_ms": rng.choice((0, 9)),
            },
            {"type": "response.create", "response": {"conversation": rng.choice(("none", "auto"))}},
            {"type": "response.cancel"},
        )
    )


def telephone(rng: random.Random, line: Line) -> dict[str, Any] | bytes:
    names = [one["mark"]["name"] for one in line.events() if one["event"] == "mark"]
    sid = {"streamSid": "MZ1"}
    media = {"payload": base64.b64encode(bytes(rng.choice((0, 160, 1_600)))).decode(), "track": "inbound"}
    return rng.choice(
        (
            {"event": "connected", "protocol": "Call"},
            {"event": "start", **sid, "start": {**sid, "customParameters": {"voice": "x"}}},
            {"event": "media", **sid, "media": media},
            {"event": "media", **sid, "media": media},
            {"event": "mark", **sid, "mark": {"name": rng.choice([*names, "none"])}},
            {"event": "dtmf", **sid, "dtmf": {"digit": "#"}},
        )
    )


def transcription(rng: random.Random, line: Line) -> dict[str, Any] | bytes:
    options = {
        "uid": "u",
        "language": rng.choice((None, "en")),
        "audio_format": rng.choice(("float32", "int16")),
    }
    noise = rng.randbytes(4 * rng.choice((1, 512, 4_096)))
    return rng.choice((options, noise, noise, bytes(4_096), rng.randbytes(rng.randrange(9))))


WIRES: dict[str, Speak] = {
    "/v1/stream": native,
    "/v1/realtime": realtime,
    "/v1/realtime?intent=transcription&vendor_events=1": realtime,
    "/v1/twilio": telephone,
    "/v1/whisperlive": transcription,
}


def spoiled(rng: random.Random, value: Any) -> Any:
    """``value`` with one thing in it replaced, dropped, or added."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        rest = {key: one for key, one in value.items() if key != name}
        kind = rng.randrange(4)
        if kind == 0:
            return rest
        if kind == 1:
            return {**value, rng.choice(("type", "event", "x", "session", "item")): rng.choice(ANYTHING)}
        return {**value, name: spoiled(rng, value[name])}
    return rng.choice(ANYTHING)


def message(rng: random.Random, said: dict[str, Any] | bytes) -> ReplayBuffer:
    chance = rng.random()
    if isinstance(said, bytes):
        return Opcode.BINARY, said
    if chance < 0.3:
        said = spoiled(rng, said)
    data = json.dumps(said).encode()
    if chance > 0.95:
        data = data[: rng.randrange(len(data) + 1)]
    return (Opcode.BINARY if chance > 0.99 else Opcode.TEXT), data


def answer(rng: random.Random, shell: Shell) -> None:
    """One stage says something that it might: right, wrong, late, or for a turn that is over."""
    streams = [one for pool in shell.pools.values() for one in pool.streams if not one.is_closed]
    if not streams:
        return
    stream = rng.choice(streams)
    _, turn, seq, _ = rng.choice(stream.sent) if stream.sent else (RequestKind.DATA, 0, 0, b"")
    failed = (ResultKind.FAILED, json.dumps({"code": "engine_failed", "message": "no"}).encode())
    speech = pack_speech(max(seq / 16.0 - 640.0, 0.0), 32.0, [rng.choice((0.0, 1.0))] * 20)
    tool = json.dumps({"index": 0, "call_id": "c", "name": "f", "arguments": "{}"}).encode()
    of_stage: dict[str, tuple[tuple[ResultKind, bytes], ...]] = {
        "vad": ((ResultKind.SPEECH, speech), (ResultKind.CONSUMED, b""), failed),
        "stt": (
            (ResultKind.TEXT, b"go"),
            (ResultKind.FINAL, b"go on"),
            (ResultKind.CONSUMED, b""),
            failed,
        ),
        "reply": ((ResultKind.TEXT, b"Well."), (ResultKind.TOOL, tool), (ResultKind.DONE, b""), failed),
        "tts": ((ResultKind.AUDIO, bytes(960)), (ResultKind.DONE, b""), failed),
    }
    if rng.random() < 0.05:
        lose(stream)
        return
    result, payload = rng.choice(of_stage[stream.pool.stage])
    stream.answer(result, turn, seq, payload)


def lose(stream: AnsweredStream) -> None:
    stream.is_closed = True
    stream.owner.on_stream_lost(stream.pool.stage, "worker_lost")
    stream.owner.on_tick()


@pytest.mark.parametrize("path", WIRES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_caller_who_says_anything_meets_protocol_errors_only(path: str, seed: int) -> None:
    rng = random.Random(f"{path} {seed}")
    session = SessionConfig(
        filler="One moment.|tone" if seed % 2 else "", filler_after_ms=40, preemptive=seed % 3 == 0
    )
    shell = Shell(*STAGES, limits=BackpressureConfig(max_backlog_ms=2_000), session=session)
    line = shell.call(upgrade(path))
    for _ in range(STEPS):
        if line.close_code is not None:
            break
        chance = rng.random()
        if chance < 0.5:
            opcode, data = message(rng, WIRES[path](rng, line))
            line.receive(masked(opcode, data))
        elif chance < 0.85:
            answer(rng, shell)
        elif chance < 0.9:
            pool = shell.pools[rng.choice(STAGES)]
            pool.refusal = rng.choice((None, None, Refusal("at_capacity", 100.0, pool.stage)))
        else:
            shell.loop.advance(rng.choice((1, 20, 300, 3_000)))
        shell.loop.settle()
    faults = [entry for entry in shell.logged if "fault" in str(entry.get("event"))]
    assert faults == []
    assert line.close_code in (None, 1000, 1003)
    assert isinstance(line.events(), list)  # every frame that was sent is whole, every text is JSON
