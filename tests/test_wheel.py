"""The wheel, installed into an environment of its own, beside a project that calls its own folders ``workers`` and ``clients``.

Dependencies are those of the environment that runs the tests, through a path file: nothing is asked of a package index. The
package itself comes from the wheel alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import textwrap
import venv
import wave
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.serving import ServerProcess
from tests.pages import crawl
from tests.sources import ROOT
from tests.voiceserver.testing.test_kit import AGENT, ENGINE, WIRE

LIMIT_S = 100
OURS = ("voiceserver", "voiceserver_workers", "voiceserver_clients")
CLASHES = ("workers", "clients", "tests", "docs", "benchmarks", "examples")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed: make install"
)


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment with the wheel in it, and a project that uses it."""

    wheel: Path
    programs: Path
    project: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))
        }
        return {**kept, "PYTHONPATH": str(self.project), "PYTHONUNBUFFERED": "1"}

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=self.project, env=self.environment, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=LIMIT_S)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=LIMIT_S)
    (site_packages,) = (folder / "venv").glob("lib/*/site-packages")
    # Python reads no path file in a folder that a path file adds, so the editable install there stays out.
    (site_packages / "dependencies.pth").write_text(
        "".join(f"{sysconfig.get_path(name)}\n" for name in ("purelib", "platlib"))
    )
    project = folder / "project"
    for name in CLASHES:
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text(f"WHOSE = 'the {name} of the project'\n")
    return Installed(wheel, python.parent, project)


@pytest.fixture(scope="module")
def server(installed: Installed) -> Iterator[ServerProcess]:
    program = str(installed.programs / "voiceserver")
    server = ServerProcess(command=(program,), environment=installed.environment, folder=installed.project)
    try:
        server.wait_for("calibrated")
        yield server
    finally:
        server.end()


def test_the_wheel_owns_no_name_of_other_people(installed: Installed) -> None:
    names = {name.partition("/")[0] for name in zipfile.ZipFile(installed.wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == set(OURS)


def test_the_wheel_has_every_file_that_git_has(installed: Installed) -> None:
    packed = set(zipfile.ZipFile(installed.wheel).namelist())
    for package, above in zip(OURS, ("", "workers", "clients"), strict=True):
        listed = subprocess.run(
            ["git", "ls-files", package], cwd=ROOT / above, capture_output=True, text=True, check=False
        )
        if listed.returncode:
            pytest.skip("the sources are no git checkout")
        files = set(listed.stdout.split())
        assert f"{package}/__init__.py" in files
        assert files <= packed


def test_names_of_the_project_stay_the_projects(installed: Installed) -> None:
    script = f"""
    import importlib, json
    found = {{name: importlib.import_module(name).__file__ for name in {OURS!r}}}
    whose = {{name: importlib.import_module(name).WHOSE for name in {CLASHES!r}}}
    print(json.dumps([found, whose]))
    """
    found, whose = json.loads(installed.run("python", "-c", textwrap.dedent(script)).stdout)
    for name in OURS:
        assert Path(found[name]).is_relative_to(installed.programs.parent)
    assert whose == {name: f"the {name} of the project" for name in CLASHES}


def test_a_conversation_through_server_and_client_of_the_wheel(
    installed: Installed, server: ServerProcess
) -> None:
    talk = installed.run(
        "voiceserver", "talk", "--url", server.url, "--say", "what time is it", "--out", "reply.wav"
    )
    assert "what time is it" in talk.stdout.lower()
    with wave.open(str(installed.project / "reply.wav")) as reply:
        assert reply.getnframes() > reply.getframerate() / 2


def test_every_link_of_the_pages_in_the_wheel_leads_somewhere(server: ServerProcess) -> None:
    def get(path: str) -> tuple[int, str]:
        status, body = server.get(path)
        return status, body if isinstance(body, str) else json.dumps(body)

    texts, wrong = crawl(get)
    assert wrong == []
    assert len([address for address in texts if address.startswith("/docs/")]) > 5
    assert "<title>" in texts["/"]
    assert "<title>" in texts["/dashboard"]


def test_a_link_that_leads_nowhere_is_found() -> None:
    pages = {
        "/": '<a href="/docs/#here">',
        "/dashboard": '<link href="a.css">',
        "/docs/": '<h1 id="there"><a href="x">',
    }
    pages["/a.css"] = "body { background: url('/b.png') }"
    _, wrong = crawl(lambda path: (200, pages[path]) if path in pages else (404, ""))
    assert sorted(wrong) == ["/: /docs/ has no #here", "/a.css: /b.png is 404", "/docs/: /docs/x is 404"]


def test_engines_and_commands_of_the_wheel_are_found(installed: Installed) -> None:
    listed = installed.run("voiceserver", "engines").stdout
    assert "silero" in listed
    (version,) = (name for name in installed.wheel.name.split("-") if name[0].isdigit())
    assert installed.run("voiceserver", "version").stdout.split() == ["voiceserver", version]
    for name in ("load", "demo"):
        assert f"voiceserver {name}" in installed.run("voiceserver", name, "--help").stdout


def test_the_testing_kit_of_the_wheel_tests_a_project(installed: Installed) -> None:
    """Pytest finds the plug-in by the wheel's entry point."""
    folder = installed.project / "kit"
    folder.mkdir()
    (folder / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    for name, text in (("engine", ENGINE), ("wire", WIRE), ("agent", AGENT)):
        (folder / f"test_{name}.py").write_text(textwrap.dedent(text))
    passed = installed.run("python", "-m", "pytest", "-q", str(folder)).stdout
    assert " passed" in passed
