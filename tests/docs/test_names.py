"""Names in README and docs exist: files, modules, settings, variables, metrics, paths of the server."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from tests.docs.documents import DOCUMENTS, ROOT, inline_code, name_of, prose
from voiceserver.config.loader import load
from voiceserver.config.schema import Config
from voiceserver.events import events

NAMES = list(dict.fromkeys(inline_code()))
FOLDERS = ("voiceserver/", "workers/", "clients/", "tests/", "benchmarks/", "docs/", "deploy/", "examples/")
# Of the build, not of the tree.
MADE = ("tests/e2e/stock/js/node_modules",)
SECTIONS = ("server", "session", "backpressure", "auth", "twilio", "stages")


def settings(tree: dict[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from settings(value, f"{prefix}{key}.")


# Event names look like settings: ``session.update``. The last one is of OpenAI Realtime.
EVENTS = {
    str(kind.__struct_config__.tag)
    for union in (events.ClientEvent, events.ServerEvent)
    for kind in get_args(union)
} | {"session.created"}
SETTINGS = set(settings(msgspec.to_builtins(Config())))


def test_every_file_that_is_named_exists() -> None:
    named = [(document, text) for document, text in NAMES if text.startswith(FOLDERS) and " " not in text]
    assert named
    missing = [pair for pair in named if not (ROOT / pair[1]).exists() and not pair[1].startswith(MADE)]
    assert not missing


def test_every_module_that_is_named_can_be_found() -> None:
    modules = {
        name
        for _, text in NAMES
        for name in re.findall(r"^(voiceserver(?:_workers|_clients)?(?:\.[a-z_]+)+)$", text)
        if name != "voiceserver.toml" and name != "voiceserver.engines"
    }
    assert not [name for name in modules if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_that_is_named_exists(section: str) -> None:
    for document, text in NAMES:
        match = re.match(rf"({section}(?:\.[a-zA-Z_]+)+)(?: ?=.*)?$", text)
        if match is None or text.endswith(".py"):
            continue
        name = match[1].replace("STAGE", "stt")
        assert ".params." in name or name in EVENTS or name in SETTINGS, f"{document}: {text}"


def test_every_variable_that_is_named_is_read() -> None:
    for document, text in NAMES:
        for name, value in re.findall(r"(VOICESERVER_[A-Z_]+)(?:=(\S+))?", text):
            if "__" in name:
                load(None, {name: value or "1"})
            else:
                assert name in ("VOICESERVER_CONFIG", "VOICESERVER_KEY", "VOICESERVER_CHAT_API_KEY"), document


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_between_files_lead_somewhere(path: Path) -> None:
    """Links of ``docs`` are checked by mkdocs, too; those of README and the files beside it only here."""
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)]+)\)", prose(path)):
        file, _, anchor = target.partition("#")
        found = (path.parent / file) if file else path
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_document_names_a_folder_outside_the_repository() -> None:
    for path in DOCUMENTS:
        assert "../shared" not in path.read_text(), name_of(path)


def test_readme_is_a_page_and_not_a_book() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_readme_says_where_everything_is() -> None:
    """Each page of the docs can be reached from README or from the navigation."""
    navigation = (ROOT / "mkdocs.yml").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        assert str(path.relative_to(ROOT / "docs")) in navigation, path
