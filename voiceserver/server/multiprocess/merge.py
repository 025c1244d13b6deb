"""How the figures of several processes become those of one server. Pure.

Counts are summed. What is an age, a share or a level is not: there the worst counts, for nobody is served by an average.
Figures of single workers keep their process as a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from prometheus_client.core import Metric

from voiceserver.observability.metrics import log_lines_lost, process_restarts

_WORST: Final = ("_seconds", "_ratio", "_level", "_batch", "_ms")
_LASTING: Final = ("counter", "histogram")  # what outlives the process that counted it
_PER_WORKER: Final = "worker"


class Unready(msgspec.Struct, frozen=True, omit_defaults=True):
    """One reason why ``/readyz`` says 503. ``process``: of several the one that it is about, unless that is the one that
    answers."""

    reason: str
    stage: str | None = None
    process: int | None = None


class Series(msgspec.Struct, frozen=True, array_like=True):
    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    name: str
    kind: str
    text: str
    series: list[Series]


class Figures(msgspec.Struct, frozen=True, array_like=True):
    """All that one process tells. ``capacity``: the JSON of its ``/v1/capacity``; empty for one that has ended. ``unready``: why
    its ``/readyz`` would say 503; empty when it is ready."""

    families: list[Family]
    capacity: msgspec.Raw = msgspec.Raw()
    unready: list[Unready] = []


_decode: Final = msgspec.json.Decoder(Figures).decode


def figures_of(
    families: Iterable[Metric], capacity: bytes, process: str, unready: Sequence[Unready] = ()
) -> Figures:
    """What ``process`` tells the others."""
    told = []
    for family in families:
        series = []
        for sample in family.samples:
            labels = sample.labels
            if _PER_WORKER in labels:
                labels = {**labels, "process": process}
            series.append(Series(sample.name, labels, sample.value))
        told.append(Family(family.name, family.type, family.documentation, series))
    return Figures(told, msgspec.Raw(capacity), list(unready))


def decode(figures: bytes) -> Figures | None:
    """None for what is no figures: a place that nobody has written yet."""
    try:
        return _decode(figures) if figures else None
    except msgspec.DecodeError:
        return None


def merge(all_figures: Iterable[Figures]) -> list[Metric]:
    """The families of one server."""
    merged: dict[str, tuple[Family, dict[tuple[str, tuple[tuple[str, str], ...]], float]]] = {}
    for figures in all_figures:
        for family in figures.families:
            _, values = merged.setdefault(family.name, (family, {}))
            is_worst = family.kind == "gauge" and family.name.endswith(_WORST)
            for series in family.series:
                key = (series.name, tuple(sorted(series.labels.items())))
                known = values.get(key)
                if known is None:
                    values[key] = series.value
                else:
                    values[key] = max(known, series.value) if is_worst else known + series.value
    found = []
    for family, values in merged.values():
        metric = Metric(family.name, family.text, family.kind)
        for (name, labels), value in values.items():
            metric.add_sample(name, dict(labels), value)
        found.append(metric)
    return found


def lasting(all_figures: Iterable[Figures]) -> Figures:
    """What is kept of processes that have ended: their counts, so that no sum ever goes down."""
    kept = [family for family in merge(all_figures) if family.type in _LASTING]
    return figures_of(kept, b"null", "")


def restarts(count: int) -> Figures:
    """What the supervisor itself has to tell: how many server processes were lost and are started again."""
    return figures_of([process_restarts(count)], b"null", "")


def lost_lines(before: Mapping[str, int], now: Mapping[str, int]) -> Figures:
    """How many lines of the supervisor's own log were lost between two looks."""
    more = {reason: count - before.get(reason, 0) for reason, count in now.items()}
    return figures_of([log_lines_lost(more)], b"null", "")


def merge_capacity(capacities: Sequence[bytes]) -> bytes:
    """One ``/v1/capacity`` for all; the JSON of at least one."""
    values = [msgspec.json.decode(capacity) for capacity in capacities]
    return msgspec.json.encode(_merge_values("", [value for value in values if value is not None]))


def _merge_values(key: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {
            name: _merge_values(name, [value[name] for value in values if name in value]) for name in first
        }
    if any(value is None for value in values):  # no limit
        return None
    if isinstance(first, bool):
        return any(values)
    if isinstance(first, int | float):
        return max(values) if key.endswith(_WORST) else sum(values)
    return first
