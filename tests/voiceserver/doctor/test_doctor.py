"""What is too low is said with its fix, and what a machine carries follows from what was measured on it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import msgspec
import pytest

from voiceserver import cli
from voiceserver.capacity.limit import SPEECH_SHARE, carried, talkers_for
from voiceserver.config.schema import BackpressureConfig, Config, ServerConfig, StageConfig, StagesConfig
from voiceserver.doctor import engines, machine
from voiceserver.doctor.engines import Step, Trouble
from voiceserver.errors import ConfigError

PROC = {
    "/proc/sys/net/core/somaxconn": "128",
    "/proc/sys/net/ipv4/tcp_syncookies": "0",
    "/proc/sys/net/ipv4/tcp_max_syn_backlog": "256",
    "/proc/sys/net/core/netdev_max_backlog": "1000",
    "/proc/sys/net/ipv4/ip_local_port_range": "32768\t33000",
    "/proc/sys/net/ipv4/tcp_tw_reuse": "0",
    "/sys/fs/cgroup/memory.max": str(512 * 2**20),
    "/sys/fs/cgroup/cpu.max": "50000 100000",
    "/proc/cpuinfo": "model name\t: Abacus\nflags\t: fpu avx2 avx512f avx512_vnni\n",
}


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: PROC.get(path, ""))
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1024))


@pytest.mark.usefixtures("small_machine")
def test_everything_that_is_too_low_comes_with_its_fix() -> None:
    low = {finding.name: finding for finding in machine.too_low(Config())}
    assert set(low) == {
        "open files",
        "memory",
        "cores",
        "net.core.somaxconn",
        "net.ipv4.tcp_max_syn_backlog",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_tw_reuse",
    }
    assert low["net.core.somaxconn"].fix == "sysctl -w net.core.somaxconn=4096"
    assert low["open files"].fix == "ulimit -Hn 16384"
    assert low["open files"].instead == ("LimitNOFILE=16384  # in a systemd unit",)
    assert "10,000 connections" in low["open files"].warning
    assert "0.5" in low["cores"].value


@pytest.mark.usefixtures("small_machine")
def test_the_advised_number_of_processes_is_enough_and_no_more_than_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = Config(backpressure=BackpressureConfig(max_connections=5_000))

    def instead() -> tuple[str, ...]:
        return next(finding.instead for finding in machine.too_low(config) if finding.name == "open files")

    monkeypatch.setattr(machine, "cores", lambda: 6.0)
    assert len(instead()) == 1
    monkeypatch.setattr(machine, "cores", lambda: 7.0)
    processes = int(instead()[1].removeprefix("voiceserver serve --processes "))
    advised = msgspec.structs.replace(config, server=ServerConfig(processes=processes))
    assert "open files" not in {finding.name for finding in machine.too_low(advised)}
    assert machine.connections_carried(advised) == 5_000


@pytest.mark.usefixtures("small_machine")
def test_every_fix_is_a_line_for_the_shell() -> None:
    for finding in machine.too_low(Config()):
        for line in (finding.fix, *finding.instead):
            told = subprocess.run(["bash", "-nc", line], capture_output=True, check=False)
            assert told.returncode == 0, line
            assert not line.startswith("-")


@pytest.mark.usefixtures("small_machine")
def test_too_few_files_are_not_taken_for_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 256))
    assert machine.connections_carried(Config(server=ServerConfig(processes=3))) == 3 * 16
    found = next(finding for finding in machine.inspect(Config()) if finding.name == "open files")
    assert not any("--processes" in line for line in found.instead)
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda which: unlimited)
    assert machine.connections_carried(Config()) == 512 * 2**20 // 2 // machine.CONNECTION_BYTES
    assert "open files" not in {finding.name for finding in machine.too_low(Config())}


@pytest.mark.usefixtures("small_machine")
def test_features_and_limits_of_the_processor_are_told() -> None:
    assert machine.cpu_features() == ["AVX2", "AVX-512", "VNNI (int8)"]
    assert machine.cpu_model() == "Abacus"
    assert machine.cores() == 0.5
    assert machine.memory_bytes() == 512 * 2**20


def step(stage: str, work: float, batch: int = 1, dtype: str = "", max_streams: int = 0) -> Step:
    return Step(stage, "engine", dtype, batch, 1.0, work, max_streams)


def test_what_is_carried_follows_the_stage_that_is_full_first() -> None:
    config = Config(stages=StagesConfig(stt=StageConfig(engine="x", workers=4)))
    steps = [step("vad", 0.02), step("vad", 0.001, batch=64), step("stt", 0.5), step("tts", 0.001)]
    found = engines.carries(config, steps, 64, 10_000)
    assert found.listeners == int(carried(1 / 0.001))
    assert found.talkers is not None
    assert 8 <= found.talkers <= 20  # four workers, half a second each, less than half of a call
    assert engines.carries(config, steps, 64, 5).talkers == 5


def test_another_dtype_than_the_configured_one_promises_nothing() -> None:
    steps = [step("vad", 0.01), step("vad", 0.0001, dtype="int8")]
    assert engines.carries(Config(), steps, 64, 10_000).listeners == int(carried(1 / 0.01))
    assert engines.carries(Config(), [], 64, 10) == engines.Carries(None, None, 10)


def test_the_places_of_an_engine_are_those_that_it_says_or_fewer() -> None:
    steps = [step("vad", 0.0001), step("stt", 0.001, max_streams=2), step("tts", 0.001)]

    def talkers(streams_per_worker: int) -> int | None:
        stt = StageConfig(engine="x", workers=2, streams_per_worker=streams_per_worker)
        return engines.carries(Config(stages=StagesConfig(stt=stt)), steps, 64, 10_000).talkers

    assert talkers(0) == talkers(2) == talkers(9) == talkers_for(4, SPEECH_SHARE)
    assert talkers(1) == talkers_for(2, SPEECH_SHARE)


def test_a_stage_that_was_not_measured_is_not_free() -> None:
    steps = [step("vad", 0.001), step("stt", 0.1), step("tts", 0.01)]
    everything = engines.carries(Config(), steps, 64, 10_000)
    assert everything.talkers is not None
    for missing in ("vad", "stt", "tts"):
        rest = [one for one in steps if one.stage != missing]
        found = engines.carries(Config(), rest, 64, 10_000)
        assert found.talkers is None
        assert found.listeners == (None if missing == "vad" else everything.listeners)
    silent = Config(stages=StagesConfig(tts=StageConfig(engine="none")))
    assert engines.carries(silent, steps[:2], 64, 10_000).talkers is not None
    assert engines.carries(silent, steps[:1], 64, 10_000).talkers is None


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf", "61"])
def test_the_time_of_a_measurement_has_bounds(seconds: str) -> None:
    with pytest.raises(ConfigError, match=r"--seconds: must be from 0\.01 to 60"):
        cli.doctor(seconds=float(seconds))


def test_engines_are_measured_in_a_process_of_their_own() -> None:
    stages = StagesConfig(
        vad=StageConfig(engine="tests.engines_for_tests:Echo", params={"stage": "vad"}, max_batch_size=8),
        stt=StageConfig(engine="tests.engines_for_tests:Echo", params={"stage": "stt", "max_streams": 1}),
        tts=StageConfig(engine="tests.engines_for_tests:Nobody"),
    )
    found = list(engines.measure(Config(stages=stages), 0.01))
    measured = {(one.stage, one.batch) for one in found if isinstance(one, Step) and not one.dtype}
    assert measured == {("vad", 1), ("vad", 8), ("stt", 1)}
    assert all(one.step_ms > 0 for one in found if isinstance(one, Step))
    assert {one.max_streams for one in found if isinstance(one, Step) and one.stage == "stt"} == {1}
    assert [one.stage for one in found if isinstance(one, Trouble)] == ["tts"]


def test_json_and_exit_code_are_for_scripts() -> None:
    command = [sys.executable, "-m", "voiceserver", "doctor", "--json", "--no-calibrate"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(told.stdout)
    assert report["carries"]["connections"] > 0
    assert told.returncode == int(any(finding["is_low"] for finding in report["findings"]))
    wrong = subprocess.run([*command, "--set", "server.port=x"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
