"""What all benchmarks share: the machine's fingerprint, percentiles, CPU time, tables and the result files.

Rule: a figure is stored with the machine that it was measured on, or not at all.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from voiceserver.config.cores import usable_cores

RESULTS = Path(__file__).resolve().parents[1] / "results"

_PACKAGES = ("uvloop", "websockets", "picows", "msgspec", "numpy", "torch", "silero-vad", "pocketsphinx")


def fingerprint() -> dict[str, str | int | float | dict[str, str]]:
    """What a figure depends on: processor, cores, memory, kernel, Python, package versions, and the date
    (UTC).
    """
    return {
        "cpu_model": _cpu_model(),
        "cores": max(int(usable_cores()), 1),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "architecture": platform.machine(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": _package_versions(),
        "load_1m": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def store(name: str, payload: Mapping[str, object]) -> Path:
    """Write ``results/NAME.json``: the payload under its own keys, the fingerprint under ``machine``."""
    RESULTS.mkdir(exist_ok=True)
    return store_at(RESULTS / f"{name}.json", name, payload)


def store_at(path: Path, name: str, payload: Mapping[str, object]) -> Path:
    """``store`` to another place."""
    document = {"benchmark": name, "machine": fingerprint(), **payload}
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(document, indent=2, sort_keys=False) + "\n")
    partial.replace(path)
    return path


def percentiles(values: Iterable[float], at: Sequence[float] = (50, 90, 95, 99, 99.9)) -> dict[str, float]:
    """Nearest-rank percentiles (never an interpolated value) with count, mean, min and max: ``{"p50": ...}``.

    Raises ValueError for no values: a percentile of nothing is not a figure.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("percentiles of no values")
    count = len(ordered)
    summary = {f"p{rank:g}": ordered[max(0, math.ceil(round(rank * count / 100, 9)) - 1)] for rank in at}
    return {
        "count": float(count),
        "mean": math.fsum(ordered) / count,
        "min": ordered[0],
        **summary,
        "max": ordered[-1],
    }


def cpu_seconds(pid: int | None = None) -> float:
    """User and system CPU seconds of this process so far; with ``pid`` those of another live one (Linux).

    Another process is read in clock ticks of 10 ms, so give it work for seconds.
    """
    if pid is None or pid == os.getpid():
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss_bytes(pid: int | None = None) -> int:
    """Memory of a process with shared pages divided among their users (Linux); RSS would count them for each."""
    for line in Path(f"/proc/{pid or 'self'}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel reports no PSS")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> None:
    """A table on standard output: the first column left, figures right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=note or None, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    # A pipe or a log has no width of its own, and a table that folds its figures is of no use there.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        if value == 0 or abs(value) >= 100:
            return f"{value:,.0f}"
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
