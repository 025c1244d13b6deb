from __future__ import annotations

from tests.voiceserver.capacity.test_controller import MeasuredPool
from voiceserver.capacity.calibration import GIVE_UP_MS, MOST_ROUNDS, RATE_HZ, VAD_STREAMS, Calibration
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind


class Clock:
    def __init__(self) -> None:
        self.now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms


def make(cores: int = 2) -> tuple[Calibration, dict[str, MeasuredPool], Clock]:
    pools = {
        "vad": MeasuredPool("vad", None),
        "stt": MeasuredPool("stt", 4),
        "tts": MeasuredPool("tts", None),
    }
    clock = Clock()
    calibration = Calibration(pools, clock, cores)
    calibration.begin()
    return calibration, pools, clock


def speak(pools: dict[str, MeasuredPool], clock: Clock, seconds: int = 2) -> None:
    clock.now_ms += 20.0
    pools["tts"].streams[0].answer(ResultKind.AUDIO, 1, 1, bytes(seconds * RATE_HZ * 2))
    pools["tts"].streams[0].answer(ResultKind.DONE, 1, 1, b"{}")


def hear(pools: dict[str, MeasuredPool], clock: Clock, took_ms: tuple[float, float]) -> None:
    """One round: both workers, one after the other."""
    streams = [stream for stream in pools["stt"].streams if not stream.is_closed]
    assert len(streams) == 2
    for stream, ms in zip(streams, took_ms, strict=True):
        assert stream.sent[-1][0] is RequestKind.FLUSH
        assert sum(len(payload) for _, _, _, payload in stream.sent) == 2 * RATE_HZ * 2
        clock.now_ms += ms
        stream.answer(ResultKind.FINAL, 1, 2 * RATE_HZ, b"please hold the line")
    assert all(stream.is_closed for stream in streams)


def test_what_tts_says_goes_through_all_stt_workers_at_once_and_then_through_vad() -> None:
    calibration, pools, clock = make()
    speak(pools, clock)
    hear(pools, clock, (1_500.0, 300.0))
    hear(pools, clock, (900.0, 100.0))  # two rounds took long enough
    assert len(pools["vad"].streams) == VAD_STREAMS
    clock.now_ms += 160.0
    for number, stream in enumerate(pools["vad"].streams):
        assert not calibration.is_done
        calibration.on_result("vad", Record(ResultKind.CONSUMED, number, 0, 2 * RATE_HZ, b""))
        assert not stream.is_closed or calibration.is_done
    assert calibration.is_done
    assert all(stream.is_closed for pool in pools.values() for stream in pool.streams)
    work = {stage: cost.work for stage, cost in calibration.costs.items()}
    # The better of two rounds, by the slower worker; 16 s of audio in 160 ms.
    assert work == {"tts": 0.01, "stt": 0.5, "vad": 0.01}
    assert calibration.costs["stt"].places == 4


def test_a_neighbours_moment_is_not_taken_for_the_machine() -> None:
    calibration, pools, clock = make()
    speak(pools, clock)
    for took_ms in (900.0, 500.0, 200.0, 700.0):
        hear(pools, clock, (took_ms, 0.0))
    assert len(pools["stt"].streams) == 2 * MOST_ROUNDS
    assert calibration.costs["stt"].work == 0.1


def test_workers_that_took_turns_on_one_core_did_half_of_it_each() -> None:
    calibration, pools, clock = make(cores=1)
    speak(pools, clock)
    hear(pools, clock, (500.0, 500.0))
    assert calibration.costs["stt"].work == 0.25


def test_it_gives_up_rather_than_wait_and_knows_at_least_so_much() -> None:
    calibration, pools, clock = make()
    speak(pools, clock)
    clock.now_ms += GIVE_UP_MS - 21.0
    calibration.give_up_if_late()
    assert not calibration.is_done
    clock.now_ms += 2.0
    calibration.give_up_if_late()
    assert calibration.is_done
    assert calibration.costs["stt"].work > 3.9
    assert all(stream.is_closed for pool in pools.values() for stream in pool.streams)


def test_a_worker_that_dies_meanwhile_ends_it() -> None:
    calibration, pools, clock = make()
    speak(pools, clock)
    calibration.on_stream_lost("stt", "worker_lost")
    assert calibration.is_done
    assert calibration.was_disturbed
    assert "stt" not in calibration.costs
    pools["stt"].streams[0].owner.on_tick()


def test_without_a_voice_there_is_nothing_to_measure() -> None:
    calibration = Calibration({"stt": MeasuredPool("stt")}, Clock(), 2)
    calibration.begin()
    assert calibration.is_done
    assert not calibration.costs
