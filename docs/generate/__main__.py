"""``python -m docs.generate [--check]``: write the generated documents, or say which of them are not what the code gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from docs.generate import asyncapi, cli, configuration, engines, errors, events, http, metrics
from docs.generate.page import COMMAND, Page, Section

ROOT: Final = Path(__file__).parents[2]
SITE: Final = Path("docs/reference")
SERVED: Final = Path("voiceserver/web/docs")


def pages() -> list[Page]:
    return [
        configuration.page(),
        cli.page(),
        events.page(),
        http.page(),
        errors.page(),
        metrics.page(),
        engines.page(),
    ]


def files() -> dict[Path, str]:
    """Every generated file, by its path in the repository."""
    made = pages()
    found = {SITE / f"{page.name}.md": page.to_markdown() for page in made}
    found |= {SERVED / f"{page.name}.html": page.to_html() for page in made}
    found[SERVED / "index.html"] = _index(made)
    found[SERVED / "asyncapi.json"] = _json(asyncapi.document())
    found[SERVED / "openapi.json"] = _json(http.document())
    return found


def stale_files() -> list[Path]:
    """Files that are not what the code gives, and files in the two folders that nothing generates any more."""
    expected = files()
    wrong = [path for path, text in expected.items() if _text_of(path) != text]
    return sorted({*wrong, *_left_over(expected)})


def write() -> None:
    expected = files()
    for path in _left_over(expected):
        (ROOT / path).unlink()
    for path, text in expected.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text)


def _left_over(expected: dict[Path, str]) -> list[Path]:
    """Pages of a generator that is gone. Only served files, and site pages that say that they are generated, are ours."""
    served = [path.relative_to(ROOT) for path in (ROOT / SERVED).glob("*")]
    site = [
        path.relative_to(ROOT) for path in (ROOT / SITE).glob("*.md") if f"by `{COMMAND}`" in path.read_text()
    ]
    return [path for path in [*served, *site] if path not in expected]


def _text_of(path: Path) -> str:
    return (ROOT / path).read_text() if (ROOT / path).exists() else ""


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _index(made: list[Page]) -> str:
    listed = "\n".join(f'<li><a href="/docs/{page.name}.html">{page.title}</a></li>' for page in made)
    text = Page(
        "index",
        "Reference",
        "the code of this version",
        "What this server takes and answers, as its own code says it.",
        [Section("For machines")],
    ).to_html()
    machines = (
        '<ul>\n<li><a href="/docs/asyncapi.json">asyncapi.json</a>, the native wire</li>\n'
        '<li><a href="/docs/openapi.json">openapi.json</a>, the HTTP paths</li>\n</ul>'
    )
    head, title, rest = text.partition('<h2 id="for-machines">')
    return f"{head}<ul>\n{listed}\n</ul>\n{title}{rest.replace('</h2>', f'</h2>{chr(10)}{machines}', 1)}"


def main() -> int:
    if "--check" not in sys.argv[1:]:
        write()
        if (
            stale_files()
        ):  # the page of paths names the files that a server found, so a new one makes it stale
            write()
        return 0
    stale = stale_files()
    for path in stale:
        print(f"{path} is not what the code gives: run '{COMMAND}'")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
