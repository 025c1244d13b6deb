"""What the stock clients talk to: the server with its real engines, and a chat endpoint that answers by rule."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.e2e.serving import STEADY
from voiceserver.testing.chat_endpoint import Answer, ChatEndpoint, Request, Script, Tool

LATE = ("Once upon a time, there was a server. ", "It was never silent.")


def script_for(body: dict[str, Any]) -> Answer:
    """A story that never ends, a tool call, what a tool has said, or what was asked."""
    last = body["messages"][-1]
    said = str(last.get("content") or "")
    if last["role"] == "tool":
        return Answer([f"It is {said} there."])
    if "story" in said:
        return Answer(
            ["Once upon a time, there was a server. ", "It was never silent. ", "And"], hold_before=2
        )
    if body.get("tools") and "weather" in said:
        return Answer(tools=[Tool("get_weather", ('{"city":', '"Paris"}'))], finish_reason="tool_calls")
    return Answer([f"You said {said}."])


class RuledEndpoint(ChatEndpoint):
    async def _play(
        self, script: Script, request: Request, reader: StreamReader, writer: StreamWriter
    ) -> bool:
        return await super()._play(script_for(request.body), request, reader, writer)


@contextlib.contextmanager
def answering() -> Iterator[RuledEndpoint]:
    endpoint = RuledEndpoint(Answer())
    with _running(endpoint):
        yield endpoint


@contextlib.contextmanager
def _running(endpoint: ChatEndpoint) -> Iterator[asyncio.AbstractEventLoop]:
    """The endpoint on a loop in a thread of its own, because tests of other processes have no loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    run(endpoint.__aenter__())
    try:
        yield loop
    finally:
        run(endpoint.__aexit__())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextlib.contextmanager
def waiting() -> Iterator[tuple[ChatEndpoint, Callable[[], object]]]:
    """An endpoint that answers when the second value is called."""
    answer = Answer(LATE, hold_before=0)
    endpoint = ChatEndpoint(answer)
    with _running(endpoint) as loop:
        yield endpoint, partial(loop.call_soon_threadsafe, answer.release.set)


def settings_for(endpoint: ChatEndpoint) -> tuple[str, ...]:
    return (
        *STEADY,
        "session.false_interruption_ms=60000",  # a slow machine's late transcript is not a silent caller
        "stages.reply.engine=chat",
        f"stages.reply.params.base_url={endpoint.base_url}",
        "stages.reply.params.model=rules",
        "stages.reply.params.stall_timeout_ms=60000",
        "stages.reply.params.uses_proxy=false",
        "server.log_format=json",
    )
