"""Engines that ask an endpoint, stepped as their worker steps them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from voiceserver_workers.engine import Audio, Engine, Item, Output, Piece
from voiceserver_workers.ipc.messages import Failure, ResultKind, decode_failure

LONG_S = 20.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():
            await asyncio.sleep(0.002)


async def answer(
    engine: Engine, item: Item, *, enough: Callable[[list[Piece]], bool] = lambda _: False
) -> list[Piece]:
    """All that comes of one item, or ``enough`` of it."""
    pieces: list[Piece] = []
    async with asyncio.timeout(LONG_S):
        output: Output = engine.step([item])[0]
        pieces += output.pieces
        while output.more and not enough(pieces):
            await asyncio.sleep(output.rest_ms / 1000.0)
            output = engine.step([item._replace(text=None, is_continued=True, audio=item.audio[:0])])[0]
            pieces += output.pieces
    return pieces


def kinds(pieces: list[Piece]) -> list[str]:
    """Their names, each run once."""
    names = [ResultKind(piece.kind).name for piece in pieces]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


def failure(pieces: list[Piece]) -> Failure:
    payload = pieces[-1].payload
    assert pieces[-1].kind == ResultKind.FAILED
    assert isinstance(payload, bytes)
    return decode_failure(payload)


def audio_of(pieces: list[Piece]) -> list[Audio]:
    return [piece.payload for piece in pieces if not isinstance(piece.payload, bytes | str)]
