"""Every sample in README and docs works: programs run or are checked as a whole, settings load, messages are events."""

from __future__ import annotations

import ast
import builtins
import json
import re
import shutil
import subprocess
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.docs.documents import ROOT, Sample, samples
from voiceserver.config.loader import load
from voiceserver.errors import ProtocolError
from voiceserver.events import events
from voiceserver.wire import native
from voiceserver_workers.engine import Item
from voiceserver_workers.ipc.messages import ResultKind, StreamParams

PROGRAMS = samples("python")
# Who runs the program. Without an entry here a new sample fails: say how it is run.
RUN_BY = {
    "ask.py": "tests/e2e/test_docs.py",
    "openai_sdk.py": "tests/e2e/test_docs.py",
    "openai_agents.py": "tests/e2e/test_docs.py",
    "livekit_agent.py": "tests/e2e/test_docs.py",
    "pipecat_agent.py": "tests/e2e/test_docs.py",
    "whisperlive_client.py": "tests/e2e/test_docs.py",
    "shouter.py": "test_the_engine_works",
    "": "tests/workers/engines/test_example_engine.py",
}
LANGUAGES = {"python", "sh", "toml", "json", "xml", "js", "ini", ""}


def test_every_sample_is_in_a_language_that_is_checked() -> None:
    assert {sample.language for sample in samples()} <= LANGUAGES


def test_somebody_runs_every_program() -> None:
    assert {sample.title for sample in PROGRAMS} == set(RUN_BY)
    included = [sample for sample in PROGRAMS if not sample.title]
    assert [sample.text for sample in included] == ['--8<-- "examples/ctc_engine.py"\n']
    for runner in RUN_BY.values():
        assert (ROOT / runner).exists() or runner in globals()


def test_programs_of_one_name_are_the_same() -> None:
    texts: dict[str, str] = {}
    for sample in PROGRAMS:
        assert texts.setdefault(sample.title, sample.text) == sample.text, sample


@pytest.mark.parametrize("program", [one for one in PROGRAMS if one.title], ids=str)
def test_programs_are_whole(program: Sample) -> None:
    tree = ast.parse(program.text)
    compile(tree, program.title, "exec")
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    known = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
        elif isinstance(node, ast.MatchAs | ast.ExceptHandler) and node.name:
            known.add(node.name)
    assert {node.id for node in names} <= known


@pytest.mark.parametrize("program", [one for one in PROGRAMS if "async for" in one.text], ids=str)
def test_programs_that_wait_for_events_do_not_wait_for_ever(program: Sample) -> None:
    tree = ast.parse(program.text)
    bounded = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        and any(ast.unparse(item.context_expr).startswith("asyncio.timeout(") for item in node.items)
    ]
    within = {id(inner) for node in bounded for inner in ast.walk(node)}
    waits = [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFor)]
    assert waits
    assert all(id(node) in within for node in waits)


def module_of(title: str) -> ModuleType:
    (text,) = {sample.text for sample in PROGRAMS if sample.title == title}
    module = ModuleType(Path(title).stem)
    exec(compile(text, title, "exec"), module.__dict__)
    return module


def test_the_engine_works() -> None:
    engine = module_of("shouter.py").Shouter({"mark": "?!"})
    engine.open(1, StreamParams())
    request = json.dumps({"messages": [{"role": "user", "content": "go forward"}]})
    (output,) = engine.step([Item(1, 1, np.empty(0, np.float32), text=request)])
    assert output.pieces[0][:2] == (ResultKind.TEXT, "GO FORWARD?!")
    assert output.pieces[-1].kind == ResultKind.DONE


@pytest.mark.parametrize("sample", samples("toml"), ids=str)
def test_settings_load(sample: Sample, tmp_path: Path) -> None:
    tree: dict[str, Any] = tomllib.loads(sample.text)
    if sample.title == "pyproject.toml":
        (group,) = tree["project"]["entry-points"]
        assert group in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
        return
    path = tmp_path / "voiceserver.toml"
    path.write_text(sample.text)
    assert load(path, {}).sources


@pytest.mark.parametrize("sample", samples("json"), ids=str)
def test_messages_are_events(sample: Sample) -> None:
    for line in sample.text.splitlines():
        if sample.title == "client":
            assert native.codec_for(16_000, 24_000).receive_text(line)
        else:
            assert sample.title == "server"
            event = msgspec.json.decode(line, type=events.ServerEvent)
            assert json.loads(msgspec.json.encode(event)) == json.loads(line)


def test_a_message_that_is_no_event_fails() -> None:
    with pytest.raises(ProtocolError):
        native.codec_for(16_000, 24_000).receive_text('{"type": "session.updat"}')


@pytest.mark.parametrize("sample", samples("xml"), ids=str)
def test_twiml_connects_a_stream_with_parameters_that_are_taken(sample: Sample) -> None:
    stream = ET.fromstring(sample.text).find("Connect/Stream")
    assert stream is not None
    assert stream.attrib["url"].endswith("/v1/twilio")
    assert {one.attrib["name"] for one in stream} <= {"voice", "language", "instructions"}


@pytest.mark.parametrize("sample", samples("js"), ids=str)
def test_scripts_are_javascript(sample: Sample, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    path = tmp_path / "sample.mjs"
    path.write_text(sample.text)
    subprocess.run([node, "--check", path], check=True, timeout=60)


@pytest.mark.parametrize("sample", samples("ini"), ids=str)
def test_systemd_waits_longer_than_a_drain(sample: Sample) -> None:
    lines = dict(line.split("=") for line in sample.text.splitlines())
    assert int(lines["TimeoutStopSec"]) * 1000 > load(None, {}).config.server.drain_timeout_ms
    assert set(lines) == {"TimeoutStopSec", "LimitNOFILE"}


def test_diagrams_fit_a_page() -> None:
    for sample in samples(""):
        if sample.language == "" and not re.search(r"\w+\(", sample.text):
            assert max(len(line) for line in sample.text.splitlines()) <= 90, sample
