"""The serving benchmark's model on Mosec: a worker with dynamic batching. Optional: ``make bench-venv``."""

# mypy: allow-subclassing-any, disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import os
import sys

from mosec import Server, Worker

from benchmarks.sides import serving_model

MAX_BATCH = 256


class Infer(Worker):
    def __init__(self) -> None:
        super().__init__()
        self._model = serving_model.Server()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        return self._model.answer(data)


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "--address", "127.0.0.1", "--port", sys.argv[1], "--log-level", "warning"]
    wait_ms = int(os.environ[serving_model.WAIT])
    server = Server()
    server.append_worker(Infer, num=1, max_batch_size=MAX_BATCH, max_wait_time=wait_ms)
    server.run()
