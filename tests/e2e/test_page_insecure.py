"""The page on plain http: it says so at once, does not offer a microphone, and typed questions are answered aloud. Then over
``serve --tls self-signed``, which is one of the ways out that it names."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import Visit, chromium, visiting
from tests.e2e.serving import ENVIRONMENT, SMALL, ServerProcess, serving

NAME = "voice.test"  # leads to this machine, and is not localhost
FLAG = f"--host-resolver-rules=MAP {NAME} 127.0.0.1"
AUDIBLE_SAMPLES = 5_000
LONG = "The quick brown fox jumps over the lazy dog and then it runs away across the hills. " * 4

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    chromium()
    with serving(*SMALL[:3], "stages.tts.engine=espeak") as server:
        yield server


@pytest.fixture
def visit(server: ServerProcess, silence: Path) -> Iterator[Visit]:
    with visiting(f"http://{NAME}:{server.port}/", silence, flags=(FLAG,)) as visit:
        assert not visit.page.evaluate("isSecureContext")
        yield visit
        assert not visit.problems


def test_at_load_the_page_says_what_is_missing_and_how_to_get_it(visit: Visit) -> None:
    banner = visit.page.locator("#banner[data-kind=insecure]")
    banner.wait_for()
    for way in ("--tls self-signed", "ssh -L", "https"):
        assert way in banner.inner_text()
    talk = visit.page.get_by_role("button", name="Talk")
    assert talk.is_disabled()
    visit.page.keyboard.press("Space")
    assert visit.page.evaluate("__voiceserver.talk.mode") == "off"
    assert visit.text("#mood").strip() == "Type to ask"


def test_a_typed_question_is_answered_aloud_and_the_banner_stays_until_it_is_dismissed(visit: Visit) -> None:
    visit.ask("How much is two plus three?")
    visit.wait_text(".reply", "5")
    done = visit.wait_event("reply.done")
    visit.wait("__voiceserver.progress?.isOver")
    heard = visit.page.evaluate("__voiceserver.progress")
    assert heard["audible"] > AUDIBLE_SAMPLES
    assert heard["playedMs"] == pytest.approx(done["timings"]["audio_ms"], abs=2.0)
    banner = visit.page.locator("#banner")
    assert banner.is_visible()
    visit.page.get_by_role("button", name="Dismiss").click()
    visit.ask("How much is four plus five?")
    visit.wait_text(".reply", "9")
    assert not banner.is_visible()


def test_a_question_typed_into_the_answer_cuts_it_off_here_too(visit: Visit) -> None:
    visit.ask(LONG)
    visit.wait("__voiceserver.progress?.playedMs > 0")
    visit.ask("How much is two plus three?")
    visit.wait("__voiceserver.cut")
    first, second = (visit.wait_event("reply.done", key=f"ask-{number}") for number in (1, 2))
    visit.wait(f"__voiceserver.progress?.turn === {second['turn']} && __voiceserver.progress.isOver")
    cut = visit.page.evaluate("__voiceserver.cut")
    assert cut["turn"] == first["turn"]
    assert 0 < cut["playedMs"] < 20_000
    played = visit.page.evaluate("__voiceserver.progress.playedMs")
    assert played == pytest.approx(second["timings"]["audio_ms"], abs=2.0)


def test_the_certificate_that_the_server_makes_gives_the_microphone(silence: Path, tmp_path: Path) -> None:
    """On every address, by what is printed; the browser's warning is passed by, as a person would."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    settings = [part for setting in SMALL for part in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "voiceserver",
        "serve",
        "--tls",
        "self-signed",
        "--port",
        str(port),
        *settings,
    ]
    environment = {**ENVIRONMENT, "HOME": str(tmp_path)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        printed = ""
        while "--host 0.0.0.0" not in printed:  # the last line
            line = process.stdout.readline()
            assert line, printed
            printed += line
        address = re.search(r"Open (https://\S+)", printed)
        assert address is not None
        assert address[1] == f"https://127.0.0.1:{port}/"
        shown = ssl.get_server_certificate(("127.0.0.1", port))
        fingerprint = re.search(r"^(?:[0-9A-F]{2}:){31}[0-9A-F]{2}$", printed, re.MULTILINE)
        assert fingerprint is not None
        kept = tmp_path / ".local/share/voiceserver/self-signed/cert.pem"
        assert ssl.PEM_cert_to_DER_cert(shown) == ssl.PEM_cert_to_DER_cert(kept.read_text())
        with visiting(f"https://{NAME}:{port}/", silence, flags=(FLAG,), ignore_https_errors=True) as visit:
            assert visit.page.evaluate("isSecureContext")
            visit.page.get_by_role("button", name="Talk").press("Enter")
            visit.wait("document.querySelector('#talk').ariaPressed === 'true'")
            visit.wait("__voiceserver.sound.isMicrophoneOpen")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_wrong_use_of_the_option_is_one_line() -> None:
    for more, problem in (
        (["--tls", "letsencrypt"], "self-signed"),
        (["--tls", "self-signed", "--set", "server.tls_cert=cert.pem"], "server.tls_cert"),
    ):
        command = [sys.executable, "-m", "voiceserver", "serve", "--port", "0", *more]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        assert done.returncode == 2
        assert problem in done.stderr
        assert len(done.stderr.splitlines()) == 1
