"""A generated page: sections with tables, written as Markdown for the site and as HTML for the server.

Texts and cells are inline Markdown with code, bold and links; the double backticks of docstrings count as code.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

COMMAND: Final = "make docs"
_CODE: Final = re.compile(r"(`+)(.+?)\1")
_BOLD: Final = re.compile(r"\*\*(.+?)\*\*")
_LINK: Final = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a text, and a table. ``code``: the cells of the first column are names in code."""

    title: str
    text: str = ""
    heads: Row = ()
    rows: Sequence[Row] = ()
    level: int = 2


@dataclass(frozen=True, slots=True)
class Page:
    """One page. ``source``: the modules that it is read from."""

    name: str
    title: str
    source: str
    text: str = ""
    sections: Sequence[Section] = field(default_factory=tuple)

    def to_markdown(self) -> str:
        parts = [f"# {self.title}", f"*{_origin(self)}*", _as_markdown(self.text)]
        for section in self.sections:
            parts += [f"{'#' * section.level} {_as_markdown(section.title)}", _as_markdown(section.text)]
            if section.rows:
                lines = [section.heads, tuple("---" for _ in section.heads), *section.rows]
                parts.append("\n".join(_markdown_row(line) for line in lines))
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_html(self) -> str:
        parts = [f"<h1>{_as_html(self.title)}</h1>", f'<p class="origin">{_as_html(_origin(self))}</p>']
        parts += _paragraphs(self.text)
        for section in self.sections:
            parts.append(
                f'<h{section.level} id="{slug(section.title)}">{_as_html(section.title)}</h{section.level}>'
            )
            parts += _paragraphs(section.text)
            if section.rows:
                parts.append(_html_table(section))
        return document(self.title, "\n".join(parts))


def document(title: str, body: str) -> str:
    """One page of the server around ``body``."""
    return f"""<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>{html.escape(title)} · voiceserver</title>
  <link rel="icon" href="/web/favicon.svg">
  <link rel="stylesheet" href="/web/style.css">
  <link rel="stylesheet" href="/web/docs.css">
</head>
<body>
<header class="top wide">
  <a class="mark" href="/" aria-label="voiceserver, start page">
    <img src="/web/favicon.svg" alt="" width="26" height="26"> voiceserver
  </a>
  <nav><a href="/docs/">Reference</a> <a href="/">Talk</a> <a href="/dashboard">Dashboard</a></nav>
</header>
<main class="reference">
{body}
</main>
</body>
</html>
"""


def slug(title: str) -> str:
    """The anchor of a heading, as mkdocs makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def _origin(page: Page) -> str:
    return f"This page is generated from {page.source} by `{COMMAND}`. Do not edit it."


def _markdown_row(cells: Row) -> str:
    return f"| {' | '.join(_as_markdown(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _as_markdown(text: str) -> str:
    """Double backticks become single ones where they can; what looks like a tag outside of code is escaped."""
    return _outside_code(text, lambda plain: plain.replace("<", "&lt;"), lambda code: f"`{code}`")


def _as_html(text: str) -> str:
    return _outside_code(text, _inline_html, lambda code: f"<code>{html.escape(code)}</code>")


def _inline_html(plain: str) -> str:
    escaped = html.escape(plain, quote=False)
    escaped = _LINK.sub(lambda link: f'<a href="{_address(link[2])}">{link[1]}</a>', escaped)
    return _BOLD.sub(r"<strong>\1</strong>", escaped)


def _address(target: str) -> str:
    """A link between pages of the site, as one between pages of the server."""
    page, hash_sign, anchor = target.partition("#")
    name = page.removesuffix(".md")
    return (f"/docs/{name}.html" if page.endswith(".md") else page) + hash_sign + anchor


def _outside_code(text: str, plain: Callable[[str], str], code: Callable[[str], str]) -> str:
    parts, at = [], 0
    for found in _CODE.finditer(text):
        parts += [plain(text[at : found.start()]), code(found[2])]
        at = found.end()
    return "".join([*parts, plain(text[at:])])


def _paragraphs(text: str) -> list[str]:
    return [f"<p>{_as_html(one)}</p>" for one in text.split("\n\n") if one]


def _html_table(section: Section) -> str:
    heads = "".join(f'<th scope="col">{_as_html(head)}</th>' for head in section.heads)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{_as_html(cell)}</td>' for cell in row)}</tr>" for row in section.rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
