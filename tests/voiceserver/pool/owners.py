"""A stream owner that remembers what it was told, for tests of pools on a running loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from voiceserver.pool import LossReason
from voiceserver_workers.ipc.messages import Record, ResultKind


class Owner:
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.log: list[str] = []
        self.lost: list[str] = []
        self.rooms = 0
        self.ticks = 0
        self._changed = asyncio.Event()

    def on_result(self, stage: str, record: Record) -> None:
        self.records.append(record)
        self.log.append("result")

    def on_stream_lost(self, stage: str, reason: LossReason) -> None:
        self.lost.append(reason)

    def on_room(self, stage: str) -> None:
        self.rooms += 1
        self.log.append("room")

    def on_tick(self) -> None:
        self.ticks += 1
        self.log.append("tick")
        self._changed.set()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def finished(self, turn: int = 1) -> None:
        ends = (ResultKind.DONE, ResultKind.FAILED)
        await self.wait_for(lambda: any(r.turn == turn and r.kind in ends for r in self.records))

    def payloads(self, kind: ResultKind, turn: int = 1) -> list[bytes]:
        return [record.payload for record in self.records if record.kind == kind and record.turn == turn]
