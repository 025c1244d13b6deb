"""The history: bounded, cut to what was heard, in the shape that chat endpoints take."""

from __future__ import annotations

import msgspec
import pytest

from tests.voiceserver.session_bench import Bench
from voiceserver.config.schema import StageConfig
from voiceserver.errors import ProtocolError
from voiceserver.events import events as ev
from voiceserver.events.events import HistoryItem
from voiceserver.session.history import History, chat_messages


def texts(history: History) -> list[str]:
    return [item.text for item in history.items]


def test_the_oldest_goes_first_and_instructions_stay() -> None:
    history = History(3)
    history.append(HistoryItem(role="system", text="rules"))
    for text in "abc":
        history.append(HistoryItem(role="user", text=text))
    assert texts(history) == ["rules", "b", "c"]


def test_a_history_of_instructions_only_still_is_bounded() -> None:
    history = History(2)
    for text in "abc":
        history.append(HistoryItem(role="system", text=text))
    assert texts(history) == ["b", "c"]


def test_the_length_of_the_items_is_bounded_too() -> None:
    """A client that appends its largest message again and again keeps no more than one of them."""
    history = History(200, max_bytes=10)
    history.append(HistoryItem(role="system", text="rule"))
    for text in ("aaaa", "bbbb", "cc"):
        history.append(HistoryItem(role="user", text=text))
    assert texts(history) == ["rule", "bbbb", "cc"]
    with pytest.raises(ProtocolError, match="20 bytes; the whole conversation may have 10") as caught:
        history.append(HistoryItem(role="user", text="d" * 20))
    assert caught.value.code == "item_too_long"
    history.append(HistoryItem(role="user", text="d" * 10))
    assert texts(history) == ["d" * 10]
    history.append(HistoryItem(role="user", text="e", key="k"))
    assert texts(history) == ["e"]
    history.delete("k")
    history.record(HistoryItem(role="assistant", text="0123456789", turn=1))
    history.cut(1, "0123")
    history.append(HistoryItem(role="user", text="456789"))
    assert texts(history) == ["0123", "456789"], "what was cut or deleted does not count"
    assert [one.text for one in history.with_record(HistoryItem(role="user", text="!"))] == ["456789", "!"]
    assert texts(history) == ["0123", "456789"]


@pytest.mark.parametrize("letter", ["a", "\u00e9", "\u597d", "\U0001f600", '"', "\\", "\n", "\x01"])
def test_the_bound_holds_in_bytes_of_the_request_whatever_the_letters(letter: str) -> None:
    history = History(200, max_bytes=10_000)
    for _ in range(40):
        history.append(HistoryItem(role="user", text=letter * 900))
    size = len(msgspec.json.encode([item.text for item in history.items]))
    assert 4_000 < size < 10_000 + 200
    history.record(HistoryItem(role="assistant", text=letter * 50_000, turn=1))
    assert len(msgspec.json.encode(history.items[-1].text)) <= 10_000 + 2
    assert history.items[-1].text.startswith(letter * 1_000)


def test_900_000_chinese_letters_do_not_end_a_session() -> None:
    bench = Bench()
    for _ in range(9):
        bench.do(ev.ItemAppend(HistoryItem(role="user", text="\u597d" * 100_000)))
    with pytest.raises(ProtocolError, match="item: has 2700000 bytes"):
        bench.session.receive_event(
            ev.ItemAppend(HistoryItem(role="user", text="\u597d" * 900_000)), bench.now_ms
        )
    bench.do(ev.ReplyCreate())
    request = bench.sent["reply"][-1][3]
    reply = StageConfig()
    assert len(request) <= reply.request_slots * reply.slot_bytes // 2, "a record may take half the ring"


def test_a_key_is_used_once() -> None:
    history = History(9)
    history.append(HistoryItem(role="user", text="a", key="k"))
    with pytest.raises(ProtocolError) as caught:
        history.append(HistoryItem(role="user", text="b", key="k"))
    assert caught.value.code == "item_exists"
    history.record(HistoryItem(role="user", text="c", key="k"))
    assert texts(history) == ["a", "c"]
    assert history.items[1].key == ""


def test_items_without_a_key_are_found_by_none() -> None:
    history = History(9)
    history.append(HistoryItem(role="user", text="a"))
    assert "" not in history
    with pytest.raises(ProtocolError) as caught:
        history.delete("")
    assert caught.value.param == "key"
    assert texts(history) == ["a"]


def test_cut_shortens_the_reply_and_removes_one_that_nobody_heard() -> None:
    history = History(9)
    history.append(HistoryItem(role="assistant", text="all of it", turn=1, key="r1"))
    history.append(HistoryItem(role="assistant", call_id="c", name="f", turn=1))
    history.cut(1, "all of")
    assert history.items[0] == HistoryItem(role="assistant", text="all of", turn=1, key="r1")
    history.cut(1, "")
    assert [item.call_id for item in history.items] == ["c"]
    history.cut(7, "unknown turns change nothing")
    assert len(history) == 1


def test_neighbouring_tool_calls_share_a_message_and_answers_name_theirs() -> None:
    items = (
        HistoryItem(role="user", text="two things"),
        HistoryItem(role="assistant", call_id="a", name="f", arguments="{}"),
        HistoryItem(role="assistant", call_id="b", name="g", arguments="{}"),
        HistoryItem(role="tool", call_id="a", text="1"),
        HistoryItem(role="assistant", call_id="c", name="h", arguments="{}"),
    )
    messages = chat_messages(items)
    assert [len(message.get("tool_calls", ())) for message in messages] == [0, 2, 0, 1]  # type: ignore[arg-type]
    assert messages[2] == {"role": "tool", "content": "1", "tool_call_id": "a"}
