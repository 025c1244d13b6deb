"""JSON schemas of structs, with the meaning of every field as its description."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec

from docs.generate.fields import fields_of, structs_in, summary_of

Schema = dict[str, Any]
REFERENCE: Final = "#/components/schemas/{name}"


def components_of(*kinds: type) -> dict[str, Schema]:
    """By the name of the struct, for ``kinds`` and all that they are made of."""
    _, components = msgspec.json.schema_components(
        kinds, schema_hook=lambda kind: {"title": "JSON"}, ref_template=REFERENCE
    )
    for kind in (*kinds, *structs_in(*kinds)):
        described = components[kind.__name__]
        described["description"] = summary_of(kind)
        for field in fields_of(kind):
            if field.meaning and "$ref" not in described["properties"][field.name]:
                described["properties"][field.name]["description"] = plain(field.meaning)
    return {name: _plain_texts(components[name]) for name in sorted(components)}


def reference(kind: type) -> Schema:
    return {"$ref": REFERENCE.format(name=kind.__name__)}


def plain(text: str) -> str:
    """Single backticks, as Markdown has them."""
    return text.replace("``", "`")


def _plain_texts(schema: Schema) -> Schema:
    if "description" in schema:
        schema["description"] = plain(schema["description"])
    return schema


def version() -> str:
    """The version of the sources; what is installed may be older."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    return str(tomllib.loads(text)["project"]["version"])
