"""``metrics.md``: every metric with its type, its labels and its meaning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from docs.generate.page import Page, Section
from voiceserver.capacity.admission import Admission
from voiceserver.capacity.controller import CapacityController
from voiceserver.observability.metrics import Metrics, of_observers
from voiceserver.server.multiprocess import merge
from voiceserver.session.settings import ServerSnapshot

HEADS: Final = ("metric", "type", "labels", "meaning")


class Described(NamedTuple):
    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def observed() -> Metrics:
    """The metrics of a server that has everything to observe."""
    metrics = Metrics()
    metrics.observe_state(lambda: False, ())
    metrics.observe_pools(list)
    admission = Admission(0, 1, "connection", 1.0)
    controller = CapacityController(
        {}, admission, ServerSnapshot(), is_learned=True, windows_ms={}, on_change=print, now_ms=0.0
    )
    metrics.observe_admission(admission, controller, list)
    return metrics


def described() -> Iterator[Described]:
    """Every metric of one process, and of several: the count of restarts."""
    for collector in observed()._registry._collector_to_names:
        labels = tuple(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            yield _described(family, labels or tuple(getattr(family, "_labelnames", ())))
    for family in of_observers(0):
        yield _described(family, tuple(getattr(family, "_labelnames", ())))
    (restarts,) = merge.restarts(0).families
    yield Described(f"{restarts.name}_total", restarts.kind, (), restarts.text)


def _described(family: Any, labels: tuple[str, ...]) -> Described:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return Described(name, family.type, labels, family.documentation)


def page() -> Page:
    rows = [
        (f"`{one.name}`", one.kind, ", ".join(f"`{label}`" for label in one.labels), one.meaning)
        for one in described()
    ]
    own = [row for row in rows if row[0].startswith("`voiceserver_")]
    return Page(
        "metrics",
        "Metrics",
        "`voiceserver/observability`",
        "`/metrics` speaks Prometheus; all times are seconds. A histogram has the samples `_bucket`, `_sum` and `_count`. With "
        "several server processes the values are those of all of them.",
        [
            Section("Of voiceserver", "", HEADS, own),
            Section("Of the process", "On Linux only.", HEADS, [row for row in rows if row not in own]),
        ],
    )
