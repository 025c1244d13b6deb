"""The generated documents: they are what the code gives, nothing is missing in them, and what they say is true."""

from __future__ import annotations

import functools
import json
import re
import sys
import typing
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from docs.generate import __main__ as generate
from docs.generate import asyncapi, cli, configuration, errors, http, metrics
from docs.generate.fields import description_of, fields_of, meanings_of, structs_in
from docs.generate.page import Page, Section
from tests.conformance.wires import native_wire
from tests.voiceserver.shell import Shell, upgrade
from voiceserver.config.schema import Config
from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.server import pages
from voiceserver.testing.codec_suite import server_events
from voiceserver.transport.http import Response, Router
from voiceserver.wire import native
from voiceserver.wire.native import NativeCodec

EVENTS = asyncapi.document()
PATHS = http.document()
PAGES = {page.name: page for page in generate.pages()}


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@functools.cache
def event_validator(name: str) -> Draft202012Validator:
    reference = {"$ref": f"#/components/schemas/{name}"}
    return Draft202012Validator({**reference, "components": EVENTS["components"]})


def references_in(value: object) -> typing.Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references_in(inner)


def cells_of(page: Page, column: str) -> set[str]:
    found: set[str] = set()
    for section in page.sections:
        for row in section.rows:
            if column in section.heads:
                found.update(re.findall(r"`([^`]+)`", row[section.heads.index(column)]))
    return found


def leaves(tree: Mapping[str, Any], prefix: str = "") -> typing.Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


# ------------------------------------------------------------------------------------------------------- freshness


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process has fewer metrics")
def test_the_generated_files_are_what_the_code_gives() -> None:
    assert generate.stale_files() == [], "run 'make docs'"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_says_that_it_is_generated_and_by_which_command(name: str) -> None:
    for text in (PAGES[name].to_markdown(), PAGES[name].to_html()):
        assert "This page is generated from" in text
        assert "make docs" in text


# ---------------------------------------------------------------------------------------------------- completeness


def test_every_setting_is_there() -> None:
    shown = cells_of(PAGES["configuration"], "setting")
    known = set(leaves(msgspec.to_builtins(Config())))
    stages = re.compile(r"^stages\.\w+\.")
    assert {stages.sub("stages.STAGE.", key) for key in known} == {key for key in shown if "-" not in key}
    assert cells_of(PAGES["configuration"], "environment") == {
        configuration.environment_name(key) for key in shown if "-" not in key
    }


def test_every_command_is_there() -> None:
    titles = [section.title.strip("`") for section in PAGES["cli"].sections]
    assert {" ".join(word for word in title.split() if word.islower()) for title in titles} == set(
        cli.commands()
    )


def test_every_metric_of_a_server_is_there_with_its_labels() -> None:
    shown = {one.name: one for one in metrics.described()}
    families = re.findall(r"^# TYPE (\w+) (\w+)", metrics.observed().to_text().decode(), re.MULTILINE)
    told = dict(families)
    restarts = next(name for name in shown if name.startswith("voiceserver_process_restarts"))
    assert {name: one.kind for name, one in shown.items() if name != restarts} == told
    assert all(one.meaning for one in shown.values())


def test_every_event_and_field_is_there() -> None:
    events = PAGES["events"]
    sections = {section.title.strip("`"): section for section in events.sections}
    for union in (ev.ClientEvent, ev.ServerEvent):
        for kind in typing.get_args(union):
            if kind is not ev.ReplyAudio:
                assert asyncapi.tag_of(kind) in sections
    for kind in structs_in(*asyncapi.CLIENT_EVENTS, *asyncapi.SERVER_EVENTS):
        shown = [row[0].strip("`") for row in sections[kind.__name__].rows]
        assert shown == [field.name for field in fields_of(kind)]


def test_every_parameter_of_the_native_address_is_there() -> None:
    query = EVENTS["channels"]["stream"]["bindings"]["ws"]["query"]
    assert tuple(query["properties"]) == native.PARAMETERS


def test_every_close_code_of_the_code_has_a_meaning() -> None:
    numbers = {one.number for one in errors.found()}
    assert numbers & set(range(1000, 1016)) <= set(errors.CLOSE_CODES)
    assert {1000, 1008, 1009, 1011, 1013} <= numbers


# Codes that README listed before there was a page.
KNOWN_CODES = (
    "invalid_json invalid_event unknown_type unknown_field missing_field invalid_field audio_misaligned input_empty item_exists "
    "item_not_found reserved_key reply_active reply_not_active reply_queue_full session_draining turn_detection_unavailable "
    "transcription_unavailable reply_unavailable speech_unavailable unknown_voice stt_behind session_ended waiting_timeout "
    "slow_reader session_taken_over quarantined at_capacity tenant_share draining"
)


