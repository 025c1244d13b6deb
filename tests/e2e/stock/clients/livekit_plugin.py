"""``livekit-plugins-openai``: RealtimeModel without a LiveKit server; only ``base_url`` is not what its documentation shows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

from livekit import rtc
from livekit.agents import APIConnectionError
from livekit.agents import llm as lk
from livekit.agents.types import APIConnectOptions
from livekit.plugins.openai.realtime import RealtimeModel
from scenarios import FULL_URL, RATE_HZ, STORY, URL, WEATHER, Facts, has_begun, play, spoken


@lk.function_tool
async def get_weather(city: str) -> str:
    """The weather in a city."""
    return "rainy"


class Talk:
    def __init__(self, session) -> None:
        self.session = session
        self.generations: asyncio.Queue[lk.GenerationCreatedEvent] = asyncio.Queue()
        self.transcripts: asyncio.Queue[str] = asyncio.Queue()
        self.errors: asyncio.Queue[Exception] = asyncio.Queue()
        self.started = asyncio.Event()
        session.on("generation_created", self.generations.put_nowait)
        session.on("input_audio_transcription_completed", self._on_transcript)
        session.on("error", lambda event: self.errors.put_nowait(event.error))
        session.on("input_speech_started", lambda event: self.started.set())

    def _on_transcript(self, event) -> None:
        if event.is_final:
            self.transcripts.put_nowait(event.transcript)

    async def say(self) -> None:
        async for chunk in spoken():
            self.session.push_audio(rtc.AudioFrame(chunk, RATE_HZ, 1, len(chunk) // 2))

    async def ask(self, text: str) -> None:
        context = self.session.chat_ctx.copy()
        context.add_message(role="user", content=text)
        await self.session.update_chat_ctx(context)

    async def answer(self, generation) -> dict[str, object]:
        """All of a response."""
        facts: dict[str, object] = {"audio_ms": 0.0, "reply": ""}

        async def read_audio(message) -> None:
            async for frame in message.audio_stream:
                facts["audio_ms"] += frame.samples_per_channel * 1000 / frame.sample_rate

        async def read_messages() -> None:
            async for message in generation.message_stream:
                facts["modalities"] = await message.modalities
                audio = asyncio.create_task(read_audio(message))
                async for piece in message.text_stream:
                    facts["reply"] += piece
                await audio

        async def read_calls() -> None:
            async for call in generation.function_stream:
                facts.update(name=call.name, arguments=json.loads(call.arguments), call_id=call.call_id)

        await asyncio.gather(read_messages(), read_calls())
        return facts


@contextlib.asynccontextmanager
async def talk(url: str = URL, **options):
    model = RealtimeModel(base_url=f"{url}/v1", api_key="sk-test", **options)
    session = model.session()
    try:
        yield Talk(session)
    finally:
        await session.aclose()
        await model.aclose()


async def voice() -> Facts:
    async with talk() as call:
        await call.say()
        facts = await call.answer(await call.generations.get())
        return {"transcript": await call.transcripts.get(), **facts}


async def text() -> Facts:
    async with talk(modalities=["text"]) as call:
        await call.ask("good morning")
        return await call.answer(await call.session.generate_reply())


async def barge_in() -> Facts:
    async with talk() as call:
        await call.ask(STORY)
        first = await call.session.generate_reply()
        await call.generations.get()
        message = await anext(aiter(first.message_stream))
        await anext(aiter(message.audio_stream))
        await call.say()
        await call.started.wait()
        call.session.truncate(message_id=message.message_id, modalities=["audio"], audio_end_ms=20)
        facts = await call.answer(await call.generations.get())
        return {
            "interrupted": call.started.is_set(),
            "transcript": await call.transcripts.get(),
            "errors": [str(call.errors.get_nowait()) for _ in range(call.errors.qsize())],
            **facts,
        }


async def function() -> Facts:
    async with talk() as call:
        await call.session.update_tools([get_weather])
        await call.ask(WEATHER)
        called = await call.answer(await call.session.generate_reply())
        output = lk.FunctionCallOutput(
            call_id=called["call_id"], name=called["name"], output="rainy", is_error=False
        )
        context = call.session.chat_ctx.copy()
        context.insert(output)
        await call.session.update_chat_ctx(context)
        answered = await call.answer(await call.session.generate_reply())
        return {**called, **answered}


async def error() -> Facts:
    async with talk() as call:
        call.session.send_event({"type": "conversation.item.delete", "item_id": "none"})
        said = str(await call.errors.get())
        await call.ask("good morning")
        return {"errors": [said], **await call.answer(await call.session.generate_reply())}


async def busy() -> Facts:
    began = time.monotonic()
    once = APIConnectOptions(max_retry=1, retry_interval=0.1)
    try:
        async with talk(FULL_URL, conn_options=once) as call:
            await call.errors.get()
            await call.errors.get()
    except APIConnectionError as error:
        return {"error": str(error), "seconds": time.monotonic() - began}
    raise AssertionError("let in")


async def drain() -> Facts:
    async with talk() as call:
        await call.ask(STORY)
        generation = await call.session.generate_reply()
        reading = asyncio.create_task(call.answer(generation))
        has_begun()  # the response has a message, so there is audio
        facts = await reading
        return {**facts, "errors": [str(call.errors.get_nowait()) for _ in range(call.errors.qsize())]}


if __name__ == "__main__":
    play(voice, text, barge_in, function, error, busy, drain)
