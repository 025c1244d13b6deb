"""A real chat-completions endpoint on a local port, for tests: HTTP/1.1 with keep-alive, and answers by script.

Each request takes the next script, and the last one serves all requests after it. Only ``Trickle`` waits for time: a slow
answer waits for its ``release``, and one that hangs waits until the client leaves.

    async with ChatEndpoint(Answer(["Hello", " there."])) as endpoint:
        ... endpoint.base_url ... endpoint.requests[0].body["messages"]

``python -m voiceserver.testing.chat_endpoint [PORT]`` serves an answer that repeats what it was asked, for trying things by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyio.from_thread import start_blocking_portal


@dataclass
class Tool:
    """A tool call; its arguments are streamed in the given pieces."""

    name: str
    arguments: Sequence[str]
    call_id: str = "call_1"


@dataclass
class Answer:
    """Deltas of text, then tool calls, then the finish reason, usage (if asked for) and ``[DONE]``."""

    deltas: Sequence[str] | Callable[[dict[str, Any]], Sequence[str]] = ()
    tools: Sequence[Tool] = ()
    finish_reason: str = "stop"
    usage: tuple[int, int] = (7, 5)
    # The delta that waits for ``release``.
    hold_before: int | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)
    has_done: bool = True
    streams: bool = True
    end: str = "\n\n"


@dataclass
class Status:
    """An HTTP error."""

    status: int
    body: str = '{"error": {"message": "secret detail of the endpoint", "type": "x"}}'
    retry_after: str = ""


@dataclass
class Silent:
    """Takes the request and never answers."""


@dataclass
class Broken:
    """Sends these deltas, then drops the connection."""

    deltas: Sequence[str] = ()


@dataclass
class Raw:
    """Sends this as the body of a 200 with this content type."""

    body: bytes
    content_type: str = "text/event-stream"


@dataclass
class Trickle:
    """Sends these parts of the body, one every ``every_s``, then ``beat`` until the client leaves; without a beat it ends."""

    parts: Sequence[str]
    beat: str = ""
    every_s: float = 0.02


Script = Answer | Status | Silent | Broken | Raw | Trickle


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]  # empty where it is no JSON
    raw: bytes = b""


class ChatEndpoint:
    """``requests``: calls of chat completions; ``probes``: other GETs; ``connections``: accepted so far; ``abandoned``:
    answers whose client left before the end. ``models``: the HTTP status of the list of models."""

    def __init__(self, *scripts: Script, port: int = 0, models: int = 200) -> None:
        self.scripts: list[Any] = list(scripts)
        self.requests: list[Request] = []
        self.probes: list[str] = []
        self.connections = 0
        self.abandoned = 0
        self._port = port
        self._models = models
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    async def __aenter__(self) -> ChatEndpoint:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until ``condition`` holds; it is looked at after each change of the lists and counters above."""
        async with self._changed:
            await self._changed.wait_for(condition)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            while (request := await _read_request(reader)) is not None:
                if request.method == "GET":
                    self.probes.append(request.path)
                    _write(writer, self._models, "application/json", b'{"data": []}')
                else:
                    self.requests.append(request)
                    await self._notify()
                    script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                    if not await self._play(script, request, reader, writer):
                        return
                await writer.drain()
                await self._notify()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _play(
        self, script: Any, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """False: the connection is over."""
        if isinstance(script, Status):
            extra = f"Retry-After: {script.retry_after}\r\n" if script.retry_after else ""
            _write(writer, script.status, "application/json", script.body.encode(), extra)
            return True
        if isinstance(script, Raw):
            _write(writer, 200, script.content_type, script.body)
            return True
        if isinstance(script, Trickle):
            return await _trickle(script, writer)
        if isinstance(script, Silent):
            return await self._wait_until_left(reader)
        if isinstance(script, Broken):
            _begin_stream(writer)
            for delta in script.deltas:
                _write_chunk(writer, _event(_text(delta)))
            await writer.drain()
            return False
        if not script.streams:
            _write(writer, 200, "application/json", json.dumps(_whole(script, request)).encode())
            return True
        return await self._stream(script, request, reader, writer)

    async def _stream(
        self, script: Answer, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        _begin_stream(writer)
        events = _events(script, request)
        for index, event in enumerate(events):
            if index == script.hold_before:
                await writer.drain()
                if not await self._hold(script.release, reader):
                    return False
            _write_chunk(writer, f"data: {event}{script.end}")
        writer.write(b"0\r\n\r\n")
        return True

    async def _hold(self, until: asyncio.Event, reader: asyncio.StreamReader) -> bool:
        """False: the client left before."""
        release = asyncio.ensure_future(until.wait())
        gone = asyncio.ensure_future(self._wait_until_left(reader))
        done, waiting = await asyncio.wait({release, gone}, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return gone not in done

    async def _wait_until_left(self, reader: asyncio.StreamReader) -> bool:
        await reader.read(1)
        self.abandoned += 1
        await self._notify()
        return False


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    is_form = headers.get("content-type", "").startswith("multipart/")
    return Request(method, path, headers, json.loads(body) if body and not is_form else {}, body)


def _write(
    writer: asyncio.StreamWriter, status: int, content_type: str, body: bytes, extra: str = ""
) -> None:
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    )
    writer.write(head.encode() + body)


def _begin_stream(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")


def _write_chunk(writer: asyncio.StreamWriter, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def _trickle(script: Trickle, writer: asyncio.StreamWriter) -> bool:
    _begin_stream(writer)
    for part in script.parts:
        _write_chunk(writer, part)
        await writer.drain()
        await asyncio.sleep(script.every_s)
    while script.beat and not writer.transport.is_closing():
        _write_chunk(writer, script.beat)
        await writer.drain()
        await asyncio.sleep(script.every_s)
    writer.write(b"0\r\n\r\n")
    return not script.beat


def _event(value: object) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _text(delta: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": delta}, "finish_reason": None}]}


def _deltas(script: Answer, request: Request) -> Sequence[str]:
    return script.deltas(request.body) if callable(script.deltas) else script.deltas


def _events(script: Answer, request: Request) -> list[str]:
    events: list[Any] = [_text(delta) for delta in _deltas(script, request)]
    for index, tool in enumerate(script.tools):
        head = {"index": index, "id": tool.call_id, "type": "function"}
        calls: list[dict[str, Any]] = [{**head, "function": {"name": tool.name, "arguments": ""}}]
        calls += [{"index": index, "function": {"arguments": piece}} for piece in tool.arguments]
        events += [{"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]} for call in calls]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": script.finish_reason}]})
    if request.body.get("stream_options", {}).get("include_usage"):
        asked, answered = script.usage
        usage = {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
        events.append({"choices": [], "usage": usage})
    return [json.dumps(event) for event in events] + (["[DONE]"] if script.has_done else [])


def _whole(script: Answer, request: Request) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(_deltas(script, request))}
    usage = dict(zip(("prompt_tokens", "completion_tokens"), script.usage, strict=True))
    return {"choices": [{"message": message, "finish_reason": script.finish_reason}], "usage": usage}


def repeat(body: dict[str, Any]) -> list[str]:
    """Deltas that repeat the last question."""
    asked = next((one["content"] for one in reversed(body["messages"]) if one["role"] == "user"), "nothing")
    return [word + " " for word in f"You said: {asked}. Is that right?".split()]


@contextlib.contextmanager
def endpoint_in_thread(*scripts: Script) -> Iterator[ChatEndpoint]:
    """A ``ChatEndpoint`` on a loop of its own, for code that has none. Without scripts it repeats what it is asked."""
    with start_blocking_portal() as portal:
        endpoint = ChatEndpoint(*scripts or (Answer(repeat),))
        with portal.wrap_async_context_manager(endpoint):
            yield endpoint


async def _serve(port: int) -> None:
    async with ChatEndpoint(Answer(repeat), port=port) as endpoint:
        print(endpoint.base_url, flush=True)
        await asyncio.Event().wait()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m voiceserver.testing.chat_endpoint",
        description="A chat-completions endpoint on this machine that says again what it was asked; Ctrl-C ends it.",
    )
    parser.add_argument(
        "port", type=int, nargs="?", default=8900, help="port to listen on; default: %(default)s"
    )
    port = parser.parse_args(argv).port
    try:
        asyncio.run(_serve(port))
    except KeyboardInterrupt:
        return 0
    except (OSError, OverflowError) as error:
        parser.error(f"cannot listen on port {port}: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
