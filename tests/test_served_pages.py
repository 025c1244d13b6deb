"""Pages and stylesheets fit each other: what a page calls a class has a rule, what a rule calls a variable has a value."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import Page
from tests.sources import ROOT

WEB = ROOT / "voiceserver" / "web"
PAGES = sorted(WEB.rglob("*.html"))
REFERENCE = sorted(WEB.glob("docs/*.html"))  # the scripts of the other pages find elements by class


def styles_of(page: Path) -> str:
    """All that a page links, and its own style elements."""
    links = {link for link in Page(page.read_text()).links if link.endswith(".css")}
    assert links
    linked = [(WEB / link.removeprefix("/web/")).read_text() for link in links]
    return "\n".join([*linked, *re.findall(r"<style>(.*?)</style>", page.read_text(), re.DOTALL)])


@pytest.mark.parametrize("page", REFERENCE, ids=lambda page: page.stem)
def test_classes_of_the_reference_have_rules(page: Path) -> None:
    rules = set(re.findall(r"\.(-?[A-Za-z_][\w-]*)", styles_of(page)))
    assert Page(page.read_text()).classes - rules == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_variables_of_a_style_have_values(page: Path) -> None:
    styles = styles_of(page)
    scripts = "".join(path.read_text() for path in WEB.glob("*.js"))
    given = set(re.findall(r"(--[\w-]+)\s*:", styles)) | set(re.findall(r"[\"'](--[\w-]+)[\"']", scripts))
    assert set(re.findall(r"var\((--[\w-]+)\)", styles)) - given == set()
