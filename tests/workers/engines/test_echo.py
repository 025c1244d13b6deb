"""Echo, and the worker around a speech-to-speech engine: what is said comes back, at the rate that the caller wants."""

from __future__ import annotations

import numpy as np
import pytest

from tests import recordings
from voiceserver_workers.batcher import BatchLimits
from voiceserver_workers.engine import Item
from voiceserver_workers.engines.echo import RATE_HZ, STEP_SAMPLES, Echo
from voiceserver_workers.ipc.channel import ChannelConfig, ServerEnd, WorkerEnd
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind, StreamParams
from voiceserver_workers.worker import Worker, merge_bytes

NOTHING = np.empty(0, np.float32)


def test_a_long_turn_is_said_in_steps_and_done_once() -> None:
    engine = Echo({})
    engine.open(1, StreamParams())
    heard = np.arange(2 * STEP_SAMPLES + 100, dtype=np.float32) / 1e6
    assert engine.step([Item(1, 1, heard[:5000])])[0].pieces == []
    output = engine.step([Item(1, 1, heard[5000:], is_flush=True)])[0]
    said, steps = list(output.pieces), 1
    while output.more:
        output = engine.step([Item(1, 1, NOTHING, is_continued=True)])[0]
        said += output.pieces
        steps += 1
    assert steps == 3
    assert [kind for kind, _ in said] == [ResultKind.AUDIO] * 3 + [ResultKind.DONE]
    audio = [payload for _, payload in said[:-1] if isinstance(payload, np.ndarray)]
    assert np.array_equal(np.concatenate(audio), heard)


def test_a_turn_without_audio_is_answered_all_the_same() -> None:
    engine = Echo({})
    engine.open(1, StreamParams())
    output = engine.step([Item(1, 1, NOTHING, is_flush=True)])[0]
    assert [kind for kind, _ in output.pieces] == [ResultKind.DONE]


def answers(pcm: bytes, params: StreamParams) -> list[Record]:
    """What a worker with echo gives for one turn of ``pcm`` in chunks of 20 ms."""
    server = ServerEnd.create(ChannelConfig(1024, 1024, 4096))
    end = WorkerEnd.attach(server.worker_fds())
    engine = Echo({})
    worker = Worker(engine, end, BatchLimits(8, 0.0, merge_bytes(engine.info)))
    results = []
    try:
        assert server.try_send(RequestKind.OPEN, 1, 0, 0, params.to_bytes())
        size = params.rate_hz // 50 * 2
        for start in range(0, len(pcm), size):
            chunk = pcm[start : start + size]
            assert server.try_send(RequestKind.DATA, 1, 1, (start + len(chunk)) // 2, chunk)
            worker.poll(0.0)
            results += server.receive()
        assert server.try_send(RequestKind.FLUSH, 1, 1, len(pcm) // 2)
        while worker.poll(0.0):
            results += server.receive()
    finally:
        end.close()
        server.close()
    return results


@pytest.mark.parametrize("output_rate_hz", [0, RATE_HZ])
def test_at_its_own_rate_every_sample_comes_back(output_rate_hz: int) -> None:
    speech = recordings.goforward().audio
    pcm = (speech * 30_000).astype("<i2").tobytes()
    results = answers(pcm, StreamParams(RATE_HZ, output_rate_hz=output_rate_hz))
    kinds = [record.kind for record in results]
    assert kinds[0] == ResultKind.OPENED
    assert kinds[-1] == ResultKind.DONE
    assert kinds.count(ResultKind.DONE) == 1
    assert b"".join(record.payload for record in results if record.kind == ResultKind.AUDIO) == pcm
    assert max(record.seq for record in results if record.kind == ResultKind.CONSUMED) == len(pcm) // 2


def test_it_is_resampled_on_the_way_in_and_on_the_way_out() -> None:
    seconds = np.arange(8_000) / 8_000
    pcm = (np.sin(2 * np.pi * 440 * seconds) * 20_000).astype("<i2").tobytes()
    results = answers(pcm, StreamParams(8_000, output_rate_hz=24_000))
    said = np.frombuffer(b"".join(r.payload for r in results if r.kind == ResultKind.AUDIO), "<i2")
    assert len(said) == pytest.approx(24_000, abs=3)
    spectrum = np.abs(np.fft.rfft(said[:24_000].astype(float)))
    assert int(spectrum.argmax()) == pytest.approx(440, abs=1)
