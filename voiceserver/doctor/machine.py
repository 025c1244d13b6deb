"""What the machine is and allows, and what of that is too low for a configuration. Nothing here is slow, so ``serve`` asks too.

Rule: whatever is called too low comes with the command that raises it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voiceserver.config.cores import usable_cores
from voiceserver.config.schema import Config

EXPECTED_CONNECTIONS: Final = 10_000  # where nothing is configured
SPARE_FILES: Final = 256  # descriptors of a process that are not callers: workers, rings, logs
_LEAST_FILES: Final = 16  # for callers, which a server takes in any case
CONNECTION_BYTES: Final = 8_192  # ours and the kernel's, of one that idles
_SESSION_SHARE: Final = 0.5  # of the free memory; the engines need the rest
_LEAST_PORTS: Final = 20_000
_LEAST_NETDEV: Final = 1_000
_LEAST_MEMORY_BYTES: Final = 2 * 2**30
_FEATURES: Final = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI (int8)": ("avx512_vnni", "avx_vnni"),
    "AVX-512 bf16": ("avx512_bf16",),
    "AMX bf16": ("amx_bf16",),
    "AMX int8": ("amx_int8",),
    "NEON": ("asimd",),
    "ARM bf16": ("bf16",),
    "ARM i8mm": ("i8mm",),
}
_NVIDIA_SMI: Final = ("--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact. ``fix``: the command that helps; with it, ``why`` says what happens otherwise. Empty: all is well.
    ``instead``: other lines that help as well."""

    name: str
    value: str
    why: str = ""
    fix: str = ""
    instead: tuple[str, ...] = ()

    @property
    def is_low(self) -> bool:
        return bool(self.fix)

    @property
    def warning(self) -> str:
        return f"{self.name} is {self.value}: {self.why}"


def inspect(config: Config) -> list[Finding]:
    """Facts in the order of a report."""
    wanted = config.backpressure.max_connections or EXPECTED_CONNECTIONS
    found = [
        _open_files(wanted, config.server.processes),
        _memory(wanted),
        _cores(config.server.processes),
        Finding("CPU features", ", ".join(cpu_features()) or "none that matter"),
        _mask_routine(),
    ]
    if sys.platform == "linux":
        found += _kernel(config.server.backlog, wanted)
    return found


def too_low(config: Config) -> list[Finding]:
    return [finding for finding in inspect(config) if finding.is_low]


def connections_carried(config: Config) -> int:
    """Connections of the whole server, by open files and memory."""
    memory = int(memory_bytes() * _SESSION_SHARE) // CONNECTION_BYTES
    limits = [memory]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY:
        limits.append(max(hard - SPARE_FILES, _LEAST_FILES) * config.server.processes)
    if config.backpressure.max_connections:
        limits.append(config.backpressure.max_connections)
    return min(limits)


# ------------------------------------------------------------------------------------------------------------- facts


