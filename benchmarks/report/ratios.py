"""Every benchmark boiled down to ratios to the peer of the same run: what can be compared between days and machines.

Rule: a ratio is written so that more is better, and a figure without a peer in its run is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import truediv
from typing import Any, Final

Document = dict[str, Any]


def _ring_rounds(document: Document) -> Iterator[tuple[str, list[float], list[float]]]:
    """Name of the ratio, CPU of the peer and of ours in each round; earlier results have the median only."""
    by_size: dict[int, dict[str, list[float]]] = {}
    for row in document["results"]:
        rounds = row["cpu_us_of_rounds"] if "cpu_us_of_rounds" in row else [row["cpu_us"]]
        by_size.setdefault(row["size_bytes"], {})[row["transport"]] = rounds
    for size, of_transports in by_size.items():
        for name, theirs in of_transports.items():
            if name not in ("slot ring", "memcpy in cache"):
                yield f"{size} B, {name}: CPU against ours", theirs, of_transports["slot ring"]


def _ring(document: Document) -> Iterator[tuple[str, float]]:
    """Of the best round: rounds of unchanged code differ twofold, and their best and worst overlap with those of another run."""
    for name, theirs, ours in _ring_rounds(document):
        yield name, max(map(truediv, theirs, ours))


def _connection(document: Document) -> Iterator[tuple[str, float]]:
    for peer, ratios in document["ratios"].items():
        for name, ratio in ratios.items():
            more_is_better = name.endswith("_second")
            yield f"{peer}: {name} against ours", 1 / ratio if more_is_better and ratio else ratio


def _batching(document: Document) -> Iterator[tuple[str, float]]:
    for model, rates in document["designs"].items():
        for name, rate in rates.items():
            if name != "one by one":
                yield f"{model}: {name} against one by one", rate / rates["one by one"]
    for model, dtypes in document["gains"].items():
        for dtype, gains in dtypes.items():
            for batch in ("8", "32"):
                yield f"{model} {dtype}: gain at batch {batch}", gains[batch]


def _serving(document: Document) -> Iterator[tuple[str, float]]:
    for row in document["rows"]:
        ours = next(r for r in document["rows"] if r["side"] == "ours" and r["sessions"] == row["sessions"])
        if row["side"] != "ours" and row["audio_s_per_cpu_s"]:
            name = f"{row['sessions']} sessions: audio per CPU against {row['side']}"
            yield name, ours["audio_s_per_cpu_s"] / row["audio_s_per_cpu_s"]


def _overload(document: Document) -> Iterator[tuple[str, float]]:
    theirs = {row["load"]: row for row in document["naive"]}
    for row in document["voiceserver"]:
        peer = theirs.get(row["load"])
        if peer is not None and peer["goodput"]:
            yield f"goodput at {row['load']} against the usual design", row["goodput"] / peer["goodput"]


_OF: Final[dict[str, Callable[[Document], Iterator[tuple[str, float]]]]] = {
    "ring": _ring,
    "connection": _connection,
    "batching": _batching,
    "serving": _serving,
    "overload": _overload,
}


def ratios_of(document: Document) -> dict[str, float]:
    """Name -> ratio, more is better. Empty for a benchmark without peers."""
    find = _OF.get(document["benchmark"])
    return {} if find is None else {name: round(ratio, 4) for name, ratio in find(document)}


def floors_of(document: Document) -> dict[str, float]:
    """Name -> the lowest ratio of any round, where rounds are stored: what unchanged code comes up to."""
    if document["benchmark"] != "ring":
        return {}
    rounds = _ring_rounds(document)
    return {name: round(min(map(truediv, theirs, ours)), 4) for name, theirs, ours in rounds}
