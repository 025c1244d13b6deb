"""The model that the serving benchmark serves, and its ways into a server: an engine of ours, and a function for the others.

A small streaming model of the usual kind: a convolution over 100 ms of audio, two layers of GRU, one number out. Its state is a
row per session. All sides run this file, batch as wide as they can, on one thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from voiceserver_workers.engine import Audio, EngineInfo, Item, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

WAIT = "SERVING_WAIT_MS"  # environment: how long a batch waits for company, on every side that batches
WEIGHT = "SERVING_WEIGHT"  # environment: how many times over the GRU runs, for a model that one core is soon full of
RATE_HZ = 16_000
CHUNK_MS = 100
CHUNK_SAMPLES = RATE_HZ * CHUNK_MS // 1000
CHUNK_BYTES = CHUNK_SAMPLES * 2
CHANNELS = 64
KERNEL, STRIDE = 400, 160  # 25 ms every 10 ms
HIDDEN = 256
SESSIONS = 1_024
_NOTHING: Audio = np.empty(0, np.float32)
_TEXT, _FINAL = ResultKind.TEXT, ResultKind.FINAL


class Net(nn.Module):
    """(n, 1,600) samples and the rows of their sessions -> (n,) numbers; the state of those rows moves on."""

    def __init__(self, sessions: int = SESSIONS) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv1d(1, CHANNELS, KERNEL, STRIDE)
        self.gru = nn.GRU(CHANNELS, HIDDEN, 2, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)
        self.state = torch.zeros(2, sessions, HIDDEN)
        self._weight = int(os.environ.get(WEIGHT, "1"))

    @torch.inference_mode()
    def step(self, audio: Tensor, rows: Tensor) -> Tensor:  # hot
        frames = torch.relu(self.conv(audio[:, None])).transpose(1, 2)
        before = self.state[:, rows].contiguous()
        out, state = self.gru(frames, before)
        for _ in range(self._weight - 1):
            out, state = self.gru(frames, before)
        self.state[:, rows] = state
        return torch.sigmoid(self.head(out[:, -1]))[:, 0]


def load_net() -> Net:
    torch.set_num_threads(1)
    return Net().eval()


class Server:
    """For the peers: ``answer`` takes requests of a session's number (4 bytes) and 100 ms of PCM16."""

    def __init__(self) -> None:
        self._net = load_net()

    def answer(self, requests: Sequence[bytes]) -> list[bytes]:
        rows = torch.tensor([int.from_bytes(request[:4], "little") for request in requests])
        joined = b"".join([request[4:] for request in requests])
        audio = np.frombuffer(joined, "<i2").astype(np.float32) / 32_768
        found = self._net.step(torch.from_numpy(audio.reshape(len(requests), CHUNK_SAMPLES)), rows)
        return [f"{number:.3f}".encode() for number in found.tolist()]


class Engine:
    """For us: an stt engine that tells what it has found so far as a text that grows."""

    def __init__(self, params: Mapping[str, object]) -> None:
        for key in params:
            raise ValueError(f"{key}: the serving model has no parameters")
        self.info = EngineInfo(
            "serving-model", "stt", RATE_HZ, max_streams=SESSIONS, frame_samples=CHUNK_SAMPLES
        )
        self._net = load_net()
        self._free = list(range(SESSIONS))
        self._rows: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._rest: dict[int, Audio] = {}

    def open(self, stream: int, params: StreamParams) -> None:
        row = self._rows[stream] = self._free.pop()
        self._told[stream] = 0
        self._net.state[:, row] = 0

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:  # hot
        streams = [item.stream for item in batch]
        waiting = [item.audio for item in batch]
        if self._rest:
            waiting = [
                np.concatenate((self._rest.pop(stream, _NOTHING), audio))
                for stream, audio in zip(streams, waiting, strict=True)
            ]
        while ready := [at for at, audio in enumerate(waiting) if len(audio) >= CHUNK_SAMPLES]:
            audio = np.concatenate([waiting[at][:CHUNK_SAMPLES] for at in ready])
            rows = torch.tensor([self._rows[streams[at]] for at in ready])
            self._net.step(torch.from_numpy(audio.reshape(len(ready), CHUNK_SAMPLES)), rows).tolist()
            for at in ready:
                waiting[at] = waiting[at][CHUNK_SAMPLES:]
                self._told[streams[at]] += 1
        self._rest.update(
            (stream, audio.copy()) for stream, audio in zip(streams, waiting, strict=True) if len(audio)
        )
        return [
            Output([Piece(_FINAL if item.is_flush else _TEXT, b"." * self._told[item.stream])])
            for item in batch
        ]

    def cancel(self, stream: int, turn: int) -> None:
        pass

    def close(self, stream: int) -> None:
        row = self._rows.pop(stream, None)
        if row is not None:
            self._free.append(row)
            del self._told[stream]
            self._rest.pop(stream, None)
