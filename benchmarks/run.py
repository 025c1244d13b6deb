"""All benchmarks, one after the other, in a quarter of an hour; then charts, README's tables and the summary.

``python -m benchmarks.run [ring turn ...] [--compare FILE]``. Each runs in a process of its own with the arguments below, chosen
so that the whole fits. ``--compare`` takes an earlier ``results/summary.json`` and flags what became worse against its peer. What
fell is measured up to two more times and the best counts; a ratio that is gone is flagged, too. The soak here is a short one; the
long one (``python -m benchmarks.soak``) is run by hand.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.report.compare import (
    SUMMARY,
    TOLERANCE,
    Change,
    Ratios,
    best_of,
    fallen,
    only,
    read_ratios,
    report,
    summarise,
)
from benchmarks.report.results import RESULTS, print_table, store
from benchmarks.report.tables import render
from benchmarks.running import INTERRUPTED
from voiceserver_clients import lifeline
from voiceserver_clients.command import complain

# About 40 + 148 + 53 + 44 + 98 + 249 + 81 + 149 s on two cores, and 35 s for the soak.
PLAN: Final[dict[str, Sequence[str]]] = {
    "ring": ("--seconds=0.15", "--rounds=4"),
    "connection": (),
    "batching": (),
    "turn": ("--turns=12",),
    "sessions": ("--sessions=1000", "--seconds=10", "--largest"),
    "overload": ("--seconds=8",),
    "recovery": ("--callers=3", "--within=90"),
    "serving": ("--seconds=2",),
    "soak": (
        "--connections=10000",
        "--talkers=100",
        "--minutes=0.3",
        f"--out={RESULTS / 'soak-short.json'}",
    ),
}
# A verdict that is not as wanted is a figure, and not a failure of the benchmark.
MORE: Final = 2  # runs of a benchmark whose ratios fell: a machine has its moments, and only what falls in all of them is worse
_JUDGED: Final = ("soak",)


def run(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Some of {', '.join(PLAN)}; default: all.")
    ] = None,
    against: Annotated[Path | None, typer.Option("--compare", help="An earlier summary.json.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, max=1)] = TOLERANCE,
) -> None:
    """Run benchmarks, render what they found."""
    chosen = names or list(PLAN)
    unknown = [name for name in chosen if name not in PLAN]
    if unknown:
        raise typer.Exit(complain(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(PLAN)}"))
    then: Ratios = {}
    if against is not None:
        try:
            then = only(read_ratios(against, lowest=True), names)
        except ValueError as error:
            raise typer.Exit(complain(str(error))) from None
        if not then:
            raise typer.Exit(complain(f"{against} has no ratio of {', '.join(chosen)}"))
    try:
        worse, failed = _run(chosen, then, tolerance)
    except KeyboardInterrupt:
        raise typer.Exit(complain("interrupted", INTERRUPTED)) from None
    except ValueError as error:
        raise typer.Exit(complain(str(error))) from None
    if worse or failed:
        raise typer.Exit(1)


def _run(chosen: Sequence[str], then: Ratios, tolerance: float) -> tuple[list[Change], list[str]]:
    """What became worse than ``then``, and what failed: of that no figures are compared, for those that are stored are old ones.
    Raises ValueError for stored results that cannot be read."""
    took = [_measure(name) for name in chosen]
    failed = [name for name, _, problem in took if problem]
    then = {name: ratios for name, ratios in then.items() if name not in failed}
    now = summarise(without=failed)
    for name in chosen:
        for _ in range(MORE):
            worse = fallen(then, now, tolerance)
            if not any(change.benchmark == name for change in worse if change.now is not None):
                break
            took.append(_measure(name, " again"))
            if not took[-1][2]:
                now = best_of(now, summarise(without=failed))
    failed = [name for name, _, problem in took if problem]
    whole_s = sum(seconds for _, seconds, _ in took)
    print_table("Benchmarks", ("", "seconds", ""), [*took, ("in all", whole_s, "")])
    floors = summarise(without=failed, lowest=True)
    print(f"stored in {store(SUMMARY, {'ratios': now, 'floors': floors})}")
    for path in render():
        print(f"rendered {path}")
    return report(then, now, tolerance) if then else [], failed


def _measure(name: str, again: str = "") -> tuple[str, float, str]:
    """Run it: its name, the seconds that it took, and what went wrong."""
    print(f"== {name}{again}", flush=True)
    began_s = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *PLAN[name]]
    with subprocess.Popen(lifeline.bound(command)) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it has been told, too, and stops what it started
            raise
    is_good = code == 0 or (code == 1 and name in _JUDGED)
    return name, time.monotonic() - began_s, "" if is_good else f"failed with {code}"


if __name__ == "__main__":
    typer.run(run)
