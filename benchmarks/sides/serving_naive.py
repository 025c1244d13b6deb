"""The serving benchmark's model as many write it: an asyncio server, a process pool, ``run_in_executor`` for each chunk."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from benchmarks.sides import serving_model

_model: serving_model.Server


def load() -> None:
    global _model
    _model = serving_model.Server()


def answer(session: int, chunk: bytes) -> bytes:
    return _model.answer([session.to_bytes(4, "little") + chunk])[0]


async def main(port: int) -> None:
    sessions = itertools.count()
    # One process: the state of a session is in it, as everybody else's is in one process here.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=load) as pool:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(pool, answer, 0, bytes(serving_model.CHUNK_BYTES))

        async def talk(socket: ServerConnection) -> None:
            session = next(sessions) % serving_model.SESSIONS
            try:
                async for chunk in socket:
                    assert isinstance(chunk, bytes)
                    found = await loop.run_in_executor(pool, answer, session, chunk)
                    await socket.send(found.decode())
            except ConnectionClosed:
                pass

        async with serve(talk, "127.0.0.1", port, compression=None) as server:
            await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
