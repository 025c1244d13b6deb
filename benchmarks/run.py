"""All benchmarks, one after the other, in a quarter of an hour; then charts, README's tables and the summary.

``python -m benchmarks.run [ring turn ...] [--compare FILE]``. Each runs in a process of its own with the arguments below, chosen
so that the whole fits. ``--compare`` takes an earlier ``results/summary.json`` and flags what became worse against its peer. The
soak here is a short one; the long one (``python -m benchmarks.soak``) is run by hand.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.compare import SUMMARY, TOLERANCE, read_ratios, report, summarise
from benchmarks.report import RESULTS, print_table, store
from benchmarks.report_tables import render
from clients.command import complain

# About 33 + 148 + 53 + 44 + 98 + 249 + 81 + 149 s on two cores, and 35 s for the soak.
PLAN: Final[dict[str, Sequence[str]]] = {
    "ring": ("--seconds=0.2", "--rounds=3"),
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
    try:
        then = read_ratios(against) if against is not None else None
    except ValueError as error:
        raise typer.Exit(complain(str(error))) from None
    took: list[tuple[str, float, str]] = []
    for name in chosen:
        print(f"== {name}", flush=True)
        began_s = time.monotonic()
        code = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *PLAN[name]], check=False
        ).returncode
        is_good = code == 0 or (code == 1 and name in _JUDGED)
        took.append((name, time.monotonic() - began_s, "" if is_good else f"failed with {code}"))
    whole_s = sum(seconds for _, seconds, _ in took)
    print_table("Benchmarks", ("", "seconds", ""), [*took, ("in all", whole_s, "")])
    now = summarise()
    print(f"stored in {store(SUMMARY, {'ratios': now})}")
    for path in render():
        print(f"rendered {path}")
    try:
        worse = report(then, now, tolerance) if then is not None else []
    except ValueError as error:
        raise typer.Exit(complain(str(error))) from None
    if worse or any(problem for *_, problem in took):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(run)
