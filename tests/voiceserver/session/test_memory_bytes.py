"""What a session is taken to cost in memory."""

from __future__ import annotations

from tests.voiceserver.session_bench import RATE_HZ, Bench, settings_of
from voiceserver.events import events as ev
from voiceserver.events.memory import OBJECT_BYTES, item_bytes, text_bytes, tool_bytes
from voiceserver.session.settings import SessionOptions

WIDE = "\u4f60"


def test_a_character_costs_one_byte_or_the_most_that_it_may() -> None:
    assert (text_bytes("abc"), text_bytes(f"ab{WIDE}"), text_bytes(""), text_bytes(None)) == (3, 12, 0, 0)
    assert item_bytes(ev.HistoryItem(role="user", text="abc", key="k")) == OBJECT_BYTES + 4
    assert tool_bytes(ev.Tool(name="abc", description=WIDE)) == OBJECT_BYTES + 7
    assert tool_bytes(ev.Tool(name="abc", parameters={"a": {}})) > OBJECT_BYTES + 64


def test_what_all_sessions_share_is_not_counted_and_what_is_their_own_is() -> None:
    common = SessionOptions(turn_detection=None, instructions="x" * 1_000, tools=(ev.Tool(name="t"),))
    bench = Bench(settings_of(options=common))
    assert bench.session.memory_bytes == 0
    bench.do(ev.SessionUpdate(instructions="y" * 500))
    assert bench.session.memory_bytes == 500
    bench.do(ev.SessionUpdate(tools=(ev.Tool(name="abc"),)))
    assert bench.session.memory_bytes == 500 + OBJECT_BYTES + 3
    bench.stt_answers = False
    bench.session.receive_audio(bytes(2 * RATE_HZ), bench.now_ms)
    assert 2 * RATE_HZ <= bench.session.memory_bytes - 503 - OBJECT_BYTES <= 2 * RATE_HZ + 1_000


def test_a_reply_costs_its_request_and_its_text_as_long_as_it_may_go_on() -> None:
    bench = Bench()
    bench.do(ev.ItemAppend(item=ev.HistoryItem(role="user", text="x" * 10_000)))
    before = bench.session.memory_bytes
    bench.do(ev.ReplyCreate(instructions="y" * 300))
    asked = bench.session.memory_bytes
    assert asked - before > 10_000 + 300
    bench.answer("One sentence.", is_done=False)
    assert bench.session.memory_bytes > asked
    bench.answer()
    bench.speak(1, 100)
    assert bench.session.reply is None
    assert bench.session.memory_bytes > asked, "it is being heard, and may be cut off"
