"""``openai-agents``: RealtimeRunner with its default model; only ``url`` is not what its documentation shows."""

from __future__ import annotations

import time

from agents import function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner
from agents.realtime.model_inputs import RealtimeModelSendRawMessage
from scenarios import FULL_URL, STORY, URL, WEATHER, Facts, has_begun, play, spoken


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"rainy in {city}"


async def connect(url: str = URL, tools=(), **settings):
    agent = RealtimeAgent(name="Assistant", instructions="Be brief.", tools=list(tools))
    runner = RealtimeRunner(agent, config={"model_settings": settings, "tracing_disabled": True})
    socket_url = url.replace("http", "ws", 1) + "/v1/realtime?model=gpt-realtime"
    return await runner.run(model_config={"api_key": "sk-test", "url": socket_url})


def read_history(history, facts: dict[str, object]) -> None:
    for item in history:
        if item.type != "message":
            continue
        for part in item.content:
            said = getattr(part, "transcript", None) or getattr(part, "text", None)
            if not said:
                continue
            if item.role == "assistant":
                facts["reply"] = said
            elif part.type == "input_audio":
                facts["transcript"] = said


async def answer(session, facts: dict[str, object], ends: int = 1) -> dict[str, object]:
    """Up to the end of ``ends`` answers."""
    facts.setdefault("audio_ms", 0.0)
    async for event in session:
        if event.type == "audio":
            facts["audio_ms"] += len(event.audio.data) / 48
        elif event.type == "history_updated":
            read_history(event.history, facts)
        elif event.type == "tool_end":
            facts["name"], facts["output"] = event.tool.name, event.output
        elif event.type == "audio_interrupted":
            facts["interrupted"] = True
        elif event.type == "error":
            facts["error"] = str(event.error)
        elif event.type == "agent_end":
            ends -= 1
            if not ends:
                return facts
    raise AssertionError(f"the session ended: {facts}")


async def voice() -> Facts:
    async with await connect() as session:
        async for chunk in spoken():
            await session.send_audio(chunk)
        return await answer(session, {})


async def text() -> Facts:
    async with await connect(modalities=["text"]) as session:
        await session.send_message("good morning")
        return await answer(session, {})


async def barge_in() -> Facts:
    async with await connect() as session:
        await session.send_message(STORY)
        async for event in session:
            if event.type == "audio":
                break
        async for chunk in spoken():
            await session.send_audio(chunk)
        return await answer(session, {}, ends=2)


async def function() -> Facts:
    async with await connect(tools=[get_weather]) as session:
        await session.send_message(WEATHER)
        return await answer(session, {}, ends=2)


async def error() -> Facts:
    async with await connect() as session:
        wrong = {"type": "conversation.item.delete", "other_data": {"item_id": "none"}}
        await session.model.send_event(RealtimeModelSendRawMessage(message=wrong))
        async for event in session:
            if event.type == "error":
                break
        said = str(event.error)
        await session.send_message("good morning")
        return {"errors": [said], **await answer(session, {})}


async def busy() -> Facts:
    began = time.monotonic()
    try:
        async with await connect(FULL_URL) as session:
            await session.send_message("hello")
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - began}
    raise AssertionError("let in")


async def drain() -> Facts:
    async with await connect() as session:
        await session.send_message(STORY)
        async for event in session:
            if event.type == "audio":
                break
        has_begun()
        return await answer(session, {})


if __name__ == "__main__":
    play(voice, text, barge_in, function, error, busy, drain)
