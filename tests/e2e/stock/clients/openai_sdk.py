"""The ``openai`` package's own realtime client; only ``base_url`` is not what its documentation shows."""

from __future__ import annotations

import base64
import json
import time

from openai import AsyncOpenAI
from scenarios import FULL_URL, STORY, URL, WEATHER, Facts, has_begun, play, spoken

TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def connect(url: str = URL):
    client = AsyncOpenAI(api_key="sk-test", base_url=f"{url}/v1", max_retries=0)
    return client.realtime.connect(model="gpt-realtime")


async def say(connection, text: str) -> None:
    content = [{"type": "input_text", "text": text}]
    await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
    await connection.response.create()


async def send_speech(connection) -> None:
    async for chunk in spoken():
        await connection.input_audio_buffer.append(audio=base64.b64encode(chunk).decode())


async def answer(connection, facts: dict[str, object]) -> dict[str, object]:
    """Collect events up to the end of a response."""
    facts.setdefault("audio_ms", 0.0)
    order = facts.setdefault("events", [])
    async for event in connection:
        if not order or order[-1] != event.type:
            order.append(event.type)
        if event.type == "response.output_audio.delta":
            facts["audio_ms"] += len(base64.b64decode(event.delta)) / 48
        elif event.type == "conversation.item.input_audio_transcription.completed":
            facts["transcript"] = event.transcript
        elif event.type == "response.output_audio_transcript.done":
            facts["reply"] = event.transcript
        elif event.type == "response.output_text.done":
            facts["reply"] = event.text
        elif event.type == "error":
            facts["error"] = event.error.code
        elif event.type == "response.done":
            facts["status"] = event.response.status
            facts["tokens"] = event.response.usage.total_tokens if event.response.usage else 0
            return facts
    return facts


async def voice() -> Facts:
    async with connect() as connection:
        await connection.session.update(
            session={"type": "realtime", "instructions": "Be brief.", "audio": {"output": {"voice": "marin"}}}
        )
        await send_speech(connection)
        return await answer(connection, {})


async def text() -> Facts:
    async with connect() as connection:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        await say(connection, "good morning")
        return await answer(connection, {})


async def barge_in() -> Facts:
    async with connect() as connection:
        await connection.session.update(session={"type": "realtime"})
        await say(connection, STORY)
        item_id = ""
        async for event in connection:
            if event.type == "response.output_audio.delta":
                item_id = event.item_id
                break
        await send_speech(connection)
        first = await answer(connection, {})
        await connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=20)
        second = await answer(connection, {})
        return {
            "interrupted": first["status"],
            "after_done": [name for name in second["events"] if name == "error"],
            "truncated": "conversation.item.truncated" in second["events"],
            **second,
        }


async def function() -> Facts:
    async with connect() as connection:
        await connection.session.update(session={"type": "realtime", "tools": [TOOL]})
        await say(connection, WEATHER)
        call = None
        pieces = ""
        async for event in connection:
            if event.type == "response.function_call_arguments.delta":
                pieces += event.delta
            elif event.type == "response.function_call_arguments.done":
                call = event
            elif event.type == "response.done":
                break
        assert call is not None
        assert pieces == call.arguments
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "rainy"}
        await connection.conversation.item.create(item=output)
        await connection.response.create()
        facts = await answer(connection, {})
        return {"name": call.name, "arguments": json.loads(call.arguments), **facts}


async def error() -> Facts:
    async with connect() as connection:
        await connection.send({"type": "no.such.event", "event_id": "mine"})
        await connection.response.cancel()
        errors = []
        async for event in connection:
            if event.type == "error":
                errors.append((event.error.type, event.error.code, event.error.event_id))
                if len(errors) == 2:
                    break
        await say(connection, "good morning")
        facts = await answer(connection, {})
        return {"errors": errors, **facts}


async def busy() -> Facts:
    began = time.monotonic()
    try:
        async with connect(FULL_URL) as connection:
            await connection.recv()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return {"error": said, "seconds": time.monotonic() - began}
    raise AssertionError("let in")


async def drain() -> Facts:
    async with connect() as connection:
        await connection.session.update(session={"type": "realtime"})
        await say(connection, STORY)
        async for event in connection:
            if event.type == "response.output_audio.delta":
                break
        has_begun()
        facts = await answer(connection, {})
        try:
            async for _ in connection:
                pass
        except Exception as error:
            facts["end"] = str(error)
        return facts


if __name__ == "__main__":
    play(voice, text, barge_in, function, error, busy, drain)
