"""Has something become worse? Ratios to the peer of the same run, then and now.

``python -m benchmarks.compare OLD.json [NEW.json]``: OLD is an earlier ``results/summary.json`` (or the result of one benchmark),
NEW the present one. Machines differ and so do days; the ratio to a peer measured in the same minute hardly does. Exit code 1
when a ratio fell by more than ``--tolerance``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from benchmarks.ratios import Document, ratios_of
from benchmarks.report import RESULTS, print_table

SUMMARY = "summary"
TOLERANCE = 0.2


class Change(NamedTuple):
    """factor: now / then, more is better."""

    benchmark: str
    name: str
    then: float
    now: float

    @property
    def factor(self) -> float:
        return self.now / self.then


def read_ratios(path: Path) -> dict[str, dict[str, float]]:
    """Benchmark -> ratios, of a summary or of one result. Raises ValueError for anything else."""
    try:
        document: Document = json.loads(path.read_text())
        name = document["benchmark"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of a benchmark: {error}") from None
    return document["ratios"] if name == SUMMARY else {name: ratios_of(document)}


def summarise(results: Path = RESULTS) -> dict[str, dict[str, float]]:
    """The ratios of all results that are there."""
    found = {}
    for path in sorted(results.glob("*.json")):
        document = json.loads(path.read_text())
        ratios = ratios_of(document)
        if ratios:
            found[document["benchmark"]] = ratios
    return found


def changes(then: dict[str, dict[str, float]], now: dict[str, dict[str, float]]) -> list[Change]:
    """Of what both have, the worst first."""
    both = [
        Change(benchmark, name, ratio, now[benchmark][name])
        for benchmark, ratios in then.items()
        for name, ratio in ratios.items()
        if name in now.get(benchmark, {}) and ratio > 0
    ]
    return sorted(both, key=lambda change: change.factor)


def report(
    then: dict[str, dict[str, float]], now: dict[str, dict[str, float]], tolerance: float
) -> list[Change]:
    """Print what fell by more than ``tolerance``; the list of it. Raises ValueError when nothing can be compared."""
    found = changes(then, now)
    if not found:
        raise ValueError("the two have no ratio in common")
    worse = [change for change in found if change.factor < 1 - tolerance]
    if worse:
        rows = [(f"{c.benchmark}: {c.name}", c.then, c.now, f"{c.factor - 1:+.0%}") for c in worse]
        print_table("Worse than it was", ("ratio to the peer, more is better", "then", "now", ""), rows)
    print(f"{len(found)} ratios compared, {len(worse)} fell by more than {tolerance:.0%}")
    return worse


def compare(
    old: Path,
    new: Annotated[Path | None, typer.Argument(help="Default: the results that are there.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, max=1)] = TOLERANCE,
) -> None:
    """Flag regressions by ratio."""
    try:
        worse = report(read_ratios(old), read_ratios(new) if new else summarise(), tolerance)
    except ValueError as error:
        print(error)
        raise typer.Exit(2) from None
    if worse:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(compare)
