"""Modules of the benchmarks do not import each other in a circle; imports that only the type checker follows count, too."""

from __future__ import annotations

from tests.sources import ROOT, imports_among, in_circles, modules

MODULES = dict(modules("benchmarks", folder=ROOT))


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imports_among(MODULES.keys(), path) for name, path in MODULES.items()}
    assert graph["benchmarks.connection"]
    assert in_circles(graph) == []
