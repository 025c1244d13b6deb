"""The layering rules, read from the sources: who may import whom, and who may know time, sockets and the event loop.

R1 ``voiceserver_workers`` imports neither ``voiceserver`` nor ``voiceserver_clients``.
R2 ``voiceserver`` imports of ``voiceserver_workers`` only ``http``, ``ipc``, ``parameters``, ``models`` and ``registry``;
importing it loads neither torch nor numpy.
   ``voiceserver.testing`` tests engines, so its modules may know more; no other module imports them.
R3 a module of ``voiceserver`` is pure (no event loop, socket, time or os) unless the table below says what it may know.
R4 event-loop code lives in the shell only, and in the thread of a worker that waits for an endpoint.
``voiceserver_clients`` share the vocabulary of the server (``events``, ``errors``, ``wire``) and its hints about missing packages
(``installation``), nothing else.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sources import ROOT, modules

LOOP = frozenset({"asyncio", "anyio", "uvloop"})
WORLD = LOOP | {"websockets", "socket", "time", "os", "threading", "multiprocessing", "subprocess", "select"}

# What a module of voiceserver may know of the world. A module that is not named here is pure (R3).
SANS_IO = frozenset({"websockets"})
SHELL = WORLD
MAY_KNOW: dict[str, frozenset[str]] = {
    "voiceserver.cli": SHELL,
    "voiceserver.doctor": SHELL,
    "voiceserver.pool": SHELL,
    "voiceserver.server": SHELL,
    "voiceserver.testing": SHELL,
    "voiceserver.config.cores": frozenset({"os"}),
    "voiceserver.config.environment": frozenset({"os"}),
    "voiceserver.observability.log_writer": frozenset({"os", "select", "threading", "time"}),
    "voiceserver.observability": frozenset({"os", "time"}),
    "voiceserver.transport.connection": SHELL,
    "voiceserver.transport.services": frozenset({"asyncio"}),
    "voiceserver.transport.ticks": frozenset({"time"}),
    "voiceserver.transport.websocket": SANS_IO,
    "voiceserver.transport.handshake": SANS_IO,
    "voiceserver.transport.http": SANS_IO,
}
HAS_LOOP = {
    "voiceserver.cli",
    "voiceserver.pool",
    "voiceserver.server",
    "voiceserver.testing",
    "voiceserver.transport.connection",
    "voiceserver.transport.services",
    # An engine that asks an endpoint waits in a thread of its worker.
    "voiceserver_workers.http.requests",
}


def imports_of(path: Path) -> set[str]:
    """Dotted names imported at run time, wherever in the module; what is under TYPE_CHECKING does not run."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(), str(path))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer that they cross"
            found.update({node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)})
        waiting += ast.iter_child_nodes(node)
    return found


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def packages_of(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def knowledge_of(module: str) -> frozenset[str]:
    allowed = [known for name, known in MAY_KNOW.items() if is_within(module, name)]
    return allowed[0] if allowed else frozenset()


SERVER = [pytest.param(name, path, id=name) for name, path in modules("voiceserver")]
PRODUCT = [one for one in SERVER if not is_within(str(one.values[0]), "voiceserver.testing")]
CLIENTS = [pytest.param(name, path, id=name) for name, path in modules("voiceserver_clients")]
WORKERS = [pytest.param(name, path, id=name) for name, path in modules("voiceserver_workers")]


@pytest.mark.parametrize(("name", "path"), WORKERS)
def test_workers_know_nobody(name: str, path: Path) -> None:
    assert not packages_of(imports_of(path)) & {"voiceserver", "voiceserver_clients"}


@pytest.mark.parametrize(("name", "path"), PRODUCT)
def test_server_knows_the_ring_the_registry_and_the_models_only(name: str, path: Path) -> None:
    of_workers = {found for found in imports_of(path) if is_within(found, "voiceserver_workers")} - {
        "voiceserver_workers"
    }
    strangers = {
        found
        for found in of_workers
        if not is_within(found, "voiceserver_workers.http")
        and not is_within(found, "voiceserver_workers.ipc")
        and not is_within(found, "voiceserver_workers.registry")
        and not is_within(found, "voiceserver_workers.parameters")
        and not is_within(found, "voiceserver_workers.models")
    }
    assert not strangers
    assert not packages_of(imports_of(path)) & {"voiceserver_clients", "torch", "numpy", "soxr", "tests"}
    assert not {found for found in imports_of(path) if is_within(found, "voiceserver.testing")}


@pytest.mark.parametrize(("name", "path"), SERVER)
def test_server_modules_are_pure_unless_they_are_the_shell(name: str, path: Path) -> None:
    assert not (packages_of(imports_of(path)) & WORLD) - knowledge_of(name)


@pytest.mark.parametrize(("name", "path"), [*SERVER, *WORKERS])
def test_event_loop_code_is_in_the_shell(name: str, path: Path) -> None:
    if not any(is_within(name, shell) for shell in HAS_LOOP):
        assert not packages_of(imports_of(path)) & LOOP
        tree = ast.parse(path.read_text())
        assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)]


@pytest.mark.parametrize(("name", "path"), CLIENTS)
def test_clients_share_only_the_vocabulary(name: str, path: Path) -> None:
    vocabulary = (
        "voiceserver.events",
        "voiceserver.errors",
        "voiceserver.wire",
        "voiceserver.installation",
    )
    of_server = {found for found in imports_of(path) if is_within(found, "voiceserver")} - {"voiceserver"}
    assert not {found for found in of_server if not any(is_within(found, known) for known in vocabulary)}
    assert not packages_of(imports_of(path)) & {"voiceserver_workers", "tests", "torch"}


@pytest.mark.parametrize(
    "module",
    [
        "voiceserver",
        "voiceserver.server.server",
        "voiceserver.cli",
        "voiceserver.testing",
        "voiceserver_workers.ipc.channel",
    ],
)
def test_importing_the_server_loads_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'soxr', 'scipy'}} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout.strip() == "[]"


def test_the_tables_name_modules_that_exist() -> None:
    names = {name for name, _ in modules("voiceserver", "voiceserver_workers")}
    assert set(MAY_KNOW) | HAS_LOOP <= names
