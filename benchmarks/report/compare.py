"""Has something become worse? Ratios to the peer of the same run, then and now.

``python -m benchmarks.report.compare OLD.json [NEW.json]``: OLD is an earlier ``results/summary.json`` (or the result of one
benchmark), NEW the present one. The ratio to a peer of the same run depends on the machine and the day much less than a
figure by itself, but it does: most repeat within a tenth, some that hang on where the kernel puts two processes do not. So
where OLD has the rounds of a benchmark, NEW's best is held against the worst of them, and ``benchmarks.run --compare``
measures again what fell. Exit code 1 when a ratio fell by more than ``--tolerance`` or is gone; 2 when a file is no result.
"""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import typer

from benchmarks.report.ratios import Document, floors_of, ratios_of
from benchmarks.report.results import RESULTS, print_table
from voiceserver_clients.command import complain

SUMMARY = "summary"
TOLERANCE = 0.2


Ratios = dict[str, dict[str, float]]  # of each benchmark, by name


class Change(NamedTuple):
    """now: None for what is gone."""

    benchmark: str
    name: str
    then: float
    now: float | None

    @property
    def factor(self) -> float:
        """now / then, more is better."""
        return 0.0 if self.now is None else self.now / self.then


def read_ratios(path: Path, *, lowest: bool = False) -> Ratios:
    """Of a summary or of one result; ``lowest``: of any round. Raises ValueError for anything else."""
    try:
        document: Document = json.loads(path.read_text())
        name = document["benchmark"]
        if name == SUMMARY:
            found, floors = document["ratios"], document.get("floors", {})
        else:
            found, floors = {name: ratios_of(document)}, {name: floors_of(document)}
        ratios, floors = msgspec.convert((found, floors), tuple[Ratios, Ratios])
    except KeyError as error:
        raise ValueError(f"{path} is no result of a benchmark: it has no {error}") from None
    except (
        OSError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        raise ValueError(f"{path} is no result of a benchmark: {error}") from None
    return {name: found | (floors.get(name, {}) if lowest else {}) for name, found in ratios.items()}


def summarise(results: Path = RESULTS, without: Container[str] = (), *, lowest: bool = False) -> Ratios:
    """The ratios of all results that are there. Raises ValueError for one that cannot be read."""
    found: Ratios = {}
    for path in sorted(results.glob("*.json")):
        if path.stem != SUMMARY:
            found |= read_ratios(path, lowest=lowest)
    return {name: ratios for name, ratios in found.items() if ratios and name not in without}


def only(ratios: Ratios, names: Container[str] | None) -> Ratios:
    """Those of the benchmarks ``names``; None: all."""
    return {name: found for name, found in ratios.items() if names is None or name in names}


def best_of(first: Ratios, second: Ratios) -> Ratios:
    """The better of two runs, ratio by ratio."""
    best = {}
    for benchmark in first | second:
        one, other = first.get(benchmark, {}), second.get(benchmark, {})
        best[benchmark] = {name: max(one.get(name, 0.0), other.get(name, 0.0)) for name in one | other}
    return best


def changes(then: Ratios, now: Ratios) -> list[Change]:
    """Of all that was there then, the worst first."""
    found = [
        Change(benchmark, name, ratio, now.get(benchmark, {}).get(name))
        for benchmark, ratios in then.items()
        for name, ratio in ratios.items()
        if ratio > 0
    ]
    return sorted(found, key=lambda change: change.factor)


def fallen(then: Ratios, now: Ratios, tolerance: float) -> list[Change]:
    """What fell by more than ``tolerance`` or is gone."""
    return [change for change in changes(then, now) if change.now is None or change.factor < 1 - tolerance]


def report(then: Ratios, now: Ratios, tolerance: float) -> list[Change]:
    """Print what is worse; the list of it. Raises ValueError when nothing can be compared."""
    found = changes(then, now)
    gone = sum(change.now is None for change in found)
    if gone == len(found):
        raise ValueError("the two have no ratio in common")
    worse = fallen(then, now, tolerance)
    if worse:
        rows = [
            (
                f"{c.benchmark}: {c.name}",
                c.then,
                *(("gone", "") if c.now is None else (c.now, f"{c.factor - 1:+.0%}")),
            )
            for c in worse
        ]
        print_table("Worse than it was", ("ratio to the peer, more is better", "then", "now", ""), rows)
    fell = f"{len(worse) - gone} fell by more than {tolerance:.0%}"
    print(f"{len(found) - gone} ratios compared, {fell}, {gone} are gone")
    return worse


def compare(
    old: Path,
    new: Annotated[Path | None, typer.Argument(help="Default: the results that are there.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, max=1)] = TOLERANCE,
) -> None:
    """Flag regressions by ratio."""
    try:
        then, now = read_ratios(old, lowest=True), read_ratios(new) if new else summarise()
        if new is not None and len(now) == 1:  # the result of one benchmark says nothing of the others
            then = only(then, now)
        worse = report(then, now, tolerance)
    except ValueError as error:
        raise typer.Exit(complain(str(error))) from None
    if worse:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(compare)
