"""What becomes of a question on the page: typed into an answer, asked of a server that restarts, failed, hung up on."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import Visit, page_of, visiting
from tests.e2e.serving import SMALL, serving
from voiceserver.server.auth import hash_of
from voiceserver.testing.chat_endpoint import Answer, Script, Silent, Status, Tool, endpoint_in_thread

SPEAKS = (*SMALL[:3], "stages.tts.engine=espeak")
LONG = "The quick brown fox jumps over the lazy dog and then it runs away across the hills. " * 4
BUSY = {
    "type": "server.busy",
    "stage": "stt",
    "reason": "slow",
    "step": "slow",
    "lag_ms": 900,
    "credit_ms": 5000,
    "retry_after_ms": 900,
    "dropped_ms": 0,
}

pytestmark = pytest.mark.timeout(180)


def wait_answer(visit: Visit, question: str, answer: str) -> None:
    turn = visit.page.locator(".turn", has_text=question)
    turn.locator(".reply[data-state=completed]", has_text=answer).wait_for()


def told(visit: Visit, event: dict[str, object]) -> None:
    """As if the server had said ``event``."""
    visit.page.evaluate(
        "(e) => __voiceserver.wire.dispatchEvent(new CustomEvent('event', {detail: e}))", event
    )


@contextlib.contextmanager
def asking(silence: Path, *scripts: Script) -> Iterator[Visit]:
    """A page whose server asks a language model that answers by script."""
    with endpoint_in_thread(*scripts) as endpoint:
        chat = ("engine=chat", f"params.base_url={endpoint.base_url}", "params.model=m", "params.retries=0")
        settings = [*SMALL[:2], SMALL[3], *(f"stages.reply.{one}" for one in chat)]
        with (
            serving(*settings, "stages.reply.params.uses_proxy=false") as server,
            visiting(page_of(server), silence) as visit,
        ):
            yield visit


def test_a_question_typed_into_the_answer_stops_it_and_is_answered(silence: Path) -> None:
    with serving(*SPEAKS) as server, visiting(page_of(server), silence) as visit:
        visit.ask(LONG)
        visit.wait("__voiceserver.progress?.playedMs > 0")
        visit.ask("How much is two plus three?")
        wait_answer(visit, "How much is two plus three?", "5")
        visit.wait("__voiceserver.progress?.isOver && !__voiceserver.progress.isCut")
        assert not visit.page.locator("#banner").is_visible()
        assert not visit.problems


def test_a_question_typed_into_a_model_that_is_silent_gives_that_answer_up(silence: Path) -> None:
    with asking(silence, Silent(), Answer(["Five."])) as visit:
        visit.ask("Are you there?")
        visit.wait_event("reply.started")
        assert visit.text("#mood").strip() == "Thinking"
        visit.ask("How much is two plus three?")
        wait_answer(visit, "How much is two plus three?", "Five.")
        assert visit.wait_event("reply.done", reason="cancelled")["key"] == "ask-1"
        visit.wait_text(".turn:has-text('Are you there?') .note", "Stopped.")
        assert not visit.page.locator("#banner").is_visible()


def test_a_failed_answer_says_why_and_can_be_had_again(silence: Path) -> None:
    with asking(silence, Status(401), Answer(["Here I am."])) as visit:
        visit.ask("Are you there?")
        failed = visit.wait_event("reply.done", reason="failed")
        note = visit.page.locator(".note[data-bad=true]")
        note.wait_for()
        assert failed["message"] in note.inner_text()
        visit.page.get_by_role("button", name="Try again").click()
        wait_answer(visit, "Are you there?", "Here I am.")
        assert visit.page.locator(".turn").count() == 1
        assert not note.is_visible()


def test_a_tool_call_is_seen(silence: Path) -> None:
    """A page offers no tools; a model may call one all the same, and clients of the same session may have some."""
    with asking(silence, Answer(tools=[Tool("get_weather", ['{"city": ', '"Oslo"}'])])) as visit:
        visit.ask("What is the weather?")
        visit.wait_text(".tools li", 'get_weather({"city": "Oslo"})')


def test_after_a_restart_the_page_says_so_and_asks_the_lost_question_again(silence: Path) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serving(*SMALL))
        visit = stack.enter_context(visiting(page_of(first), silence))
        visit.ask("How much is two plus three?")
        wait_answer(visit, "How much is two plus three?", "5")
        first.signal(signal.SIGSTOP)
        visit.ask("How much is four plus five?")
        visit.page.wait_for_timeout(200)
        first.end()
        stack.enter_context(serving(*SMALL, port=first.port))
        wait_answer(visit, "How much is four plus five?", "9")
        visit.wait_text(".break", "The conversation starts anew here")
        assert visit.page.locator(".turn").count() == 2
        assert visit.page.locator(".turn + .break + .turn", has_text="four plus five").count() == 1


def test_hanging_up_frees_the_place_and_the_next_question_begins_anew(silence: Path) -> None:
    with serving(*SMALL) as server, visiting(page_of(server), silence) as visit:
        visit.ask("How much is two plus three?")
        wait_answer(visit, "How much is two plus three?", "5")
        visit.page.get_by_role("button", name="Hang up").click()
        visit.wait_text("#status", "Not connected")
        while server.get("/v1/capacity")[1]["connections"]:
            visit.page.wait_for_timeout(50)
        visit.ask("How much is four plus five?")
        wait_answer(visit, "How much is four plus five?", "9")
        visit.wait_text(".break", "You hung up.")
        assert visit.page.locator(".turn + .break + .turn", has_text="four plus five").count() == 1
        visit.page.get_by_role("button", name="New conversation").click()
        visit.wait("document.querySelectorAll('.turn, .break').length === 0")
        assert visit.page.locator("#welcome").is_visible()
        visit.ask("How much is one plus one?")
        wait_answer(visit, "How much is one plus one?", "2")
        assert visit.page.locator(".break").count() == 0


def test_a_banner_that_was_dismissed_stays_away_until_it_is_news(silence: Path) -> None:
    with serving(*SMALL) as server, visiting(page_of(server), silence) as visit:
        visit.ask("Hello")
        visit.wait_event("reply.done")
        banner = visit.page.locator("#banner")
        told(visit, BUSY)
        banner.wait_for()
        assert "people" not in banner.inner_text()  # nobody else is here
        visit.page.get_by_role("button", name="Dismiss").click()
        told(visit, {**BUSY, "lag_ms": 1200})
        assert not banner.is_visible()
        told(visit, {"type": "server.ready"})
        told(visit, BUSY)
        banner.wait_for()
        visit.page.get_by_role("button", name="Dismiss").click()
        told(visit, {**BUSY, "step": "shed", "dropped_ms": 400})
        banner.wait_for()


def test_in_line_the_page_does_not_pretend_to_think(silence: Path) -> None:
    with (
        serving(*SMALL, "backpressure.max_talkers=1", "backpressure.waiting_room=4") as server,
        visiting(page_of(server), silence) as first,
        visiting_too(first, page_of(server)) as second,
    ):
        first.ask("How much is two plus three?")
        wait_answer(first, "How much is two plus three?", "5")
        second.ask("How much is four plus five?")
        second.wait_text("#mood", "In line")
        assert second.text("#status").strip() == "In line"
        first.page.get_by_role("button", name="Hang up").click()
        wait_answer(second, "How much is four plus five?", "9")


@contextlib.contextmanager
def visiting_too(first: Visit, address: str) -> Iterator[Visit]:
    """One more tab of the same browser."""
    visit = Visit(first.page.context.new_page())
    visit.page.goto(address)
    yield visit
    visit.page.close()


def test_a_missing_and_a_wrong_key_are_called_so_and_a_callers_key_is_enough(
    silence: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[keys.caller]\nhash = "{hash_of("vs_right")}"\n')
    with (
        serving(*SMALL, f"auth.keys_file={keys}") as server,
        visiting(page_of(server), silence) as visit,
    ):
        visit.ask("How much is two plus three?")
        visit.page.locator("#key-dialog[open]").wait_for()
        visit.wait_text("#banner h2", "This server wants a key")
        assert not visit.page.locator("#key-problem").is_visible()
        visit.page.get_by_label("Key", exact=True).fill("vs_wrong")
        visit.page.get_by_role("button", name="Use it").click()
        visit.wait_text("#banner h2", "The key is wrong")
        visit.page.locator("#key-problem").wait_for()
        visit.page.get_by_label("Key", exact=True).fill("vs_right")
        visit.page.get_by_role("button", name="Use it").click()
        wait_answer(visit, "How much is two plus three?", "5")
