"""``pipecat``: OpenAIRealtimeLLMService in a pipeline; only ``base_url`` is not what its documentation shows."""

from __future__ import annotations

import asyncio
import contextlib
import time

from loguru import logger
from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
from pipecat.adapters.llm.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import (
    BotStoppedSpeakingFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMRunFrame,
    LLMTextFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    UserStartedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime.events import ConversationItemDeleteEvent, SessionProperties
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner
from scenarios import FULL_URL, RATE_HZ, STORY, URL, WEATHER, Facts, has_begun, play, spoken

logger.remove()
WEATHER_TOOL = FunctionSchema(
    name="get_weather",
    description="The weather in a city.",
    properties={"city": {"type": "string"}},
    required=["city"],
)


class Ear(FrameProcessor):
    """Keeps what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.changed = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        self.changed.set()
        await self.push_frame(frame, direction)

    def all(self, kind):
        return [frame for frame in self.frames if isinstance(frame, kind)]

    async def until(self, kind, count: int = 1) -> None:
        while len(self.all(kind)) < count:
            self.changed.clear()
            await self.changed.wait()

    def facts(self) -> dict[str, object]:
        """Of the last response."""
        said = self.all(TranscriptionFrame)
        ends = [at for at, frame in enumerate(self.frames) if isinstance(frame, LLMFullResponseEndFrame)]
        begin = ends[-2] if len(ends) > 1 else 0
        last = self.frames[begin:]
        return {
            "transcript": said[-1].text if said else None,
            "reply": "".join(frame.text for frame in last if isinstance(frame, LLMTextFrame)).strip(),
            "audio_ms": sum(len(one.audio) for one in last if isinstance(one, TTSAudioRawFrame)) / 48,
        }


class Talk:
    def __init__(self, worker: PipelineWorker, llm: OpenAIRealtimeLLMService, ears: tuple[Ear, Ear]) -> None:
        self.worker, self.llm = worker, llm
        self.before, self.after = ears

    async def say(self) -> None:
        async for chunk in spoken():
            await self.worker.queue_frame(
                InputAudioRawFrame(audio=chunk, sample_rate=RATE_HZ, num_channels=1)
            )


@contextlib.asynccontextmanager
async def talk(
    said: str = "", url: str = URL, tools=None, properties: SessionProperties | None = None, handlers=()
):
    llm = OpenAIRealtimeLLMService(
        api_key="sk-test",
        base_url=url.replace("http", "ws", 1) + "/v1/realtime",
        settings=OpenAIRealtimeLLMService.Settings(session_properties=properties or SessionProperties()),
    )
    for name, handler in handlers:
        llm.register_function(name, handler)
    context = LLMContext(
        [{"role": "user", "content": said}] if said else [], **({"tools": tools} if tools else {})
    )
    user, assistant = LLMContextAggregatorPair(context)
    before, after = Ear(), Ear()
    pipeline = Pipeline([user, before, llm, after, assistant])
    params = PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ)
    worker = PipelineWorker(pipeline, params=params)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        if said:
            await worker.queue_frame(LLMRunFrame())
        yield Talk(worker, llm, (before, after))
        await worker.queue_frame(EndFrame())
    finally:
        await asyncio.wait({running}, timeout=5)
        running.cancel()


async def voice() -> Facts:
    async with talk() as call:
        await call.worker.queue_frame(LLMRunFrame())  # sets the conversation up, as in its examples
        await call.after.until(LLMFullResponseEndFrame)
        await call.say()
        await call.after.until(LLMFullResponseEndFrame, 2)
        await call.before.until(TranscriptionFrame)
        return {**call.after.facts(), "transcript": call.before.facts()["transcript"]}


async def text() -> Facts:
    async with talk("good morning", properties=SessionProperties(output_modalities=["text"])) as call:
        await call.after.until(LLMFullResponseEndFrame)
        return call.after.facts()


async def barge_in() -> Facts:
    async with talk(STORY) as call:
        await call.after.until(TTSAudioRawFrame)
        await call.say()
        await call.before.until(TranscriptionFrame)
        await call.after.until(UserStartedSpeakingFrame)
        while not str(call.after.facts()["reply"]).startswith("You said"):
            call.after.changed.clear()
            await call.after.changed.wait()
        return {
            "interrupted": bool(call.after.all(InterruptionFrame)),
            **call.after.facts(),
            "transcript": call.before.facts()["transcript"],
            "errors": [one.error for one in call.before.all(ErrorFrame)],
        }


async def function() -> Facts:
    called: dict[str, object] = {}

    async def get_weather(params) -> None:
        called.update(name=params.function_name, arguments=dict(params.arguments))
        await params.result_callback({"weather": "rainy"})

    tools = ToolsSchema(standard_tools=[WEATHER_TOOL])
    async with talk(WEATHER, tools=tools, handlers=[("get_weather", get_weather)]) as call:
        await call.after.until(LLMFullResponseEndFrame, 2)  # of the call, of the answer
        return {**called, **call.after.facts()}


async def error() -> Facts:
    """Any ``error`` that it does not know ends its connection: what matters is that it is told, and that the next one works."""
    async with talk("good morning") as call:
        await call.after.until(LLMFullResponseEndFrame)
        await call.worker.queue_frame(
            BotStoppedSpeakingFrame()
        )  # as an output transport says when all was played
        await call.after.until(BotStoppedSpeakingFrame)
        await call.llm.send_client_event(ConversationItemDeleteEvent(item_id="none"))
        await call.before.until(ErrorFrame)
        said = [one.error for one in call.before.all(ErrorFrame)]
        before = len(call.after.all(LLMFullResponseEndFrame))
        await call.llm.reset_conversation()
        await call.say()
        await call.after.until(LLMFullResponseEndFrame, before + 1)
        return {"errors": said, **call.after.facts()}


async def busy() -> Facts:
    began = time.monotonic()
    async with talk("good morning", url=FULL_URL) as call:
        await call.before.until(ErrorFrame)
        return {"error": call.before.all(ErrorFrame)[0].error, "seconds": time.monotonic() - began}


async def drain() -> Facts:
    async with talk(STORY) as call:
        await call.after.until(TTSAudioRawFrame)
        has_begun()
        await call.after.until(LLMFullResponseEndFrame)
        return {**call.after.facts(), "errors": [one.error for one in call.before.all(ErrorFrame)]}


if __name__ == "__main__":
    play(voice, text, barge_in, function, error, busy, drain)
