"""The files around the code: issue forms and workflows can be read, and name commands and versions that there are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.documents import ROOT, commands_of
from tests.docs.test_commands import run_rule

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