def _open_files(wanted: int, processes: int) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return Finding("open files", "no limit")
    value = f"{soft:,} (can be raised to {hard:,}, and is at the start)" if soft < hard else f"{hard:,}"
    needed = -(-wanted // processes) + SPARE_FILES
    if hard >= needed:
        return Finding("open files", value)
    why = f"{wanted:,} connections in {processes} process(es) need {needed:,} each; callers beyond it are refused"
    limit, count = _round_up(needed), -(-wanted // max(hard - SPARE_FILES, 1))
    instead = [f"LimitNOFILE={limit}  # in a systemd unit"]
    if count <= cores():
        instead.append(f"voiceserver serve --processes {count}")
    return Finding("open files", value, why, f"ulimit -Hn {limit}", tuple(instead))


def memory_bytes() -> int:
    """What may be used: the machine's, or less where a control group says so."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def _memory(wanted: int) -> Finding:
    total = memory_bytes()
    value = f"{total / 2**30:.1f} GiB"
    needed = max(wanted * CONNECTION_BYTES * 2, _LEAST_MEMORY_BYTES)
    if total >= needed:
        return Finding("memory", value)
    why = f"{wanted:,} connections and their engines need about {needed / 2**30:.1f} GiB"
    return Finding(
        "memory",
        value,
        why,
        f"voiceserver serve --set backpressure.max_connections={total // CONNECTION_BYTES // 2}",
    )


def cores() -> float:
    """See ``usable_cores``."""
    return usable_cores(_read)


def _cores(processes: int) -> Finding:
    count = cores()
    value = f"{count:g}"
    if processes <= count:
        return Finding("cores", value)
    why = f"{processes} server processes share them, and the workers want some, too"
    return Finding("cores", value, why, f"voiceserver serve --processes {max(int(count), 1)}")


def cpu_features() -> list[str]:
    """What makes small floating point and integer arithmetic fast here."""
    flags: set[str] = set()
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith(("flags", "Features")):
            flags = set(line.partition(":")[2].split())
            break
    return [name for name, needed in _FEATURES.items() if flags & set(needed)]


def _mask_routine() -> Finding:
    if importlib.util.find_spec("websockets.speedups") is not None:
        return Finding("frame masks", "in C")
    why = "every chunk of audio is unmasked by Python, ten times slower"
    return Finding(
        "frame masks", "in Python", why, "pip install --force-reinstall --only-binary :all: websockets"
    )


def _kernel(backlog: int, wanted: int) -> list[Finding]:
    found = []
    for name, least, why in (
        (
            "net.core.somaxconn",
            backlog,
            "a burst of callers beyond it is dropped before the server sees them",
        ),
        ("net.core.netdev_max_backlog", _LEAST_NETDEV, "packets beyond it are dropped in a burst"),
        ("net.netfilter.nf_conntrack_max", wanted * 2, "the firewall forgets connections beyond it"),
    ):
        value = _sysctl(name)
        if value.isdigit():
            is_low = int(value) < least
            found.append(
                Finding(name, value, why, f"sysctl -w {name}={least}") if is_low else Finding(name, value)
            )
    if _sysctl("net.ipv4.tcp_syncookies") == "0":  # with cookies, a full queue loses nobody
        name, value = "net.ipv4.tcp_max_syn_backlog", _sysctl("net.ipv4.tcp_max_syn_backlog")
        why = "handshakes beyond it are dropped in a burst"
        fix = f"sysctl -w {name}={backlog}" if value.isdigit() and int(value) < backlog else ""
        found.append(Finding(name, value, why if fix else "", fix))
    ports = _sysctl("net.ipv4.ip_local_port_range").split()
    if len(ports) == 2:
        count = int(ports[1]) - int(ports[0]) + 1
        name, value = "net.ipv4.ip_local_port_range", f"{count:,} ports"
        why = "a proxy or load generator on this machine runs out of ports"
        fix = f'sysctl -w {name}="10240 65535"' if count < _LEAST_PORTS else ""
        found.append(Finding(name, value, why if fix else "", fix))
    reuse = _sysctl("net.ipv4.tcp_tw_reuse")
    if reuse:
        name = "net.ipv4.tcp_tw_reuse"
        why = "ports of a proxy on this machine stay taken for a minute after each call"
        found.append(
            Finding(name, reuse, why, f"sysctl -w {name}=1") if reuse == "0" else Finding(name, reuse)
        )
    return found


def gpus() -> list[str]:
    """One line for each, as its driver tells; the driver is asked in a process of its own."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run([program, *_NVIDIA_SMI], capture_output=True, text=True, timeout=20, check=True)
        return [line.strip() for line in told.stdout.splitlines() if line.strip()]
    return []


def cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return os.uname().machine


def _sysctl(name: str) -> str:
    return _read("/proc/sys/" + name.replace(".", "/"))


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _round_up(files: int) -> int:
    return 1 << (files - 1).bit_length()
