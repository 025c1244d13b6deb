"""Tables of the docs and the example configuration say what the code does: names exist, and none is missing."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from docs.generate.metrics import observed
from voiceserver.config.loader import load
from voiceserver.config.schema import Config
from voiceserver.events import events
from voiceserver.observability.metrics import process_restarts

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
EXAMPLE = ROOT / "deploy" / "voiceserver.toml"
# Keys that every stage has; the example shows them once.
STAGE_KEYS = (
    "streams_per_worker",
    "step_timeout_ms",
    "stall_timeout_ms",
    "request_slots",
    "result_slots",
    "slot_bytes",
    "max_wait_ms",
    "max_batch_size",
)
LIGHTER_KEYS = ("engine", "workers", "max_batch_size", "streams_per_worker")


# Of other wires' codecs, and without a use for who writes a client.
FOR_CODECS = {"item.append": {"may_be_gone"}, "item.delete": {"may_be_gone"}}


def rows_after(page: str, heading: str) -> Iterator[list[str]]:
    """Cells of the first table after ``heading`` on a page of the docs."""
    table = (DOCS / page).read_text().split(heading, 1)[1]
    lines = table[table.index("\n|") + 1 :].splitlines()
    for line in lines[2:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def leaves(tree: dict[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


@pytest.mark.parametrize(
    ("heading", "union"),
    [("## What you may send", events.ClientEvent), ("## What you will hear", events.ServerEvent)],
)
def test_wire_tables_name_every_event_with_all_its_fields(heading: str, union: object) -> None:
    kinds = {str(kind.__struct_config__.tag): kind for kind in get_args(union)}
    kinds.pop("reply.audio", None)  # the binary message
    told: set[str] = set()
    for types, fields, _ in rows_after("protocols/native.md", heading):
        told.update(names_in(types))
        for name in names_in(types):
            assert set(names_in(fields)) == set(kinds[name].__struct_fields__) - FOR_CODECS.get(
                name, set()
            ), name
    assert told == set(kinds)


def test_metrics_table_is_complete() -> None:
    told = {
        name.removesuffix("_total")
        for names, *_ in rows_after("monitoring.md", "## Every metric")
        for name in names_in(names)
    }
    exported = set(re.findall(r"^# TYPE (voiceserver_\w+)", observed().to_text().decode(), re.MULTILINE))
    assert told == {name.removesuffix("_total") for name in exported} | {process_restarts(0).name}


def test_configuration_table_names_real_settings() -> None:
    known = set(leaves(msgspec.to_builtins(Config())))
    for names, *_ in rows_after("configuration.md", "## Settings that you will want first"):
        for name in names_in(names):
            assert name.replace("STAGE", "stt") in known, name


def test_example_configuration_holds_every_setting_at_its_default() -> None:
    loaded = load(EXAMPLE, {})
    assert loaded.config == Config()
    given = set(leaves(tomllib.loads(EXAMPLE.read_text())))
    known = set(leaves(msgspec.to_builtins(Config())))
    other_stages = {f"stages.{stage}.{key}" for stage in ("stt", "reply", "tts") for key in STAGE_KEYS}
    other_stages |= {
        f"stages.{stage}.lighter.{key}" for stage in ("vad", "reply", "tts") for key in LIGHTER_KEYS
    }
    assert known - given <= other_stages
