"""No name of product code uses a word of the old private dialect: an identifier is made of the field's words.

An identifier is read in parts, split at underscores and capitals: ``hub`` is found in ``_hub``, ``HubTimer`` and
``the_hub``, and not in ``github``. ``ALLOWED`` names what such a word may still mean. ``LEFT`` counts what is to be renamed,
a module and an identifier each; it can only shrink. ``python -m tests.test_dialect`` lists what is left.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest

from tests.sources import modules

# The word, and what the field says instead.
OLD: Final = {
    "ear": "audio input",
    "mouth": "speech output",
    "guess": "preemptive reply",
    "basis": "request key",
    "gate": "busy, deadlines; for a test: release",
    "lane": "stream, worker handle",
    "lanes": "streams, stage streams",
    "hub": "services",
    "pump": "call",
    "door": "upgrade",
    "said": "sent, replayed",
    "judge": "strict parser",
    "inbox": "receive buffer",
    "learner": "capacity controller",
    "facts": "server snapshot",
    "clips": "prerendered speech",
    "books": "accounting",
    "weight": "memory in bytes",
    "vitals": "process metrics",
    "board": "shared statistics",
    "exchange": "hand-off, turn",
    "rollup": "merge",
    "words_of": "count_words, normalise",
    "detector": "endpointer",
}

# What a word may still mean: the word, where, and in which identifiers.
ALLOWED: Final = (
    # A network has weights.
    ("weight", "voiceserver_workers.engines", re.compile(r".*")),
    # Of models.
    ("hub", "voiceserver_workers.engines", re.compile(r".*hub_id.*")),
    ("detector", "voiceserver", re.compile(r".*hang_?detector.*", re.IGNORECASE)),
)

# How many names are left of each word. Shrinks only.
LEFT: Final[dict[str, int]] = {
    "books": 1,
    "said": 1,
}


def identifiers_of(module: str, tree: ast.Module) -> Iterator[str]:
    """The names that a module uses, and its own."""
    yield module.rpartition(".")[2]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg | ast.keyword):
            yield node.arg or ""
        elif isinstance(node, ast.alias):
            yield from (node.asname or node.name).split(".")


def old_words_in(identifier: str) -> Iterator[str]:
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier).lower().strip("_").split("_")
    joined = f"_{'_'.join(parts)}_"
    yield from (word for word in OLD if f"_{word}_" in joined)


def is_allowed(word: str, module: str, identifier: str) -> bool:
    return any(
        word == one and f"{module}.".startswith(f"{package}.") and pattern.fullmatch(identifier)
        for one, package, pattern in ALLOWED
    )


def left() -> list[tuple[str, str, str]]:
    """Word, module and identifier of each name that is still in the old dialect."""
    return sorted(
        {
            (word, module, identifier)
            for module, path in modules()
            for identifier in identifiers_of(module, ast.parse(path.read_text(), str(path)))
            for word in old_words_in(identifier)
            if not is_allowed(word, module, identifier)
        }
    )


def test_names_are_the_words_of_the_field() -> None:
    found = left()
    counts = Counter(word for word, _, _ in found)
    grown = [one for one in found if counts[one[0]] > LEFT.get(one[0], 0)]
    assert grown == [], "use the field's word, which the table OLD has"


def test_the_table_of_what_is_left_shrinks_with_the_sources() -> None:
    counts = Counter(word for word, _, _ in left())
    fewer = {word: counts[word] for word, count in LEFT.items() if counts[word] < count}
    assert fewer == {}, "lower these entries of LEFT to these numbers; delete those that are 0"


@pytest.mark.parametrize(
    ("identifier", "words"),
    [("_hub", ["hub"]), ("HubTimer", ["hub"]), ("github", []), ("words_of", ["words_of"]), ("heard", [])],
)
def test_identifiers_are_read_in_parts(identifier: str, words: list[str]) -> None:
    assert list(old_words_in(identifier)) == words


if __name__ == "__main__":
    names = left()
    for name in names:
        print(*name)
    for entry in sorted(Counter(word for word, _, _ in names).items()):
        print('    "{}": {},'.format(*entry))
