"""README, the other documents at the top, and the pages of ``docs``: their samples, commands and names."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# Pages of this folder are generated; their own tests compare them with the code.
REFERENCE = ROOT / "docs" / "reference"
DOCUMENTS = [path for path in TOP if path.exists()] + [
    path for path in PAGES if path.parent != REFERENCE or path.name == "index.md"
]

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


class Sample(NamedTuple):
    """One fenced block of a document."""

    document: str
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.title or self.language}"


class Command(NamedTuple):
    """One command line, without its comment and the variables before it."""

    document: str
    words: tuple[str, ...]
    variables: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.document}:{' '.join(self.words)}"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def samples(*languages: str) -> list[Sample]:
    """All samples in ``languages``, in the order of the documents; of any language without one."""
    found = []
    for path in DOCUMENTS:
        for match in _FENCE.finditer(path.read_text()):
            sample = Sample(
                name_of(path), match["language"], match["title"] or "", textwrap.dedent(match["text"])
            )
            if not languages or sample.language in languages:
                found.append(sample)
    return found


def prose(path: Path) -> str:
    """A document without its samples."""
    return _FENCE.sub("", path.read_text())


def inline_code() -> Iterator[tuple[str, str]]:
    """(document, text) of everything between single backticks."""
    for path in DOCUMENTS:
        for text in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(path)):
            yield name_of(path), text


_PROGRAMS = ("voiceserver ", "python -m ", "make ", "pip install ")


def commands() -> list[Command]:
    """Every command in ``sh`` samples and between backticks, once per document."""
    found = []
    for sample in samples("sh"):
        for line in sample.text.replace("\\\n", " ").splitlines():
            found += commands_of(sample.document, line)
    for document, text in inline_code():
        if text.startswith(_PROGRAMS) and "..." not in text:
            found += commands_of(document, text)
    return list(dict.fromkeys(found))


def commands_of(document: str, line: str) -> Iterator[Command]:
    words = shlex.split(line, comments=True)
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        part, words = words[:end], words[end + 1 :]
        first = next((at for at, word in enumerate(part) if not re.match(r"[A-Z_]+=", word)), len(part))
        variables = tuple(part[:first])
        rest = part[first : part.index(">>")] if ">>" in part else part[first:]
        yield Command(document, tuple(rest), variables)
