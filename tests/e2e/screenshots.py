"""README's pictures of the page and the dashboard, taken from a real browser and a real server: ``make screenshots``.

``python -m tests.e2e.screenshots [FOLDER] [--only NAME]``, about two minutes. The figures in them are what this machine does at
that moment, so it should have nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import soundfile
from websockets.sync.client import connect

from tests.e2e.browser import BROWSERS, Visit, visiting, write_microphone
from tests.e2e.serving import ENVIRONMENT, ServerProcess, serving
from tests.recordings import RATE_HZ, goforward

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "screenshots"
PAGE = {"width": 1200, "height": 760}
DASHBOARD = {"width": 1280, "height": 900}
FILLED_S = 100  # of the dashboard's charts, which hold two minutes
CROWD = 40  # talkers, for one recogniser
BEHIND_MS = 1_500


@contextlib.contextmanager
def ready_server(*settings: str) -> Iterator[ServerProcess]:
    with serving(*settings) as server:
        server.wait_for("calibrated" if "backpressure.max_talkers" not in " ".join(settings) else "started")
        while server.get("/readyz")[0] != 200:
            time.sleep(0.1)
        yield server


@contextlib.contextmanager
def crowd(server: ServerProcess, talkers: int, speech: Path, seconds: float) -> Iterator[None]:
    """People who talk meanwhile."""
    command = [
        sys.executable,
        "-m",
        "voiceserver_clients.load",
        f"--url={server.url}",
        f"--talkers={talkers}",
        "--ramp=8",
    ]
    load = subprocess.Popen(
        [*command, f"--seconds={seconds}", "--tally", str(speech)], stdout=subprocess.DEVNULL, env=ENVIRONMENT
    )
    try:
        yield
    finally:
        load.kill()
        load.wait()


def at(server: ServerProcess, path: str = "") -> str:
    return f"http://localhost:{server.port}/{path}"


def talk(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Talk").press("Enter")
    visit.page.evaluate("document.activeElement.blur()")  # no ring of the keyboard's focus in the picture


def page(folder: Path, microphone: Path, speech: Path) -> None:
    """A conversation, while the second answer is heard."""
    with ready_server() as server, visiting(at(server), microphone, viewport=PAGE) as visit:
        visit.ask("How much is seventeen times four?")
        turn = visit.wait_event("reply.done")["turn"]
        visit.wait(f"__voiceserver.progress?.turn === {turn} && __voiceserver.progress.isOver")
        talk(visit)
        turn = visit.wait_event("transcript.final")["turn"]
        visit.wait(f"__voiceserver.progress?.turn === {turn} && __voiceserver.progress.playedMs > 900")
        visit.page.screenshot(path=folder / "page.png")


def busy(folder: Path, microphone: Path, speech: Path) -> None:
    """One recogniser, and more talkers than it can follow."""
    places = ("stages.stt.workers=1", f"stages.stt.streams_per_worker={2 * CROWD}")
    settings = (*places, f"backpressure.max_talkers={2 * CROWD}", "backpressure.tenant_share=1")
    with ready_server(*settings) as server, crowd(server, CROWD, speech, 120):
        while server.get("/v1/capacity")[1]["stages"]["stt"]["lag_ms"] < BEHIND_MS:
            time.sleep(0.1)
        with visiting(at(server), microphone, viewport=PAGE) as visit:
            visit.ask("What time is it?")
            turn = visit.wait_event("reply.done")["turn"]
            visit.wait(f"__voiceserver.progress?.turn === {turn} && __voiceserver.progress.isOver")
            talk(visit)
            visit.page.locator("#banner[data-kind=busy]").wait_for()
            visit.wait("__voiceserver.events.filter((event) => event.type === 'server.busy').length > 1")
            visit.page.wait_for_timeout(400)
            visit.page.screenshot(path=folder / "page-busy.png")


def waiting(folder: Path, microphone: Path, speech: Path) -> None:
    """The waiting room: somebody has the only place, and somebody came before."""
    settings = ("backpressure.max_talkers=1", "backpressure.waiting_room=4", "backpressure.tenant_share=1")
    with (
        ready_server(*settings) as server,
        connect(server.url) as first,
        connect(server.url) as second,
        visiting(at(server), microphone, viewport=PAGE) as visit,
    ):
        first.recv()
        second.recv()
        visit.ask("Good morning")
        visit.page.locator("#banner[data-kind=waiting]").wait_for()
        visit.page.wait_for_timeout(1_500)
        visit.page.screenshot(path=folder / "page-waiting.png")


def dashboard(folder: Path, microphone: Path, speech: Path) -> None:
    """As many talkers as the server takes, two in line and two refused, until the charts are full."""
    with ready_server("backpressure.waiting_room=2", "backpressure.tenant_share=1") as server:
        places = server.get("/v1/capacity")[1]["talkers_limit"]
        with (
            visiting(at(server, "dashboard"), microphone, viewport=DASHBOARD) as visit,
            crowd(server, places + 4, speech, FILLED_S + 30),
        ):
            visit.page.wait_for_timeout(FILLED_S * 1000)
            visit.page.screenshot(path=folder / "dashboard.png", full_page=True)


SCENES: dict[str, Callable[[Path, Path, Path], None]] = {
    "page": page,
    "page-busy": busy,
    "page-waiting": waiting,
    "dashboard": dashboard,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.screenshots", description="Take README's pictures."
    )
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="default: deploy/screenshots")
    parser.add_argument("--only", choices=SCENES, help="one of them")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with the servers and browsers that were started
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, contextlib.closing(BROWSERS):
        recorded = goforward().audio
        microphone = write_microphone(Path(made) / "microphone.wav", recorded, RATE_HZ, 0.3, 20.0)
        speech = Path(made) / "speech.wav"
        soundfile.write(speech, recorded, RATE_HZ)
        for name in [options.only] if options.only else SCENES:
            SCENES[name](options.folder, microphone, speech)
            print(f"taken: {options.folder / name}.png", flush=True)


if __name__ == "__main__":
    main()
