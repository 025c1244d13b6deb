"""The testing kit, used as authors outside this repository use it: a project of their own, with the plug-in."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pytest

from tests.voiceserver.shell import AnsweredPool
from voiceserver.config.schema import Config, StageConfig, StagesConfig
from voiceserver.errors import ConfigError
from voiceserver.testing import ManualClock, RunningServer, inline_pool, running_server
from voiceserver_clients.voice import VoiceClient
from voiceserver_workers.ipc.messages import ResultKind

ROOT = Path(__file__).resolve().parents[3]
SOURCES = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "workers", ROOT / "clients"))

ENGINE = '''
import json
import pytest
from voiceserver.testing import EngineCase, EngineSuite, reply_script
from voiceserver_workers.engine import EngineError, EngineInfo, Output, Piece
from voiceserver_workers.ipc.messages import ResultKind


class Shouter:
    """A reply engine that answers in capitals."""

    def __init__(self, params):
        for key in params:
            raise ValueError(f"{key}: there is no such parameter")
        self.info = EngineInfo("shouter", "reply")
        self.streams = set()

    def open(self, stream, params):
        for key in params.options:
            raise EngineError("bad_option", f"{key}: there is no such option")
        if stream in self.streams:
            raise EngineError("stream_open", "the stream is open already")
        self.streams.add(stream)

    def step(self, batch):
        if any(item.stream not in self.streams for item in batch):
            raise EngineError("stream_unknown", "the stream is not open")
        return [self.answer(item) for item in batch]

    def answer(self, item):
        if item.is_continued:
            return Output()
        text = json.loads(item.text)["messages"][-1]["content"]
        return Output([Piece(ResultKind.TEXT, text.upper()), Piece(ResultKind.DONE)])

    def cancel(self, stream, turn):
        pass

    def close(self, stream):
        self.streams.discard(stream)


class TestShouter(EngineSuite):
    @pytest.fixture
    def case(self):
        return EngineCase(
            "shouter",
            Shouter,
            lambda: [reply_script("hello", "who is there"), reply_script("good bye")],
            bad_params=({"colour": "red"},),
            bad_options=({"colour": "red"},),
        )
'''

WIRE = """
import pytest
from voiceserver.testing import CodecCase, CodecSuite
from voiceserver.wire.native import NativeCodec


class TestMyWire(CodecSuite):
    @pytest.fixture
    def case(self):
        return CodecCase(
            "mine",
            lambda: NativeCodec(16_000, 16_000),
            16_000,
            audio_message=bytes,
            reply_audio=lambda frames: b"".join(one for one in frames if isinstance(one, bytes)),
            goodbye=('{"type":"session.close"}',),
            valid_messages=('{"type":"input.commit"}',),
        )
"""

AGENT = """
import json
import urllib.request

from voiceserver.config.schema import Config, StageConfig, StagesConfig
from voiceserver.events.events import HistoryItem, ItemAppend, ReplyCreate, ReplyDone
from voiceserver.testing import Answer, ChatEndpoint, inline_pool, running_server
from voiceserver_clients.voice import VoiceClient


async def ask(url, text):
    async with VoiceClient.connect(url) as client:
        await client.send(ItemAppend(item=HistoryItem(role="user", text=text)))
        await client.send(ReplyCreate())
        async for event in client.events():
            if isinstance(event, ReplyDone):
                return event.text


def get(url):
    with urllib.request.urlopen(url) as response:
        return json.loads(response.read())


def test_the_server_is_there(voice_server):
    assert "stages" in get(f"{voice_server.http_url}/v1/capacity")
    assert voice_server.log[0]["event"] == "listening"


def test_the_endpoint_is_there(chat_endpoint):
    assert get(f"{chat_endpoint.base_url}/models") == {"data": []}
    assert chat_endpoint.probes == ["/v1/models"]


def test_time_is_the_tests(manual_clock):
    before_ms = manual_clock()
    manual_clock.advance(50)
    assert manual_clock() - before_ms == 50


async def test_my_agent_answers():
    none = StageConfig(engine="none")
    async with ChatEndpoint(Answer(["It is", " sunny."])) as endpoint:
        chat = StageConfig(engine="chat", params={"base_url": endpoint.base_url, "model": "m"})
        config = Config(stages=StagesConfig(vad=none, stt=none, reply=chat, tts=none))
        async with running_server(config, make_pool=inline_pool) as server:
            assert await ask(server.url, "How is the weather?") == "It is sunny."
        assert endpoint.requests[0].body["messages"][-1]["content"] == "How is the weather?"
"""


def run_pytest(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the tests of a project outside the repository. The installed entry point is tested with the wheel."""
    plugins = ("-p", "pytest_asyncio.plugin", "-p", "voiceserver.testing.plugin")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": SOURCES, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_authors_of_engines_wires_and_agents_test_their_own_projects(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    for name, text in (("engine", ENGINE), ("wire", WIRE), ("agent", AGENT)):
        (tmp_path / f"test_{name}.py").write_text(textwrap.dedent(text))
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


def test_the_plugin_loads_nothing_heavy_for_projects_that_do_not_use_it(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n\ndef test_nothing():\n"
        "    ours = {name for name in sys.modules if name.split('.')[0].startswith('voiceserver')}\n"
        "    assert ours == {'voiceserver', 'voiceserver.testing', 'voiceserver.testing.plugin'}\n"
        "    assert not {'numpy', 'torch', 'hypothesis', 'uvloop', 'structlog'} & set(sys.modules)\n"
    )
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_running_server_answers_with_an_engine_in_this_thread() -> None:
    async with running_server(make_pool=inline_pool) as server:
        async with VoiceClient.connect(server.url) as client:
            assert (await client.wait_ready()).session_id
        assert {entry["event"] for entry in server.log} >= {"listening", "started"}


async def test_a_stage_takes_the_pool_of_the_test() -> None:
    pool = AnsweredPool("stt")
    async with running_server(pools={"stt": pool}) as server, VoiceClient.connect(server.url) as client:
        await client.send_audio(bytes(3200))
        await client.commit()
        await client.wait_ready()
        while not pool.streams:
            await client.send_audio(bytes(320))
        pool.streams[0].answer(ResultKind.OPENED)


async def test_an_engine_that_nobody_knows_is_a_config_error() -> None:
    stages = StagesConfig(
        vad=StageConfig(engine="none"),
        stt=StageConfig(engine="none"),
        reply=StageConfig(engine="nobody"),
        tts=StageConfig(engine="none"),
    )
    with pytest.raises(ConfigError, match="nobody"):
        async with running_server(Config(stages=stages)):
            pass


def test_a_fixture_serves_code_without_a_loop(voice_server: RunningServer) -> None:
    with urllib.request.urlopen(f"{voice_server.http_url}/healthz") as response:
        assert response.status == 200


def test_a_manual_clock_runs_each_timer_at_its_time() -> None:
    clock, rung = ManualClock(), []
    clock.call_later(0.030, lambda: rung.append(clock()))
    late = clock.call_later(0.050, lambda: rung.append(clock()))
    late.cancel()
    clock.advance(29)
    assert rung == []
    clock.advance(100)
    assert rung == [1030]
    assert clock() == 1129
