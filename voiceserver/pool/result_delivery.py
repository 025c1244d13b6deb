"""From a worker's results to the owners of its streams: each in order, each owner ticked once in a burst."""

from __future__ import annotations

from collections.abc import Sequence

from voiceserver.pool import StreamOwner
from voiceserver.pool.places import Places
from voiceserver.pool.pool_context import PoolContext
from voiceserver.pool.worker_handle import WorkerHandle
from voiceserver_workers.ipc.messages import CONTROL_STREAM, Record, ResultKind

_BURST = 512
_FINAL = int(ResultKind.FINAL)

Touched = dict[int, StreamOwner]


class ResultDelivery:
    """Gives results to owners; what a worker says of itself is returned."""

    __slots__ = ("_context", "_places")

    def __init__(self, context: PoolContext, places: Places) -> None:
        self._context = context
        self._places = places

    def deliver(
        self, handle: WorkerHandle, touched: Touched, own_words: list[Record], bursts: int | None
    ) -> bool:
        """Hand out results, and add the owners called to ``touched``, the worker's own records to ``own_words``. ``bursts`` None:
        until there are none. False: more may be waiting. Raises RingCorrupt."""
        end = handle.end
        while end is not None and (bursts is None or bursts > 0):
            records = end.receive(_BURST)
            if records:
                self._dispatch(handle, records, touched, own_words)
                if bursts is not None:
                    bursts -= 1
            elif not end.rearm():
                return True
            end = handle.end
        return end is None

    def _dispatch(
        self, handle: WorkerHandle, records: Sequence[Record], touched: Touched, own_words: list[Record]
    ) -> None:  # hot
        find, stage = handle.streams.get, self._context.stage
        turn_end = _FINAL if stage == "stt" else 0
        for record in records:
            stream = find(record.stream)
            if stream is None:
                if record.stream == CONTROL_STREAM:
                    own_words.append(record)
                continue
            owner = stream.owner
            try:
                if owner.on_result(stage, record) is not False:
                    touched[id(owner)] = owner
            except Exception as error:
                touched[id(owner)] = owner
                self._context.owners.report(error)
            if record.kind == turn_end:
                self._places.end_turn(handle, stream, record.seq)

    def offer_ring_room(self, handle: WorkerHandle, touched: Touched) -> None:
        """Wake those that found the ring full, in their order, once there is room for more than a single record."""
        if handle.end is None or not handle.wants_room:
            return
        free = handle.end.free_slots()
        if free < handle.end.config.request_slots // 4:
            return
        for _ in range(min(free, len(handle.wants_room))):
            key = next(iter(handle.wants_room))
            owner = handle.wants_room.pop(key).owner
            touched[id(owner)] = owner
            self._context.owners.call(owner.on_room, self._context.stage)
