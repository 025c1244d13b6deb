"""``engines.md``: every built-in engine with its stage, what it needs, and its parameters.

Parameters are the fields of structs: those of ``voiceserver_workers.parameters``, and ``ChatConfig``. What an engine is stands
in the docstring of its class, which is read without importing it.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import voiceserver_workers
from docs.generate.fields import Field, fields_of, summary_in, summary_of
from docs.generate.page import Page, Row, Section
from voiceserver.pool.chat.config import ChatConfig
from voiceserver_workers import parameters, registry

HEADS: Final = ("parameter", "value", "default", "meaning")
ROOT: Final = Path(voiceserver_workers.__file__).parents[1]


def docstring_of(spec: registry.EngineSpec) -> str:
    """Of the engine's class."""
    module, _, name = spec.target.partition(":")
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text())
    (kind,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return ast.get_docstring(kind) or ""


def page() -> Page:
    specs = list(registry._BUILT_IN.values())
    rows: list[Row] = [
        (f"`{spec.name}`", ", ".join(f"`{stage}`" for stage in spec.stages), f"`voiceserver[{spec.extra}]`")
        for spec in specs
    ]
    return Page(
        "engines",
        "Engines",
        "`voiceserver_workers/registry.py`, `voiceserver_workers/parameters.py` and the engines",
        "`stages.STAGE.engine` names one of these, one that a package announces by the entry point group "
        f"`{registry.ENTRY_POINT_GROUP}`, or `module:attr`. Parameters are `stages.STAGE.params.NAME`; a wrong one is refused "
        "at the start, with its name. `voiceserver engines` lists what is installed.",
        [Section("Built in", "", ("engine", "stage", "needs"), rows), *map(_section, specs)],
    )


def _section(spec: registry.EngineSpec) -> Section:
    kind = ChatConfig if spec.is_remote else parameters.ENGINES[spec.name]
    rows = [(f"`{one.name}`", one.kind, _default(one), one.meaning) for one in fields_of(kind)]
    text = summary_of(ChatConfig) if spec.is_remote else summary_in(docstring_of(spec))
    return Section(f"`{spec.name}`", text, HEADS, rows)


def _default(one: Field) -> str:
    return "required" if one.is_required else f"`{one.default}`" if one.default else ""
