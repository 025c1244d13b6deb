"""The page in a real browser with a microphone: words appear, the answer is heard, and what is in the way is said.

Needs Chromium and the package playwright; skipped, visibly, where one is missing.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.e2e.browser import Visit, chromium, page_of, visiting, write_microphone
from tests.e2e.serving import SMALL, STEADY, ServerProcess, serving
from tests.recordings import RATE_HZ, goforward

LONG = "The quick brown fox jumps over the lazy dog and then it runs away across the hills. " * 4
# A busy machine starves the microphone of a browser, too: one word of what was said is enough, and any of made speech.
HEARD = re.compile(r"\w" if goforward().is_made else r"\b(go|forward|ten|meters)\b")
AUDIBLE_SAMPLES = 5_000  # of 48,000 a second

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    chromium()
    # What else the machine does must not matter: a slow step is no hung worker.
    patient = [f"stages.{stage}.step_timeout_ms=100000" for stage in ("vad", "stt", "reply", "tts")]
    with serving(*STEADY, "stages.stt.streams_per_worker=1", *patient) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("microphone") / "goforward.wav"
    return write_microphone(path, goforward().audio, RATE_HZ, 0.3, 20.0)


@pytest.fixture
def visit(server: ServerProcess, speech: Path) -> Iterator[Visit]:
    with visiting(page_of(server), speech, viewport={"width": 1200, "height": 820}) as visit:
        yield visit
        print(*visit.page.evaluate("__voiceserver.events.map((event) => JSON.stringify(event))"), sep="\n")
        assert not visit.problems


def talk(visit: Visit) -> None:
    """Open the microphone, by the keyboard: a press of the mouse may last long on a busy machine, and is push-to-talk then."""
    visit.page.get_by_role("button", name="Talk").press("Enter")
    visit.wait("document.querySelector('#talk').ariaPressed === 'true'")


def heard_all(visit: Visit, turn: int) -> dict[str, float]:
    """What the loudspeaker says of a reply that was played to its end."""
    visit.wait(f"__voiceserver.progress?.turn === {turn} && __voiceserver.progress.isOver")
    progress: dict[str, float] = visit.page.evaluate("__voiceserver.progress")
    return progress


def test_speech_becomes_words_and_an_audible_answer(visit: Visit, server: ServerProcess) -> None:
    talk(visit)
    visit.wait_text(".you[data-state=final]", HEARD)
    visit.wait_text(".reply", HEARD)
    done = visit.wait_event("reply.done")
    heard = heard_all(visit, done["turn"])
    assert heard["audible"] > AUDIBLE_SAMPLES
    assert heard["playedMs"] == pytest.approx(done["timings"]["audio_ms"], abs=2.0)
    assert not heard["isCut"]
    assert visit.page.locator(".split-bar i").count() >= 4
    for part, name in (("end of turn", "endpointing_ms"), ("transcript", "stt_ms"), ("voice", "tts_ms")):
        took_ms = done["timings"][name]
        shown = re.search(r"([\d.]+) (ms|s)", visit.text(f".split li:has-text('{part}')"))
        assert shown is not None
        shown_ms = float(shown[1]) * (1000 if shown[2] == "s" else 1)
        last_digit = 0.1 if took_ms < 10 else 1.0 if took_ms < 999.5 else 10.0
        assert shown_ms == pytest.approx(took_ms, abs=last_digit * 0.501), part
    assert {request.partition("?")[0].rstrip("/") for request in visit.requests} <= {
        page_of(server) + path
        for path in ("", *(f"web/{file.name}" for file in Path("voiceserver/web").iterdir()))
    } | {page_of(server).rstrip("/")}


def test_words_appear_while_they_are_spoken(visit: Visit) -> None:
    """A server on a busy machine leaves partials out, so that they are told to the page here."""
    talk(visit)
    visit.wait_event("session.ready")
    for text in ("go", "go forward"):
        event = {"type": "transcript.partial", "turn": 7, "text": text}
        visit.page.evaluate(
            "(e) => __voiceserver.wire.dispatchEvent(new CustomEvent('event', {detail: e}))", event
        )
        visit.page.locator(".you[data-state=partial]").get_by_text(text, exact=True).wait_for()


def test_typing_is_as_good_as_talking(visit: Visit) -> None:
    visit.page.get_by_label("Type instead of talking").fill("How much is two plus three?")
    visit.page.keyboard.press("Enter")
    visit.wait_text(".you", "How much is two plus three?")
    visit.wait_text(".reply", "5")
    assert visit.page.locator(".turn").count() == 1  # question and answer
    done = visit.wait_event("reply.done")
    assert heard_all(visit, done["turn"])["audible"] > AUDIBLE_SAMPLES
    assert visit.text("#announce")  # for a screen reader


def test_speaking_into_the_answer_stops_it(visit: Visit) -> None:
    visit.page.get_by_label("Type instead of talking").fill(LONG)
    visit.page.keyboard.press("Enter")
    visit.wait("__voiceserver.progress?.playedMs > 0")
    spoken = visit.wait_event("reply.started")["turn"]
    talk(visit)
    visit.wait("__voiceserver.events.some((event) => event.interrupted_turn)")
    visit.wait("__voiceserver.cut")
    cut = visit.page.evaluate("__voiceserver.cut")
    done = visit.wait_event("reply.done", turn=spoken)
    assert (cut["turn"], cut["isOver"]) == (spoken, True)
    assert 0 < cut["playedMs"] < done["timings"]["audio_ms"]
    visit.wait_text(".note", "You interrupted this.")
    visit.wait_text(".you[data-state=final]", HEARD)


def test_space_held_is_push_to_talk(visit: Visit) -> None:
    visit.page.keyboard.down("Space")
    visit.wait_event("speech.started")
    visit.wait("__voiceserver.talk.level > 0.005")
    visit.page.keyboard.up("Space")
    visit.wait_event("speech.stopped", reason="commit")
    visit.wait_event("transcript.final")
    assert visit.page.get_by_role("button", name="Talk").get_attribute("aria-pressed") == "false"
    assert not visit.page.evaluate("__voiceserver.sound.isMicrophoneOpen")


def test_busy_is_shown_and_nothing_is_lost(visit: Visit, server: ServerProcess) -> None:
    with connect(server.url) as other:
        hold_recogniser(other, server)
        talk(visit)
        busy = visit.wait_event("server.busy", stage="stt")
        banner = visit.page.locator("#banner[data-kind=busy]")
        banner.wait_for()
        assert "speech recognition" in banner.inner_text()
        assert "behind" in banner.inner_text()
        assert visit.text("#status").strip() == "Busy"
        assert busy["lag_ms"] > 0
    visit.wait_text(".you[data-state=final]", HEARD)
    visit.wait_event("server.ready")
    banner.wait_for(state="hidden")


def hold_recogniser(caller: ClientConnection, server: ServerProcess) -> None:
    """Take the only place of the stt stage: a turn that is ended by hand, and never is."""
    caller.send(json.dumps({"type": "session.update", "turn_detection": None}))
    caller.send(bytes(3_200))
    while server.get("/v1/capacity")[1]["stages"]["stt"]["streams"] == 0:
        assert json.loads(caller.recv(timeout=30))["type"] in ("session.ready", "session.updated")


def test_a_refused_page_says_when_and_comes_back(speech: Path) -> None:
    chromium()
    with (
        serving(*SMALL, "backpressure.max_connections=1") as server,
        connect(server.url) as other,
        visiting(page_of(server), speech) as visit,
    ):
        other.recv()
        visit.page.get_by_label("Type instead of talking").fill("Hello")
        visit.page.keyboard.press("Enter")
        banner = visit.page.locator("#banner[data-kind=refused]")
        banner.wait_for()
        assert "All lines are taken" in banner.inner_text()
        assert visit.text("[data-part=countdown]")
        other.close()
        visit.page.get_by_role("button", name="Try now").click()
        banner.wait_for(state="hidden")
        visit.wait_text(".reply", "Hello")


def test_the_waiting_room_has_a_place_and_an_end(speech: Path) -> None:
    chromium()
    with (
        serving(*SMALL, "backpressure.max_talkers=1", "backpressure.waiting_room=4") as server,
        connect(server.url) as first,
        visiting(page_of(server), speech) as visit,
    ):
        first.recv()
        visit.page.get_by_label("Type instead of talking").fill("Hello")
        visit.page.keyboard.press("Enter")
        banner = visit.page.locator("#banner[data-kind=waiting]")
        banner.wait_for()
        assert "You are next" in banner.inner_text()
        assert re.search(r"about \d+ s|any moment", visit.text("[data-part=countdown]"))
        assert visit.text("#status").strip() == "In line"
        first.close()
        banner.wait_for(state="hidden")
        visit.wait_text(".reply", "Hello")


def test_draining_is_said_and_the_page_waits_for_another_server(speech: Path) -> None:
    chromium()
    with serving(*SMALL) as server, visiting(page_of(server), speech) as visit:
        visit.page.get_by_label("Type instead of talking").fill("Hello")
        visit.page.keyboard.press("Enter")
        visit.wait_event("reply.done")
        server.signal(signal.SIGTERM)
        visit.page.locator("#banner[data-kind=refused], #banner[data-kind=lost]").wait_for()
        visit.wait_event("server.draining")
        assert visit.page.get_by_role("button", name="Try now").is_visible()
        assert server.wait() == 0


@pytest.mark.parametrize("width", [360, 768])
def test_it_fits_a_phone(server: ServerProcess, speech: Path, width: int) -> None:
    with visiting(page_of(server), speech, viewport={"width": width, "height": 740}, has_touch=True) as visit:
        for path in ("", "dashboard"):
            visit.page.goto(page_of(server) + path)
            visit.page.wait_for_load_state("networkidle" if not path else "load")
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
            small = visit.page.evaluate(
                """() => [...document.querySelectorAll("button, a, input")].filter((it) => it.offsetParent)
                    .filter((it) => it.getBoundingClientRect().height < 44).map((it) => it.outerHTML)"""
            )
            assert small == []


def test_without_a_microphone_the_page_says_so_and_typing_goes_on(
    server: ServerProcess, speech: Path
) -> None:
    with visiting(page_of(server), speech) as visit:
        visit.page.evaluate(
            "() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotFoundError')) }"
        )
        visit.page.get_by_role("button", name="Talk").click()
        visit.wait_text("#banner[data-kind=problem]", "No microphone was found")
        visit.page.get_by_role("button", name="What time is it?").click()
        visit.wait_text(".reply", "is")


RESAMPLED = """async ([fromHz, toHz, toneHz]) => {
    const { Resampler } = await import("/web/resample.js");
    const input = Float32Array.from({ length: fromHz }, (_, i) => Math.sin((2 * Math.PI * toneHz * i) / fromHz));
    const chunked = new Resampler(fromHz, toHz), whole = new Resampler(fromHz, toHz);
    const once = [...whole.process(input), ...whole.flush()];
    const parts = [];
    for (let at = 0; at < input.length; at += 128) parts.push(...chunked.process(input.slice(at, at + 128)));
    parts.push(...chunked.flush());
    const middle = once.slice(toHz / 4, (toHz * 3) / 4);
    const rms = Math.sqrt(middle.reduce((sum, x) => sum + x * x, 0) / middle.length);
    const apart = Math.max(...once.map((x, i) => Math.abs(x - parts[i])));
    return [once.length, parts.length, rms, apart];
}"""


@pytest.mark.parametrize(
    ("from_hz", "to_hz", "tone_hz", "gain_db"),
    [(48_000, 16_000, 1_000, 0), (48_000, 16_000, 10_000, -60), (44_100, 16_000, 3_000, 0), (24_000, 48_000, 5_000, 0)],
)  # fmt: skip
def test_the_resampler_keeps_speech_and_drops_what_would_fold(
    visit: Visit, from_hz: int, to_hz: int, tone_hz: int, gain_db: float
) -> None:
    samples, chunked, rms, apart = visit.page.evaluate(RESAMPLED, [from_hz, to_hz, tone_hz])
    assert samples == chunked == pytest.approx(to_hz, abs=64)
    assert apart < 1e-4  # no seams
    assert rms * 2**0.5 == pytest.approx(1.0, abs=0.01) if not gain_db else rms < 10 ** (gain_db / 20)
