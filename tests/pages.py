"""Pages that a server serves, followed link by link."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Final
from urllib.parse import urldefrag, urljoin

STARTS: Final = ("/", "/dashboard", "/docs/")


class Page(HTMLParser):
    """The addresses that a page names, the anchors that it has, and the classes of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.links.update(found[name] for name in ("href", "src") if name in found)
        self.anchors.update(found[name] for name in ("id", "name") if name in found)
        self.classes.update(found.get("class", "").split())


def links_of(address: str, text: str) -> set[str]:
    if address.endswith(".css"):
        return set(re.findall(r"url\(\s*['\"]?([^'\")]+)", text))
    if address.endswith((".json", ".js", ".svg", ".ico", ".png")):
        return set()
    return Page(text).links


def crawl(get: Callable[[str], tuple[int, str]]) -> tuple[dict[str, str], list[str]]:
    """(texts by address, what is wrong) of all pages that links lead to, from ``STARTS``. get: status and body of a path."""
    texts: dict[str, str] = {}
    wrong: list[str] = []
    anchors: list[tuple[str, str, str]] = []
    waiting = [("", start) for start in STARTS]
    while waiting:
        source, address = waiting.pop()
        if address in texts:
            continue
        status, texts[address] = get(address)
        if status != 200:
            wrong.append(f"{source}: {address} is {status}")
            continue
        for link in links_of(address, texts[address]):
            target, anchor = urldefrag(urljoin(address, link))
            if re.match(r"[a-z]+:", target):
                continue
            if anchor:
                anchors.append((address, target, anchor))
            waiting.append((address, target))
    for source, address, anchor in anchors:
        if anchor not in Page(texts[address]).anchors:
            wrong.append(f"{source}: {address} has no #{anchor}")
    return texts, wrong