def test_the_codes_that_callers_know_are_found_in_the_code() -> None:
    assert set(KNOWN_CODES.split()) <= cells_of(PAGES["errors"], "code")


@pytest.mark.parametrize("name", sorted(PAGES))
def test_links_within_the_pages_lead_to_a_heading(name: str) -> None:
    text = PAGES[name].to_html()
    anchors = set(re.findall(r' id="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= anchors


@pytest.mark.parametrize("name", sorted(PAGES))
def test_rows_have_a_cell_for_each_head(name: str) -> None:
    sections: list[Section] = list(PAGES[name].sections)
    assert sections
    assert not [
        section for section in sections if any(len(row) != len(section.heads) for row in section.rows)
    ]


# -------------------------------------------------------------------------------------------------------- AsyncAPI


def test_asyncapi_has_a_message_for_every_event_in_each_direction() -> None:
    assert EVENTS["asyncapi"].startswith("3.0")
    (channel,) = EVENTS["channels"].values()
    assert channel["address"] == native.PATH
    directions = {one["action"]: one for one in EVENTS["operations"].values()}
    for action, kinds in (("receive", asyncapi.CLIENT_EVENTS), ("send", asyncapi.SERVER_EVENTS)):
        names = {one["$ref"].rpartition("/")[2] for one in directions[action]["messages"]}
        titles = {EVENTS["components"]["messages"][name].get("title") for name in names}
        assert titles == {*(kind.__name__ for kind in kinds), None}  # None: audio


@pytest.mark.parametrize("document", [EVENTS, PATHS], ids=["asyncapi", "openapi"])
def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    found = set(references_in(document))
    assert found
    for reference in found:
        value: Any = document
        for step in reference.removeprefix("#/").split("/"):
            value = value[step]
    used = {reference.rpartition("/")[2] for reference in found if "/schemas/" in reference}
    assert used == set(document["components"]["schemas"])


@pytest.mark.parametrize("document", [EVENTS, PATHS], ids=["asyncapi", "openapi"])
def test_schemas_are_schemas(document: dict[str, Any]) -> None:
    for name in document["components"]["schemas"]:
        Draft202012Validator.check_schema(document["components"]["schemas"][name])


@settings(max_examples=100, deadline=None)
@given(server_events())
def test_what_the_native_codec_sends_fits_its_schema(events: list[ev.ServerEvent]) -> None:
    for event in events:
        for frame in NativeCodec(16_000, 24_000).encode(event):
            if isinstance(frame, str):
                event_validator(type(event).__name__).validate(json.loads(frame))


ITEM = {"role": "user", "text": "hello"}
TOOL = {"name": "time", "description": "The time.", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    "message",
    [
        *(json.loads(frame) for frame in native_wire(16_000).valid_messages if isinstance(frame, str)),
        {"type": "session.update", "turn_detection": None, "temperature": None, "event_id": "mine"},
        {"type": "session.update", "turn_detection": {"threshold": 0.3, "idle_timeout_ms": None}},
        {"type": "session.update", "tools": [TOOL], "tool_choice": "time", "speed": 1.5},
        {"type": "input.commit", "creates_reply": False},
        {"type": "input.clear"},
        {"type": "item.append", "item": ITEM, "after_key": "root"},
        {"type": "item.delete", "key": "a"},
        {"type": "reply.create", "items": [ITEM], "is_out_of_band": True, "max_output_tokens": 10},
        {"type": "reply.played", "turn": 1, "played_ms": 20.5, "is_final": True},
        {"type": "input.digit", "digit": "#"},
        {"type": "session.close"},
        # Each of these is wrong.
        {"type": "session.update", "speed": 9},
        {"type": "session.update", "turn_detection": {"threshold": 2}},
        {"type": "session.update", "turn_detection": {"level": 1}},
        {"type": "session.update", "tools": [{"name": "no spaces"}]},
        {"type": "input.commit", "creates_reply": "yes"},
        {"type": "input.clear", "why": "x"},
        {"type": "item.append", "item": {"role": "robot"}},
        {"type": "item.append"},
        {"type": "item.delete", "key": ""},
        {"type": "reply.played", "turn": 0, "played_ms": 1},
        {"type": "reply.played", "turn": 1, "played_ms": -1},
        {"type": "input.digit", "digit": "E"},
    ],
    ids=json.dumps,
)
def test_a_schema_takes_what_the_native_codec_takes(message: dict[str, Any]) -> None:
    kinds = {asyncapi.tag_of(kind): kind for kind in asyncapi.CLIENT_EVENTS}
    fits = event_validator(kinds[message["type"]].__name__).is_valid(message)
    try:
        NativeCodec(16_000, 24_000).receive_text(json.dumps(message).encode())
        is_taken = True
    except ProtocolError:
        is_taken = False
    assert fits == is_taken


# --------------------------------------------------------------------------------------------------------- OpenAPI


def test_openapi_is_valid() -> None:
    validate(PATHS)


def test_openapi_has_every_path_of_a_server() -> None:
    found = http.paths_of_a_server()
    files = {path for path in found.pages if path.startswith(http.STATIC)} - set(http.OPERATIONS)
    assert set(PATHS["paths"]) == {*found.pages, *found.actions, *found.wires} - files
    for path, methods in PATHS["paths"].items():
        assert set(methods) == {"post" if path in found.actions else "get"}
    identifiers = [one["operationId"] for methods in PATHS["paths"].values() for one in methods.values()]
    assert len(set(identifiers)) == len(identifiers)


def site(shell: Shell) -> Router:
    """The pages are among what a server is built of."""
    return shell.router


@pytest.mark.parametrize("path", sorted(http.OPERATIONS))
def test_what_a_path_answers_is_in_the_document(path: str) -> None:
    shell = Shell("stt")
    router = site(shell)
    (method,) = PATHS["paths"][path]
    answer = router.answer(f"{method.upper()} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 0.0)
    if method == "post":
        assert path in (pages.DRAIN, http.CLIENT_SECRETS)
        return
    assert isinstance(answer, Response)
    described = PATHS["paths"][path]["get"]["responses"][str(answer.status)]
    (kind,) = described["content"]
    assert answer.content_type.partition(";")[0] == kind
    schema = described["content"][kind]["schema"]
    body = json.loads(answer.body) if kind == "application/json" else answer.body.decode()
    Draft202012Validator({**schema, "components": PATHS["components"]}).validate(body)


@pytest.mark.parametrize("path", sorted(http.WIRES))
def test_the_refusals_of_a_wire_are_in_the_document(path: str) -> None:
    shell = Shell("stt")
    shell.services.state.begin_drain()
    answers = [shell.router.answer(head, 0.0) for head in (get(path), upgrade(path))]
    for answer in answers:
        if isinstance(answer, Response) and answer.status not in (200, 404):
            described = PATHS["paths"][path]["get"]["responses"][str(answer.status)]
            schema = described["content"]["application/json"]["schema"]
            Draft202012Validator({**schema, "components": PATHS["components"]}).validate(
                json.loads(answer.body)
            )


# --------------------------------------------------------------------------------------------------------- serving


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found.update(value for name, value in attrs if name in ("href", "src") and value)


def test_the_server_serves_what_is_generated() -> None:
    router = site(Shell("stt"))
    for path, text in generate.files().items():
        if path.parent == generate.SERVED:
            address = pages.DOCS + path.name.replace("index.html", "")
            answer = router.answer(get(address), 0.0)
            assert isinstance(answer, Response)
            assert answer.body.decode() == text
            assert dict(answer.headers)["X-Content-Type-Options"] == "nosniff"


def test_the_reference_loads_only_what_is_served_here() -> None:
    router = site(Shell("stt"))
    seen: set[str] = set()
    waiting = [pages.DOCS]
    while waiting:
        address = waiting.pop()
        answer = router.answer(get(address), 0.0)
        assert isinstance(answer, Response), address
        assert answer.status == 200, address
        seen.add(address)
        if address.startswith(pages.DOCS) and answer.content_type.startswith("text/html"):
            links = Links(answer.body.decode())
            assert not {"script", "style", "iframe"} & set(links.tags)
            found = {link.partition("#")[0] for link in links.found} - {""}
            waiting += found - seen - set(waiting)
    assert {f"{pages.DOCS}{name}.html" for name in PAGES} <= seen
    assert {"/docs/asyncapi.json", "/docs/openapi.json", "/web/docs.css"} <= seen


def test_pages_of_the_reference_are_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Path.read_bytes

    def note(path: Path) -> bytes:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", note)
    router = site(Shell("stt"))
    assert "asyncapi.json" not in read
    router.answer(get("/docs/asyncapi.json"), 0.0)
    assert "asyncapi.json" in read


def test_every_field_of_an_event_and_every_setting_has_a_meaning() -> None:
    clients, servers = typing.get_args(ev.ClientEvent), typing.get_args(ev.ServerEvent)
    kinds = [kind for kind in (*clients, *servers) if kind is not ev.ReplyAudio]
    fields = [(kind.__name__, one) for kind in (*kinds, *structs_in(*kinds)) for one in fields_of(kind)]
    assert [(name, one.name) for name, one in fields if not one.meaning] == []
    without = [
        key
        for key, field, kind in configuration.settings()
        if not (description_of(field.type) or meanings_of(kind).get(field.name))
    ]
    assert without == []
