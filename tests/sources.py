"""The project's own sources, for the tests that hold its structure: modules, what they import of each other, circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
# The folder above each package.
PACKAGES: Final = {
    "voiceserver": ROOT,
    "voiceserver_workers": ROOT / "workers",
    "voiceserver_clients": ROOT / "clients",
}


def modules(*packages: str, folder: Path | None = None) -> Iterator[tuple[str, Path]]:
    """``(dotted name, path)`` of every module. packages: all of PACKAGES if none is named; folder: above another package."""
    for package in packages or PACKAGES:
        above = folder or PACKAGES[package]
        for path in sorted((above / package).rglob("*.py")):
            yield ".".join(path.relative_to(above).with_suffix("").parts).removesuffix(".__init__"), path


def imports_among(known: Set[str], path: Path) -> set[str]:
    """The modules of ``known`` that a module imports, wherever in its text; also those that only the type checker follows."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor that they cross"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in known else node.module or "")
    return found & known


def in_circles(graph: Mapping[str, Set[str]]) -> list[str]:
    """The modules that import each other in a circle, and those on the way from one circle to another."""
    left = dict(graph)
    while True:
        imported = {found for imports in left.values() for found in imports}
        ends = [name for name, found in left.items() if name not in imported or not found & left.keys()]
        if not ends:
            return sorted(left)
        for name in ends:
            del left[name]
