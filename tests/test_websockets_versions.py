"""Server and client on the versions of ``websockets`` that other packages hold us to, and the OpenAI SDK beside them.

``pip install 'openai[realtime]'`` brings a version below 16. Each version lies in a folder of its own before the environment that
runs the tests; without the package index these tests are skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from tests.sources import ROOT

SOURCES = [str(folder) for folder in (ROOT, ROOT / "workers", ROOT / "clients")]
OLDEST = "websockets==13.0"
OF_THE_SDK = "websockets<16"
LIMIT_S = 100

WITH_US = """
import asyncio, sys, websockets
from websockets.asyncio.client import connect

from voiceserver.events.events import HistoryItem, ItemAppend, ReplyCreate, ReplyDone
from voiceserver.testing import inline_pool, running_server
from voiceserver_clients.voice import Reconnect, VoiceClient


async def ask(server):
    async with VoiceClient.connect(server.url, reconnect=Reconnect()) as client:
        await client.send(ItemAppend(item=HistoryItem(role="user", text="what time is it")))
        await client.send(ReplyCreate())
        async for event in client.events():
            if isinstance(event, ReplyDone):
                assert event.text, event
                return


async def send_fragments(server):
    async with connect(f"{server.url}?rate=16000") as socket:
        await socket.recv()
        await socket.send(iter([b"\\0" * 320] * 3))  # a message in three frames
        await (await socket.ping())
        await socket.send(iter(['{"type":', '"session.close"}']))
        seen = [message async for message in socket if isinstance(message, str)]
        assert any('"received_ms":30.0' in message for message in seen), seen


async def status_of(server, head, body=b""):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head.encode("latin-1") + body)
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


async def main():
    async with running_server(make_pool=inline_pool) as server:
        await ask(server)
        await send_fragments(server)
        host = "Host: 127.0.0.1\\r\\n"
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n"
        upgrade = f"Upgrade: websocket\\r\\nConnection: Upgrade\\r\\n{key}"
        for status, line, headers in (
            (200, "GET /healthz HTTP/1.1", ""),
            (200, "GET /healthz HTTP/1.0", ""),
            (200, "HEAD /healthz HTTP/1.1", ""),
            (405, "POST /healthz HTTP/1.1", "Content-Length: 0\\r\\n"),
            (405, "PUT /v1/stream HTTP/1.1", upgrade),
            (505, "GET /v1/stream HTTP/1.0", upgrade),
            (101, "GET /v1/stream HTTP/1.1", upgrade),
            (101, "GET /v1/stream HTTP/1.1", upgrade + "X-Odd: \\xe9\\r\\n"),
            (414, "GET /" + "x" * 8200 + " HTTP/1.1", ""),
            (431, "GET / HTTP/1.1", "X-Long: " + "x" * 8200 + "\\r\\n"),
            (431, "GET / HTTP/1.1", "X: y\\r\\n" * 200),
            (400, "GET /", ""),
            (400, "GET / HTTP/2.0", ""),
        ):
            found = await status_of(server, f"{line}\\r\\n{host}{headers}\\r\\n")
            assert found == status, (found, status, line[:40], headers[:40])
    print("websockets", websockets.__version__)


asyncio.run(main())
"""

WITH_THE_SDK = """
import asyncio, websockets
from openai import AsyncOpenAI

from voiceserver.testing import inline_pool, running_server


async def main():
    async with running_server(make_pool=inline_pool) as server:
        client = AsyncOpenAI(api_key="unused", base_url=f"{server.http_url}/v1")
        async with client.realtime.connect(model="gpt-realtime") as connection:
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "what time is it"}]}
            await connection.conversation.item.create(item=item)
            await connection.response.create()
            async for event in connection:
                if event.type == "response.done":
                    assert event.response.status == "completed", event
                    break
    print("websockets", websockets.__version__)


asyncio.run(main())
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with one version each."""
    made = {wanted: tmp_path_factory.mktemp("websockets") for wanted in (OLDEST, OF_THE_SDK)}
    for wanted, folder in made.items():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-compile",
            "--only-binary=:all:",
        ]
        done = subprocess.run(
            [*pip, "--retries=0", "--timeout=20", f"--target={folder}", wanted],
            capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"{wanted} cannot be had here: {done.stderr.strip().splitlines()[-1]}")
    return made


def run(program: str, first: Path, *last: Path) -> str:
    """The version of websockets that was used."""
    path = os.pathsep.join(map(str, [first, *SOURCES]))
    script = f"import sys\nsys.path += {[str(one) for one in last]!r}\n{textwrap.dedent(program)}"
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:voiceserver", "-c", script],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()[-1]


@pytest.mark.parametrize("wanted", [OLDEST, OF_THE_SDK])
def test_server_and_client_speak_on_old_versions(wanted: str, folders: dict[str, Path]) -> None:
    version = run(WITH_US, folders[wanted])
    assert int(version.split(".")[0]) < 16


def test_the_answers_are_those_of_the_current_version(tmp_path: Path) -> None:
    assert int(run(WITH_US, tmp_path).split(".")[0]) >= 13


def test_the_openai_sdk_and_the_server_share_an_environment(folders: dict[str, Path]) -> None:
    stock = next((ROOT / ".venv-clients").glob("lib/*/site-packages/openai"), None)
    if stock is None:
        pytest.skip("openai is not installed: make clients-venv")
    assert int(run(WITH_THE_SDK, folders[OF_THE_SDK], stock.parent).split(".")[0]) < 16


def test_the_package_asks_for_no_later_version_than_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (asked,) = (one for one in project["dependencies"] if one.startswith("websockets"))
    least = re.fullmatch(r"websockets>=(\d+)", asked)
    assert least is not None
    assert f"websockets=={least[1]}.0" == OLDEST
