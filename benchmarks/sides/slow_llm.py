"""A chat-completions endpoint whose first token takes its time, as that of a language model does.

It answers every request with the same two sentences. Nothing else of a model matters for the wait of a caller.
"""

from __future__ import annotations

import asyncio
import json
import re
from types import TracebackType
from typing import Self

SENTENCES = ("I have understood. ", "Is there anything else?")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


class SlowLlm:
    """``first_token_ms``: from the request to the first sentence; the second follows at once."""

    def __init__(self, first_token_ms: float) -> None:
        self._first_token_ms = first_token_ms
        self._server: asyncio.Server | None = None

    @property
    def settings(self) -> dict[str, str | int | float]:
        """Of a server whose replies come from here."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return {
            "stages.reply.engine": "chat",
            "stages.reply.params.base_url": f"http://127.0.0.1:{port}/v1",
            "stages.reply.params.model": "slow",
            "stages.reply.params.uses_proxy": "false",
        }

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            await reader.readexactly(int(length[1]) if length is not None else 0)
            await asyncio.sleep(self._first_token_ms / 1000)
            deltas = [_event({"delta": {"content": text}}) for text in SENTENCES]
            end = _event({"delta": {}, "finish_reason": "stop"})
            writer.write(b"".join((_HEAD, *deltas, end, b"data: [DONE]\n\n")))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # a guess that came to nothing
        finally:
            writer.close()


def _event(choice: dict[str, object]) -> bytes:
    return f"data: {json.dumps({'choices': [{'index': 0, **choice}]})}\n\n".encode()
