"""What is too low is said with its fix, and what a machine carries follows from what was measured on it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import msgspec
import pytest

from voiceserver.config import BackpressureConfig, Config, ServerConfig, StageConfig, StagesConfig
from voiceserver.doctor import engines, machine
from voiceserver.doctor.engines import Step, Trouble
from voiceserver.limit import carried

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
    assert "LimitNOFILE=16384" in low["open files"].fix
    assert "10,000 connections" in low["open files"].warning
    assert "0.5" in low["cores"].value


@pytest.mark.usefixtures("small_machine")
def test_the_advised_number_of_processes_is_enough() -> None:
    config = Config(backpressure=BackpressureConfig(max_connections=5_000))
    fix = next(finding.fix for finding in machine.too_low(config) if finding.name == "open files")
    processes = int(fix.rpartition("--processes ")[2].rstrip(")"))
    advised = msgspec.structs.replace(config, server=ServerConfig(processes=processes))
    assert "open files" not in {finding.name for finding in machine.too_low(advised)}
    assert machine.connections_carried(advised) == 5_000


@pytest.mark.usefixtures("small_machine")
def test_features_and_limits_of_the_processor_are_told() -> None:
    assert machine.cpu_features() == ["AVX2", "AVX-512", "VNNI (int8)"]
    assert machine.cpu_model() == "Abacus"
    assert machine.cores() == 0.5
    assert machine.memory_bytes() == 512 * 2**20


def step(stage: str, work: float, batch: int = 1, dtype: str = "") -> Step:
    return Step(stage, "engine", dtype, batch, 1.0, work)


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
    assert [one.stage for one in found if isinstance(one, Trouble)] == ["tts"]


def test_json_and_exit_code_are_for_scripts() -> None:
    command = [sys.executable, "-m", "voiceserver", "doctor", "--json", "--no-calibrate"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(told.stdout)
    assert report["carries"]["connections"] > 0
    assert told.returncode == int(any(finding["is_low"] for finding in report["findings"]))
    wrong = subprocess.run([*command, "--set", "server.port=x"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
