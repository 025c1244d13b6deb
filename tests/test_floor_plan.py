"""The floor plan of ``voiceserver``: its packages, bottom up, and the three things that live in one place only (R5).

A package imports only what stands before it. Imports under ``TYPE_CHECKING`` count: a circle that only the type checker walks
is still a circle for the reader.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import ROOT, imports_among, in_circles, modules

SERVER = ROOT / "voiceserver"

# Bottom up. Packages of one floor do not import each other.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "installation"}),
    frozenset({"events"}),
    frozenset({"config"}),
    frozenset({"session"}),
    frozenset({"wire", "pool"}),
    frozenset({"capacity", "announcements"}),
    frozenset({"observability"}),
    frozenset({"transport"}),
    frozenset({"server", "doctor"}),
    frozenset({"testing"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_CODE = frozenset({"web", "__init__"})
MOST_ROOMS = 16


MODULES = dict(modules("voiceserver"))


def imports_of(name: str, path: Path) -> set[str]:
    """The other modules of ``voiceserver`` that one imports."""
    return imports_among(MODULES.keys(), path) - {name, "voiceserver"}


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(name) for name in MODULES} - WITHOUT_CODE
    assert rooms <= set(FLOOR_OF)


def test_there_are_few_rooms() -> None:
    rooms = [path for path in SERVER.iterdir() if path.suffix == ".py" or path.is_dir()]
    named = {path.stem for path in rooms} - {"__init__", "__main__", "__pycache__"}
    assert len(named) <= MOST_ROOMS


def test_packages_import_only_what_stands_below_them() -> None:
    upward = [
        f"{name} imports {found}"
        for name, path in MODULES.items()
        for found in imports_of(name, path)
        if room_of(name) != room_of(found)
        and room_of(found) in FLOOR_OF
        and FLOOR_OF[room_of(found)] >= FLOOR_OF.get(room_of(name), -1)
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert in_circles({name: imports_of(name, path) for name, path in MODULES.items()}) == []


def texts_outside(*rooms: str) -> Iterator[tuple[str, ast.AST]]:
    for name, path in MODULES.items():
        if not any(name == room or name.startswith(f"{room}.") for room in rooms):
            for node in ast.walk(ast.parse(path.read_text(), str(path))):
                yield name, node


def test_the_environment_is_read_in_one_place() -> None:
    readers = {
        name
        for name, node in texts_outside("voiceserver.config.environment")
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and ast.unparse(node.value) == "os"
    }
    assert readers == set()


# What the name of a package is given to; ``voiceserver_workers`` is a package and a metric.
IMPORTS = ("importlib.util.find_spec", "importlib.import_module")
METRIC = re.compile(r"voiceserver_[a-z_]+|process_[a-z_]+_(seconds|bytes|fds)")


def test_metrics_are_named_in_one_place() -> None:
    nodes = list(texts_outside("voiceserver.observability"))
    calls = [node for _, node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORTS]
    packages = {id(argument) for call in calls for argument in call.args}
    named = {
        f"{name}: {node.value}"
        for name, node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and METRIC.fullmatch(node.value)
        if id(node) not in packages
    }
    assert named == set()


def test_records_on_the_ring_are_encoded_and_decoded_in_one_place() -> None:
    """Their JSON keys are fields of the structs of ``voiceserver_workers.ipc.messages``."""
    texts = [*(ROOT / "voiceserver" / "pool").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]
    handmade = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in texts
        if path.name != "messages.py" and "chat" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.loads", "json.dumps")
    ]
    assert handmade == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_relative_imports_hide_the_floor_that_they_cross(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
