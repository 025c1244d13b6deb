"""Who came in and who did not, in the log: enough to find a caller again, never a secret, and no flood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.voiceserver.shell import Shell, text, upgrade
from voiceserver.config.schema import AuthConfig, BackpressureConfig
from voiceserver.pool import Speech
from voiceserver.server.auth import hash_of
from voiceserver.transport.caller_log import MOST_A_SECOND

AGENT = "User-Agent: test/1\r\nX-Request-Id: r-7\r\n"


def of(shell: Shell, event: str) -> list[dict[str, Any]]:
    return [one for one in shell.logged if one["event"] == event]


def test_who_opens_a_session_is_logged_with_what_finds_him_again() -> None:
    shell = Shell("vad")
    line = shell.call(upgrade(more=AGENT))
    (entry,) = of(shell, "session opened")
    assert entry["session"] == line.events()[0]["session_id"]
    found = {name: entry[name] for name in ("wire", "peer", "user_agent", "request_id", "is_resumed")}
    assert found == {
        "wire": "native",
        "peer": "192.0.2.1",
        "user_agent": "test/1",
        "request_id": "r-7",
        "is_resumed": False,
    }
    shell.call()
    assert len(of(shell, "session opened")[1]["request_id"]) == 16


def test_keys_are_named_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[keys.app]\nhash = "{hash_of("vs_right")}"\nmax_sessions = 1\n')
    shell = Shell("vad", auth=AuthConfig(keys_file=str(file)))
    right = "Authorization: Bearer vs_right\r\n"
    assert [shell.call(upgrade(more=AGENT + right)).status for _ in range(2)] == [101, 429]
    assert shell.call(upgrade(more=AGENT + "Authorization: Bearer vs_wrong\r\n")).status == 401
    (opened,) = of(shell, "session opened")
    (refused,) = of(shell, "caller refused")
    (unauthorised,) = of(shell, "caller unauthorised")
    assert (opened["key"], refused["key"]) == ("app", "app")
    assert (refused["status"], refused["reason"]) == (429, "key_sessions_exhausted")
    assert (unauthorised["status"], unauthorised["reason"]) == (401, "invalid_key")
    assert (unauthorised["peer"], unauthorised["user_agent"]) == ("192.0.2.1", "test/1")
    assert "vs_" not in str(shell.logged)


def test_a_storm_of_refusals_writes_a_few_lines_and_their_number() -> None:
    shell = Shell("vad", limits=BackpressureConfig(max_connections=1, waiting_room=0))
    for _ in range(200):
        shell.call(upgrade("/v1/realtime"))
    assert len(of(shell, "caller refused")) == MOST_A_SECOND
    shell.loop.advance(1_000)
    assert shell.call(upgrade("/v1/realtime")).status == 503
    assert of(shell, "caller refused")[-1]["passed_over"] == 199 - MOST_A_SECOND


def test_plain_answers_are_not_logged() -> None:
    shell = Shell("vad")
    for path in ("/healthz", "/metrics", "/nowhere"):
        shell.call(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert shell.logged == []


def test_what_a_voice_cannot_say_is_logged_once() -> None:
    shell = Shell("vad")
    for message in ("no Han", "no Han", "no Greek", "no Han"):
        shell.services.caller_log.cannot_say(message)
    assert [entry["reason"] for entry in of(shell, "script_unsupported")] == ["no Han", "no Greek"]


def test_a_session_knows_what_the_voice_speaks() -> None:
    shell = Shell("tts")
    shell.pools["tts"].speech = Speech(frozenset({"en-us"}), frozenset({"en"}))
    shell.call().receive(text({"type": "session.update", "language": "en"}))
    snapshot = shell.services.sessions.snapshot
    assert (snapshot.voices, snapshot.languages) == ({"en-us"}, {"en"})
