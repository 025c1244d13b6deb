"""The files around the code: issue forms and workflows can be read, and name commands and versions that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.generate.configuration import environment_name, settings
from tests.docs.documents import ROOT, commands_of
from tests.docs.test_commands import run_rule
from voiceserver.config.schema import ServerConfig

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]


def read(path: Path) -> dict[Any, Any]:
    tree = yaml.safe_load(path.read_text())
    assert isinstance(tree, dict)
    return tree


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_commands_that_exist(path: Path) -> None:
    tree = read(path)
    # YAML 1.1 reads the key "on" as true.
    assert set(tree) >= {"name", True, "permissions", "jobs"}
    for job in tree["jobs"].values():
        assert job["steps"]
        for step in job["steps"]:
            for line in step.get("run", "").splitlines():
                for command in commands_of(path.stem, line):
                    if command.words[0] in ("make", "voiceserver"):
                        run_rule(command)


def test_workflows_try_the_versions_that_the_package_names() -> None:
    matrix = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"]]
    assert matrix["python"] == [version for version in named if re.fullmatch(r"3\.\d+", version)]
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos"}


def test_no_workflow_stores_a_token() -> None:
    for path in WORKFLOWS:
        assert "secrets." not in path.read_text()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_ask_questions(path: Path) -> None:
    tree = read(path)
    assert tree["name"]
    assert tree["description"]
    names = [field["id"] for field in tree["body"]]
    assert len(names) == len(set(names))
    for field in tree["body"]:
        assert field["attributes"]["label"]
        for text in re.findall(r"`(voiceserver [^`]+)`", field["attributes"]["label"]):
            for command in commands_of(path.stem, text):
                run_rule(command)


def test_changelog_has_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert PROJECT["version"] in versions


# ------------------------------------------------------------------------------------------------------- operations

DOCKERFILE = (ROOT / "Dockerfile").read_text()
UNIT = (ROOT / "deploy" / "voiceserver.service").read_text()
# Instructions of a Dockerfile that may be given once at most in a stage.
ONCE = ("CMD", "ENTRYPOINT", "HEALTHCHECK", "STOPSIGNAL", "USER")


def instructions() -> list[tuple[str, str]]:
    """Name and arguments; lines that go on are joined, comments left out."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    pairs = [line.split(None, 1) for line in joined]
    return [(name, arguments) for name, arguments in pairs]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for name, arguments in instructions():
        if name == "FROM":
            found.append([])
        found[-1].append((name, arguments))
    return found


def test_the_image_is_built_from_files_that_there_are_and_dependencies_come_before_sources() -> None:
    build, _ = stages()
    copied = [one.split()[:-1] for name, one in build if name == "COPY"]
    assert all((ROOT / path).exists() for paths in copied for path in paths)
    install = next(at for at, (_, one) in enumerate(build) if "--require-hashes" in one)
    sources = next(
        at for at, (name, one) in enumerate(build) if name == "COPY" and "voiceserver" in one.split()
    )
    assert install < sources
    pinned = [
        line for line in (ROOT / "deploy" / "requirements.txt").read_text().splitlines() if line[:1].isalnum()
    ]
    assert pinned
    assert all(re.match(r"[\w.\[\],-]+==\S+", line) for line in pinned)


def test_the_image_runs_as_a_user_reports_readiness_and_is_stopped_as_the_server_drains() -> None:
    _, final = stages()
    given = dict(final)
    assert all(sum(name == one for name, _ in final) <= 1 for one in ONCE)
    assert given["USER"] not in ("root", "0")
    assert given["STOPSIGNAL"] == "SIGTERM"
    assert given["HEALTHCHECK"].endswith('CMD ["voiceserver", "ready"]')
    assert given["CMD"] == '["voiceserver", "serve"]'  # no shell between it and the signal
    assert "org.opencontainers.image.title" in given["LABEL"]
    words = [word for name, one in final if name == "ENV" for word in one.split()]
    known = {environment_name(key) for key, _, _ in settings()}
    assert {word.partition("=")[0] for word in words if word.startswith("VOICESERVER_")} <= known
    assert "--init" in DOCKERFILE


def unit() -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for line in UNIT.splitlines():
        if section := re.fullmatch(r"\[(\w+)\]", line):
            found[section[1]] = {}
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            list(found.values())[-1].setdefault(name, []).append(value)
    return found


def test_the_unit_starts_reloads_and_stops_the_server_as_it_is_meant() -> None:
    service = unit()["Service"]
    (start,) = service["ExecStart"]
    (command,) = commands_of("unit", start.replace("/opt/voiceserver/bin/", ""))
    run_rule(command)
    assert service["Type"] == ["notify"]
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert service["KillMode"] == ["mixed"]
    # It is killed later than the server needs for a drain.
    assert int(service["TimeoutStopSec"][0]) * 1_000 > ServerConfig().drain_timeout_ms
    assert {"Unit", "Service", "Install"} == set(unit())
    # What is made here and used there: https://www.freedesktop.org/software/systemd/man/systemd.exec.html
    assert service["Environment"] == ["XDG_RUNTIME_DIR=%t/voiceserver XDG_CACHE_HOME=%C/voiceserver"]
    assert (service["RuntimeDirectory"], service["CacheDirectory"]) == (["voiceserver"], ["voiceserver"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "voiceserver.service"
    # The server is not installed there on this machine.
    path.write_text(UNIT.replace("/opt/voiceserver/bin/voiceserver", sys.executable))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, timeout=60
    )
    assert (found.returncode, [line for line in found.stderr.splitlines() if path.name in line]) == (0, [])
