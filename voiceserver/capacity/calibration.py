"""The first look at the engines: what one talker costs each stage, measured on speech before anybody calls.

::

    tts speaks a line --> its audio goes through all stt workers at once, a few times --> and through several vads --> costs

Pure: pools call back, time is given. Rule: workers are measured as they will be used, all of a stage together, because they
share the machine; the best round counts, because a neighbour's moment is no property of the machine. It is short, takes one
place of each worker (vad: ``VAD_STREAMS``), and gives up rather than wait; the limit then starts from the number of places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from voiceserver.capacity.limit import Cost
from voiceserver.errors import Refusal
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind, StreamParams

if TYPE_CHECKING:
    from voiceserver.pool import LossReason, Pool, Stream

LINE: Final = "All our lines are busy. Please hold the line."
RATE_HZ: Final = 16_000
GIVE_UP_MS: Final = 8_000.0
VAD_STREAMS: Final = 8
_CHUNK_BYTES: Final = RATE_HZ // 50 * 2
# The first round also pays for what an engine does only once.
LEAST_ROUNDS: Final = 2
MOST_ROUNDS: Final = 4
ENOUGH_MS: Final = 2_500.0  # no further round after so much


class Calibration:
    """``begin``, then ``is_done`` after a while; ``costs`` has what was found by then. cores: that the workers share. A
    ``StreamOwner``."""

    def __init__(self, pools: Mapping[str, Pool], clock: Callable[[], float], cores: float) -> None:
        self._pools = pools
        self._cores = cores
        self._clock = clock
        self._streams: dict[str, list[Stream]] = {}
        self._pcm = bytearray()
        self._unsent: list[tuple[Stream, RequestKind, int, int, bytes]] = []
        self._began_ms = self._stage_ms = 0.0
        self._stage = ""  # that works now
        self._rounds = 0
        self._to_hear = 0  # stt streams without a transcript
        self._to_watch = 0
        self._watched: set[int] = set()  # vad streams that have taken everything
        self._places: dict[str, int | None] = {}
        self._workers: dict[str, int] = {}
        self.is_done = False
        self.was_disturbed = False  # a worker was lost meanwhile, or a caller came
        self.costs: dict[str, Cost] = {}

    def begin(self) -> None:
        self._began_ms = self._clock()
        for name, pool in self._pools.items():
            stats = pool.stats()
            self._workers[name] = sum(worker.state == "ready" for worker in stats.workers)
            self._places[name] = None if stats.free is None else stats.free + stats.streams
        tts = self._workers.get("tts") and self._open("tts")
        if tts:
            self._stage_ms = self._clock()
            self._send(tts, [(RequestKind.DATA, 1, 1, LINE.encode())])
        else:
            self._end()

    def stop(self) -> None:
        """A caller goes first: give every place back now. What was found so far is worth nothing."""
        if not self.is_done:
            self.was_disturbed = True
            self._end()

    def give_up_if_late(self) -> None:
        if not self.is_done and self._clock() - self._began_ms > GIVE_UP_MS:
            if self._pcm and self._stage == "stt" and "stt" not in self.costs:
                self._found("stt", self._seconds_of_speech())  # at least so much
            self._end()

    # -------------------------------------------------------------------------------------------------- the stages

    def _after_tts(self) -> None:
        self._found("tts", self._seconds_of_speech())
        if self._workers.get("stt"):
            self._hear_again()
        else:
            self._watch()

    def _hear_again(self) -> None:
        streams = [self._open("stt") for _ in range(self._workers["stt"])]
        opened = [stream for stream in streams if stream is not None]
        if not opened or not self._pcm:
            self._watch()
            return
        self._rounds += 1
        self._to_hear = len(opened)
        self._stage_ms = self._clock()
        chunks = self._chunks()
        for stream in opened:
            self._send(stream, [*chunks, (RequestKind.FLUSH, 1, chunks[-1][2], b"")])

    def _after_stt(self) -> None:
        self._to_hear -= 1
        if self._to_hear:
            return
        self._found("stt", self._seconds_of_speech())
        is_enough = self._rounds >= MOST_ROUNDS or self._clock() - self._began_ms >= ENOUGH_MS
        if self._rounds < LEAST_ROUNDS or not is_enough:
            self._hear_again()
        else:
            self._watch()

    def _watch(self) -> None:
        streams = [self._open("vad") for _ in range(VAD_STREAMS)] if self._workers.get("vad") else []
        opened = [stream for stream in streams if stream is not None]
        if not opened or not self._pcm:
            self._end()
            return
        self._to_watch = len(opened)
        self._stage_ms = self._clock()
        for stream in opened:
            self._send(stream, self._chunks())

    def _after_vad(self, stream: int) -> None:
        self._watched.add(stream)
        if len(self._watched) == self._to_watch:
            self._found("vad", self._seconds_of_speech() * self._to_watch)
            self._end()

    def _found(self, stage: str, seconds: float) -> None:
        """The work of one second of audio for one worker; the best of the rounds."""
        spent_s = (self._clock() - self._stage_ms) / 1000.0
        if seconds > 0:
            known = self.costs.get(stage)
            work = spent_s / seconds
            if (
                stage == "stt"
            ):  # workers that are more than the cores took turns: ``calibrate`` counts cores too
                work *= min(self._cores / max(self._workers[stage], 1), 1.0)
            work = min(work, known.work) if known is not None else work
            self.costs[stage] = Cost(stage, work, self._workers[stage], self._places[stage], stage != "vad")
        if stage != "vad":
            self._close(stage)

    def _seconds_of_speech(self) -> float:
        return len(self._pcm) / 2 / RATE_HZ

    def _chunks(self) -> list[tuple[RequestKind, int, int, bytes]]:
        pcm = bytes(self._pcm)
        starts = range(0, len(pcm), _CHUNK_BYTES)
        pieces = [pcm[start : start + _CHUNK_BYTES] for start in starts]
        ends = [(start + len(piece)) // 2 for start, piece in zip(starts, pieces, strict=True)]
        return [(RequestKind.DATA, 1, end, piece) for end, piece in zip(ends, pieces, strict=True)]

    # ------------------------------------------------------------------------------------------------- the streams

    def _open(self, stage: str) -> Stream | None:
        # A server under pressure asks for no partial transcripts.
        params = StreamParams(rate_hz=RATE_HZ, is_final_only=stage == "stt")
        got = self._pools[stage].try_open(self, params, key="calibration")
        if isinstance(got, Refusal):
            return None
        self._stage = stage
        self._streams.setdefault(stage, []).append(got)
        return got

    def _close(self, stage: str) -> None:
        for stream in self._streams.pop(stage, []):
            stream.close()

    def _send(self, stream: Stream, requests: list[tuple[RequestKind, int, int, bytes]]) -> None:
        self._unsent += [(stream, *request) for request in requests]
        self._push()

    def _push(self) -> None:
        while self._unsent:
            stream, kind, turn, seq, payload = self._unsent[0]
            if not stream.send(kind, turn, seq, payload):
                return
            self._unsent.pop(0)

    def _end(self) -> None:
        self.is_done = True
        self._unsent.clear()
        for stage in tuple(self._streams):
            self._close(stage)
        self._pcm.clear()

    def on_result(self, stage: str, record: Record) -> None:
        if self.is_done:
            return
        if record.kind == ResultKind.FAILED:
            self._end()
        elif stage == "tts" and record.kind == ResultKind.AUDIO:
            self._pcm += record.payload
        elif stage == "tts" and record.kind == ResultKind.DONE and "tts" in self._streams:
            self._after_tts()
        elif stage == "stt" and record.kind == ResultKind.FINAL:
            self._after_stt()
        elif stage == "vad" and record.seq >= len(self._pcm) // 2 - RATE_HZ // 20:
            self._after_vad(record.stream)

    def on_stream_lost(self, stage: str, reason: LossReason) -> None:
        self._streams.pop(stage, None)
        self.was_disturbed = True
        self._end()

    def on_room(self, stage: str) -> None:
        if not self.is_done:
            self._push()

    def on_tick(self) -> None:
        pass
