"""A whole conversation of a session with a real endpoint: only ears and voice are played by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.voiceserver.session_bench import Bench
from voiceserver.config.schema import StageConfig
from voiceserver.errors import Refusal
from voiceserver.events import events as ev
from voiceserver.pool import LossReason, Stream
from voiceserver.pool.chat.client import chat_pool
from voiceserver.pool.remote_pool import RemotePool
from voiceserver.testing.chat_endpoint import Answer, ChatEndpoint, Script, Status, Tool
from voiceserver_workers.ipc.messages import Record

WEATHER = ev.Tool(
    "weather", "The weather in a city", {"type": "object", "properties": {"city": {"type": "string"}}}
)


class ChatBench(Bench):
    """The reply stage is a real pool; results come when the loop runs. A StreamOwner."""

    def __init__(self, pool: RemotePool) -> None:
        self.pool = pool
        self.stream: Stream | None = None
        self.changed = asyncio.Event()
        super().__init__()

    def pump(self) -> None:
        session = self.session
        if self.stream is not None and "reply" in session.streams_to_change()[0]:
            self.stream.close()
            self.stream = None
        super().pump()
        if "reply" in self.open_stages and self.stream is None:
            got = self.pool.try_open(self, session.stream_params("reply"))
            assert not isinstance(got, Refusal)
            self.stream = got
        if "reply" not in self.open_stages and self.stream is not None:
            self.stream.close()
            self.stream = None
        for request in self.sent.pop("reply", []):
            assert self.stream is not None
            assert self.stream.send(*request)  # type: ignore[arg-type]

    def on_result(self, stage: str, record: Record) -> None:
        self.session.receive_result(stage, record, self.now_ms)

    def on_stream_lost(self, stage: str, reason: LossReason) -> None:
        raise AssertionError("a remote engine loses no stream")

    def on_room(self, stage: str) -> None:
        self.session.retry(stage)

    def on_tick(self) -> None:
        self.pump()
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def hear_reply(self, sentences: int = 1) -> ev.ReplyDone:
        """Let a reply of so many sentences come, and speak it."""
        await self.until(lambda: len(self.all(ev.ReplyText)) >= sentences)
        reply = self.session.reply
        assert reply is not None
        await self.until(lambda: reply.is_finished_asking)
        for sentence in range(1, sentences + 1):
            self.speak(sentence, 100)
        done = self.one(ev.ReplyDone)
        self.pass_time(2_000)
        self.take()
        return done


@asynccontextmanager
async def conversation(*scripts: Script) -> AsyncIterator[tuple[ChatBench, ChatEndpoint]]:
    async with ChatEndpoint(*scripts) as endpoint:
        params: dict[str, Any] = {
            "base_url": endpoint.base_url,
            "keep_warm_ms": 0,
            "uses_proxy": False,
            "retries": 0,
        }
        pool = chat_pool("reply", StageConfig(engine="chat", params=params))
        await pool.start()
        try:
            yield ChatBench(pool), endpoint
        finally:
            await pool.stop()


def talk(endpoint: ChatEndpoint, index: int) -> list[tuple[str, str]]:
    messages = endpoint.requests[index].body["messages"]
    return [(one["role"], one.get("content") or "") for one in messages if one["role"] != "system"]


async def test_a_conversation_keeps_its_history() -> None:
    async with conversation(Answer(["Hello, ", "Ada. ", "How are you?"]), Answer(["Your name is Ada."])) as (
        bench,
        endpoint,
    ):
        bench.converse("my name is Ada")
        done = await bench.hear_reply(sentences=2)
        assert (done.reason, done.text) == ("completed", "Hello, Ada. How are you?")
        assert (done.input_tokens, done.output_tokens) == (7, 5)
        bench.converse("what is my name")
        assert (await bench.hear_reply()).text == "Your name is Ada."
        assert talk(endpoint, 0) == [("user", "my name is Ada")]
        assert talk(endpoint, 1) == [
            ("user", "my name is Ada"),
            ("assistant", "Hello, Ada. How are you?"),
            ("user", "what is my name"),
        ]
        assert endpoint.requests[0].body["messages"][0]["role"] == "system"


async def test_a_barge_in_ends_the_request_and_leaves_what_was_heard() -> None:
    long = Answer(["One two three four. ", "Five six."], hold_before=1)
    async with conversation(long, Answer(["Fine."])) as (bench, endpoint):
        bench.converse("count")
        await bench.until(lambda: bench.all(ev.ReplyText))
        bench.speak(1, 1_000, is_done=False)
        bench.pass_time(600)
        bench.say(512)
        assert bench.one(ev.ReplyDone).reason == "interrupted"
        assert bench.stream is None
        await endpoint.wait_for(lambda: endpoint.abandoned == 1)
        bench.pause()
        bench.take_stt()
        bench.take()
        bench.transcribe("stop it")
        assert (await bench.hear_reply()).text == "Fine."
        (_, counted), (role, heard), (_, stop) = talk(endpoint, 1)
        assert (counted, role, stop) == ("count", "assistant", "stop it")
        assert heard in ("One", "One two")


async def test_a_tool_call_goes_round() -> None:
    call = Answer(tools=[Tool("weather", ['{"city":', '"Oslo"}'], "call_7")], finish_reason="tool_calls")
    async with conversation(call, Answer(["It rains."])) as (bench, endpoint):
        bench.do(ev.SessionUpdate(tools=(WEATHER,)))
        bench.converse("how is the weather in Oslo")
        await bench.until(lambda: bench.all(ev.ReplyDone))
        (told,) = [event for event in bench.all(ev.ReplyToolCall) if event.is_done]
        assert (told.call_id, told.name, json.loads(told.arguments)) == (
            "call_7",
            "weather",
            {"city": "Oslo"},
        )
        bench.take()
        bench.do(ev.ItemAppend(ev.HistoryItem(role="tool", call_id="call_7", text="rain, 4 degrees")))
        bench.do(ev.ReplyCreate())
        assert (await bench.hear_reply()).text == "It rains."
        assert endpoint.requests[0].body["tools"][0]["function"]["name"] == "weather"
        user, asked, answered = endpoint.requests[1].body["messages"][1:]
        assert user["content"] == "how is the weather in Oslo"
        assert asked["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Oslo"}'}
        assert answered == {"role": "tool", "content": "rain, 4 degrees", "tool_call_id": "call_7"}


async def test_a_slow_endpoint_is_announced_while_it_is_waited_for() -> None:
    slow = Answer(["At last."], hold_before=0)
    async with conversation(slow) as (bench, endpoint):
        bench.converse("hello")
        await endpoint.wait_for(lambda: len(endpoint.requests) == 1)
        bench.pass_time(1_500)
        busy = bench.all(ev.ServerBusy)
        assert [(event.stage, event.reason) for event in busy][:1] == [("reply", "slow")]
        slow.release.set()
        assert (await bench.hear_reply()).text == "At last."


async def test_a_failing_endpoint_ends_the_turn_and_not_the_session() -> None:
    async with conversation(Status(401), Answer(["Better."])) as (bench, _):
        bench.converse("hello")
        await bench.until(lambda: bench.all(ev.ReplyDone))
        done = bench.one(ev.ReplyDone)
        assert (done.reason, done.code) == ("failed", "reply_rejected")
        bench.take()
        bench.converse("still there")
        assert (await bench.hear_reply()).text == "Better."
