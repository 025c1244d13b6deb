"""The serving benchmark's model on LitServe, batched; requests are JSON. Optional: ``make bench-venv``."""

# mypy: allow-subclassing-any, disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import base64
import os
import sys

import litserve as ls

from benchmarks.sides import serving_model

MAX_BATCH = 256


class Api(ls.LitAPI):
    def setup(self, device: str) -> None:
        self._model = serving_model.Server()

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["audio"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: list[bytes]) -> list[bytes]:
        return self._model.answer(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> dict[str, str]:
        return {"found": output.decode()}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=int(os.environ[serving_model.WAIT]) / 1000)
    ls.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
