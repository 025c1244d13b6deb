"""The usual design, to compare with: one asyncio server, a task per connection, each chunk handed to ``run_in_executor``.

``python -m benchmarks.sides.naive_server --port 9000``. The same engines in as many processes as voiceserver's defaults
have, and the native events, so that one client can measure both. It does what most published servers do: it accepts everybody,
awaits the executor for each chunk, transcribes an utterance when it has ended, and says nothing meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from voiceserver.config.schema import Config
from voiceserver.events.events import TurnDetection
from voiceserver.session.endpointing import Endpointer, Start, Stop
from voiceserver_clients.lifeline import end_with
from voiceserver_workers import registry
from voiceserver_workers.engine import Engine, Item
from voiceserver_workers.ipc.messages import ResultKind, StreamParams, unpack_speech

RATE_HZ = 16_000
_SAMPLES_PER_MS = RATE_HZ // 1000
PREFIX_MS = 300

_engine: Engine
_open: set[int] = set()
_turns = itertools.count(1)


def load(name: str) -> None:
    """In each process of a pool, once."""
    global _engine
    end_with(os.getppid())
    _engine = registry.load(name)({})


def detect(stream: int, pcm: bytes, end_ms: float) -> list[bytes]:
    if stream not in _open:
        _open.add(stream)
        _engine.open(stream, StreamParams(rate_hz=RATE_HZ))
    (output,) = _engine.step([Item(stream, 0, _samples(pcm), end_ms=end_ms)])
    return [piece.payload for piece in output.pieces if isinstance(piece.payload, bytes)]


def transcribe(pcm: bytes) -> str:
    turn = next(_turns)
    _engine.open(turn, StreamParams(rate_hz=RATE_HZ))
    try:
        item = Item(turn, turn, _samples(pcm), is_flush=True)
        while True:
            (output,) = _engine.step([item])
            for piece in output.pieces:
                if piece.kind == ResultKind.FINAL:
                    return str(piece.payload)
            item = item._replace(audio=np.empty(0, np.float32), is_continued=True)
    finally:
        _engine.close(turn)


def _samples(pcm: bytes) -> npt.NDArray[np.float32]:
    return np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32_768)


class NaiveServer:
    def __init__(self, vad: ProcessPoolExecutor, stt: ProcessPoolExecutor) -> None:
        self._vad = vad
        self._stt = stt
        self._streams = itertools.count(1)

    async def talk(self, socket: ServerConnection) -> None:
        loop = asyncio.get_running_loop()
        stream = next(self._streams)
        detector = Endpointer(TurnDetection())
        audio = bytearray()
        turn, start_ms = 0, 0.0
        await socket.send('{"type":"session.ready"}')
        try:
            async for message in socket:
                if isinstance(message, str):
                    if "session.close" in message:
                        break
                    continue
                audio += message
                end_ms = len(audio) / 2 / _SAMPLES_PER_MS
                for found in await loop.run_in_executor(self._vad, detect, stream, message, end_ms):
                    for decision in detector.receive(*unpack_speech(found)):
                        if isinstance(decision, Start):
                            turn, start_ms = turn + 1, decision.at_ms
                            await self._say(socket, "speech.started", turn, at_ms=start_ms)
                        elif isinstance(decision, Stop):
                            await self._say(socket, "speech.stopped", turn, at_ms=decision.at_ms)
                            first = int(max(start_ms - PREFIX_MS, 0)) * _SAMPLES_PER_MS * 2
                            last = int(decision.decided_ms) * _SAMPLES_PER_MS * 2
                            text = await loop.run_in_executor(self._stt, transcribe, bytes(audio[first:last]))
                            await self._say(socket, "transcript.final", turn, text=text)
        except ConnectionClosed:
            pass

    async def _say(self, socket: ServerConnection, kind: str, turn: int, **fields: object) -> None:
        await socket.send(json.dumps({"type": kind, "turn": turn, **fields}, separators=(",", ":")))


async def run(port: int, stt: str) -> None:
    vad, workers = Config().stages.vad.engine, Config().stages.stt.workers
    # A caller's vad state is in one process, so there is one; utterances may go anywhere.
    with (
        ProcessPoolExecutor(1, initializer=load, initargs=(vad,)) as hearing,
        ProcessPoolExecutor(workers, initializer=load, initargs=(stt,)) as transcribing,
    ):
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(hearing, detect, 0, bytes(640), 20.0)
        second = bytes(RATE_HZ * 2)
        await asyncio.gather(
            *(loop.run_in_executor(transcribing, transcribe, second) for _ in range(workers))
        )
        async with serve(
            NaiveServer(hearing, transcribing).talk, "127.0.0.1", port, compression=None
        ) as server:
            print("ready", flush=True)
            await server.serve_forever()


def main(
    port: Annotated[int, typer.Option()] = 9000, stt: Annotated[str, typer.Option()] = "pocketsphinx"
) -> None:
    """Serve until killed."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(port, stt))


if __name__ == "__main__":
    typer.run(main)
