"""The page's drawer: what it sets, what it shows, what may be taken away; and what becomes of a caller who went away."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.e2e.browser import Visit, chromium, page_of, visiting
from tests.e2e.serving import SMALL, ServerProcess, serving

QUESTION = "How much is two plus three?"
SPEAKS = (*SMALL[:3], "stages.tts.engine=espeak")
DARK = "rgb(14, 19, 18)"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    chromium()
    with serving(*SPEAKS) as server:
        yield server


@pytest.fixture
def visit(server: ServerProcess, silence: Path) -> Iterator[Visit]:
    with visiting(page_of(server), silence, permissions=["microphone", "clipboard-read"]) as visit:
        visit.page.evaluate(
            "__sent = []; __voiceserver.wire.addEventListener('sent', ({ detail }) => __sent.push(detail))"
        )
        yield visit
        assert not visit.problems


def open_drawer(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Settings").click()
    visit.page.locator("#panel[open]").wait_for()


def choose(visit: Visit, label: str, value: str) -> None:
    field = visit.page.locator("#panel").get_by_label(label, exact=True)
    if field.evaluate("(field) => field.tagName") == "SELECT":
        field.select_option(value)
    else:
        field.fill(value)
        field.blur()


def sent(visit: Visit, kind: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = visit.page.evaluate(
        "(kind) => __sent.filter(({ type }) => type === kind)", kind
    )
    return found


def test_what_is_chosen_is_told_to_this_session_and_to_the_next(visit: Visit) -> None:
    visit.ask(QUESTION)
    visit.wait_event("reply.done")
    open_drawer(visit)
    visit.wait_text("#panel dl", "concierge")
    choose(visit, "Language", "de")
    choose(visit, "Instructions", "Be brief.")
    visit.wait("__voiceserver.events.filter(({ type }) => type === 'session.updated').length === 2")
    assert sent(visit, "session.update")[-1] == {
        "type": "session.update",
        "event_id": "settings",
        "language": "de",
        "instructions": "Be brief.",
    }
    visit.page.get_by_role("button", name="Close").click()
    visit.page.get_by_role("button", name="Hang up").click()
    visit.ask("How much is four plus five?")
    visit.wait_text(".reply", "9")
    assert len(sent(visit, "session.update")) == 3
    told = [one["type"] for one in visit.page.evaluate("__sent")]
    assert told[told.index("session.close") + 1 :][:3] == ["session.update", "item.append", "reply.create"]
    visit.page.reload()  # kept in this browser
    open_drawer(visit)
    assert visit.page.get_by_label("Instructions").input_value() == "Be brief."


def test_a_setting_that_the_server_does_not_take_is_said(visit: Visit) -> None:
    visit.ask(QUESTION)
    visit.wait_event("reply.done")
    open_drawer(visit)
    choose(visit, "End of a turn", "pause")  # without a vad engine
    visit.wait_text("#banner h2", "A setting was not taken")
    assert "vad" in visit.text("#banner p")


def test_turns_that_end_by_hand_end_with_the_press(visit: Visit) -> None:
    open_drawer(visit)
    choose(visit, "End of a turn", "hand")
    visit.page.get_by_role("button", name="Close").click()
    visit.page.get_by_role("button", name="Talk").press("Enter")
    visit.wait("__voiceserver.sound.isMicrophoneOpen")
    visit.wait_event("session.updated")
    assert sent(visit, "session.update")[0]["turn_detection"] is None
    visit.page.get_by_role("button", name="Mute").press("Enter")
    visit.wait("__sent.some(({ type }) => type === 'input.commit')")
    assert not visit.page.locator("#banner").is_visible()


def test_events_can_be_filtered_and_copied_without_the_token(visit: Visit) -> None:
    visit.ask(QUESTION)
    visit.wait_event("reply.done")
    open_drawer(visit)
    visit.wait_text(".log li", "session.ready")
    token = visit.events("session.ready")[0]["resume_token"]
    assert token not in visit.text(".log")
    visit.page.get_by_label("Filter events").fill("reply.")
    shown = visit.page.locator(".log li").all_inner_texts()
    assert len(shown) >= 3
    assert all("reply." in line for line in shown)
    visit.page.get_by_role("button", name="Copy").click()
    visit.page.get_by_role("button", name="Copied").wait_for()
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines()[: len(shown)] == shown
    assert json.loads(copied.splitlines()[0].split(" reply.create ")[1])["key"] == "ask-1"


def test_transcript_and_sound_can_be_taken_away(visit: Visit) -> None:
    visit.ask(QUESTION)
    done = visit.wait_event("reply.done")
    visit.wait("__voiceserver.progress?.isOver")
    open_drawer(visit)

    def taken(button: str) -> bytes:
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name=button).click()
        return Path(download.value.path()).read_bytes()

    text = taken("Download transcript").decode()
    assert text == f"You: {QUESTION}\nServer: {done['text']}"
    audio, rate_hz = soundfile.read(io.BytesIO(taken("Download WAV")), dtype="float32")
    assert (rate_hz, audio.shape[1]) == (24_000, 2)
    assert len(audio) / 24 == pytest.approx(done["timings"]["audio_ms"], abs=250)
    assert np.abs(audio[:, 0]).max() == 0.0  # nobody spoke
    assert np.abs(audio[:, 1]).max() > 0.05


TAPE = """async () => {
    const { Tape } = await import("/web/tape.js");
    const tape = new Tape(16000, 24000);
    const mine = new Int16Array(16000).fill(8000);
    for (let at = 0; at < 16000; at += 320) tape.add(0, mine.slice(at, at + 320).buffer);
    tape.add(1, new Int16Array(48000).fill(4000).buffer);
    tape.add(1, new Int16Array(24000).fill(4000).buffer);
    tape.cut(1, 1500);
    const data = new DataView(await tape.toWav().arrayBuffer());
    const samples = new Int16Array(await tape.toWav().slice(44).arrayBuffer());
    const side = (which) => samples.filter((_, i) => i % 2 === which);
    const louder = (which, than) => side(which).filter((x) => x > than).length;
    return [data.getUint32(40, true) / 4, louder(0, 7000), louder(1, 3900)];
}"""


def test_the_recording_has_both_sides_and_of_a_reply_what_was_heard(visit: Visit) -> None:
    frames, mine, reply = visit.page.evaluate(TAPE)
    assert mine == pytest.approx(24_000, abs=100)  # a second, at the rate of the reply
    assert reply == 36_000
    assert frames >= 36_000


def test_a_theme_is_chosen_for_all_pages(visit: Visit, server: ServerProcess) -> None:
    def background() -> str:
        return str(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    is_dark = f"getComputedStyle(document.body).backgroundColor === {DARK!r}"
    visit.page.emulate_media(color_scheme="light")
    visit.wait(f"!({is_dark})")
    visit.page.emulate_media(color_scheme="dark")
    visit.wait(is_dark)
    open_drawer(visit)
    choose(visit, "Theme", "light")
    assert background() != DARK
    choose(visit, "Theme", "dark")
    visit.page.emulate_media(color_scheme="light")
    visit.page.wait_for_timeout(300)
    assert background() == DARK
    for path in ("", "dashboard"):
        visit.page.goto(page_of(server) + path)
        assert background() == DARK, path
    visit.page.goto(page_of(server) + "docs/")  # has no script
    assert background() != DARK
    visit.page.emulate_media(color_scheme="dark")
    visit.wait(is_dark)


def test_who_is_muted_and_away_is_asked_and_then_makes_room(silence: Path) -> None:
    with (
        serving(*SMALL, "backpressure.max_talkers=1") as server,
        visiting(page_of(server), silence) as visit,
    ):
        visit.page.clock.install()
        visit.page.reload()
        visit.ask(QUESTION)
        visit.wait_event("reply.done")
        banner = visit.page.locator("#banner[data-kind=idle]")

        def pass_s(seconds: int) -> None:
            visit.page.clock.fast_forward(seconds * 1000)

        pass_s(50)
        visit.page.wait_for_timeout(300)
        assert not banner.is_visible()
        pass_s(30)
        banner.wait_for()
        assert "Are you still there?" in banner.inner_text()
        visit.page.get_by_role("button", name="I am here").click()
        banner.wait_for(state="hidden")
        pass_s(40)
        assert server.get("/v1/capacity")[1]["connections"] == 1
        pass_s(40)
        banner.wait_for()
        pass_s(31)
        visit.wait_text("#status", "Not connected")
        while server.get("/v1/capacity")[1]["connections"]:
            visit.page.wait_for_timeout(50)
        visit.ask("How much is four plus five?")
        visit.wait_text(".reply", "9")
        visit.wait_text(".break", re.compile("You were away"))
