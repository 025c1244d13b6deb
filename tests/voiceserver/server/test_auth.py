"""Keys, tokens and Origins, decided before the upgrade."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.datastructures import Headers
from websockets.frames import Opcode

from tests.voiceserver.shell import Line, Shell, audio, masked, text, upgrade
from voiceserver import cli
from voiceserver.config.schema import AuthConfig
from voiceserver.errors import ConfigError
from voiceserver.server.auth import CLIENT_SECRETS, MAX_SESSION_BYTES, Auth, hash_of, new_key, presented_key
from voiceserver.transport.http import Caller, Response
from voiceserver.wire import openai
from voiceserver_workers.ipc.messages import ResultKind

NOON_S = 43_200.0
VALID = '[keys.a]\nhash = "sha256:' + "abcd" * 16 + '"'


class Door:
    def __init__(
        self,
        folder: Path,
        limits: str = "",
        check_session: Callable[[bytes], object] = openai.read_session,
        **config: object,
    ) -> None:
        self.now_s = NOON_S
        self.key, kept = new_key()
        self.file = folder / "keys.toml"
        self.file.write_text(f'[keys.app]\nhash = "{kept}"\n{limits}\n')
        self.config = AuthConfig(keys_file=str(self.file), **config)  # type: ignore[arg-type]
        self.auth = Auth(self.config, lambda: self.now_s, check_session=check_session)

    def shell(self, *stages: str, **settings: int) -> Shell:
        """A server with these keys, whose ``auth`` is ours from now on."""
        shell = Shell(*stages, auth=self.config, wall_s=lambda: self.now_s, **settings)
        assert isinstance(shell.services.auth, Auth)
        self.auth = shell.services.auth
        return shell

    def ask(self, key: str | None = None, **headers: str) -> str | tuple[int, str]:
        found = Headers()
        for name, value in headers.items():
            found[name.replace("_", "-")] = value
        if key is not None:
            found["Authorization"] = f"Bearer {key}"
        answer = self.auth.admit(Caller("/v1/stream", {}, found))
        if isinstance(answer, Response):
            return answer.status, json.loads(answer.body)["error"]["code"]
        refused = self.auth.refuse_over_limit(answer)
        return answer if refused is None else (refused.status, json.loads(refused.body)["error"]["code"])

    def mint(self, body: bytes = b"") -> dict[str, object]:
        headers = Headers({"Authorization": f"Bearer {self.key}"})
        answer = self.auth.client_secret(Caller(CLIENT_SECRETS, {}, headers, "", body))
        value: dict[str, object] = json.loads(answer.body)
        return value


def test_a_caller_without_a_key_or_with_a_wrong_one_stays_outside(tmp_path: Path) -> None:
    door = Door(tmp_path)
    assert door.ask() == (401, "missing_key")
    assert door.ask("") == (401, "missing_key")
    assert door.ask(door.key + "x") == (401, "invalid_key")
    assert door.ask("ek_nonsense") == (401, "invalid_token")
    assert door.ask(door.key) == "app"


def test_a_refusal_has_the_fields_of_an_error_of_the_service(tmp_path: Path) -> None:
    shell = Door(tmp_path).shell("reply")
    line = shell.call(upgrade("/v1/realtime"))
    error = line.body["error"]
    assert line.status == 401
    assert (error["type"], error["code"]) == ("invalid_request_error", "missing_key")
    assert {"message", "param"} <= error.keys()


def test_a_browser_brings_its_key_among_the_subprotocols(tmp_path: Path) -> None:
    door = Door(tmp_path)
    for prefix in ("openai-insecure-api-key.", "voiceserver-key."):
        assert door.ask(Sec_WebSocket_Protocol=f"realtime, {prefix}{door.key}, other") == "app"


def test_two_authorization_headers_are_no_fault() -> None:
    headers = Headers([("Authorization", "Basic abc"), ("Authorization", "Bearer k")])
    assert presented_key(Caller("/", {}, headers)) == "k"


def test_a_key_has_a_number_of_sessions(tmp_path: Path) -> None:
    door = Door(tmp_path, "max_sessions = 1")
    door.auth.enter("app")
    assert door.ask(door.key) == (429, "key_sessions_exhausted")
    door.auth.leave("app", 1_000.0)
    assert door.ask(door.key) == "app"


def test_who_resumes_a_session_needs_no_second_one(tmp_path: Path) -> None:
    door = Door(tmp_path, "max_sessions = 1")
    assert door.ask(door.key) == "app"
    door.auth.enter("app")
    assert door.ask(door.key) == (429, "key_sessions_exhausted")
    assert door.auth.refuse_over_limit("app", is_resumed=True) is None


def test_talk_time_is_by_the_day(tmp_path: Path) -> None:
    door = Door(tmp_path, "talk_minutes_per_day = 1")
    door.auth.enter("app")
    door.auth.leave("app", 60_000.0)
    assert door.ask(door.key) == (429, "key_talk_exhausted")
    door.now_s += 86_400.0
    assert door.ask(door.key) == "app"


def test_what_an_open_session_said_yesterday_is_not_taken_from_today(tmp_path: Path) -> None:
    door = Door(tmp_path, "talk_minutes_per_day = 1")
    auth = door.auth
    auth.enter("app")
    auth.note("app", "a", 50_000.0)
    assert auth.talk_left_ms("app") == 10_000.0
    door.now_s += 86_400.0
    assert auth.talk_left_ms("app") == 60_000.0
    auth.note("app", "a", 61_000.0)
    assert auth.talk_left_ms("app") == 49_000.0
    auth.leave("app", 62_000.0, "a")
    assert auth.talk_left_ms("app") == 48_000.0


def flood(line: Line, seconds: int, piece_ms: int) -> None:
    """Audio as fast as it goes."""
    for _ in range(seconds * 1_000 // piece_ms):
        line.receive(audio(b"\0" * (32 * piece_ms)))


@pytest.mark.parametrize("piece_ms", [20, 100, 10_000])
@pytest.mark.parametrize("sessions", [1, 4])
def test_talk_minutes_are_audio_at_the_door_however_fast_it_comes(
    tmp_path: Path, sessions: int, piece_ms: int
) -> None:
    door = Door(tmp_path, "talk_minutes_per_day = 0.5")
    shell = door.shell("vad")
    bearer = f"Authorization: Bearer {door.key}\r\n"
    lines = [shell.call(upgrade(more=bearer)) for _ in range(sessions)]
    for _ in range(6):  # no time passes
        for line in lines:
            if line.close_code is None:
                flood(line, 10, piece_ms)
    for line in lines:
        line.lose()
    closing = [event for line in lines for event in line.events() if event["type"] == "session.closing"]
    received_ms = [event["accounting"]["received_ms"] for event in closing]
    assert len(closing) == sessions
    assert 30_000 - sessions * piece_ms <= sum(received_ms) <= 30_000
    ended = [
        line for line in lines if any(event.get("code") == "key_talk_exhausted" for event in line.events())
    ]
    assert {line.close_code for line in ended} == {1008}
    assert ended
    assert shell.call(upgrade(more=bearer)).status == 429


def test_talk_minutes_hold_for_audio_in_json_too(tmp_path: Path) -> None:
    door = Door(tmp_path, "talk_minutes_per_day = 0.5")
    shell = door.shell("vad")
    line = shell.call(upgrade("/v1/realtime", f"Authorization: Bearer {door.key}\r\n"))
    pcm = base64.b64encode(bytes(48_000)).decode()  # a second
    for _ in range(40):
        if line.close_code is None:
            line.receive(text({"type": "input_audio_buffer.append", "audio": pcm}))
    assert line.close_code == 1008
    assert shell.call(upgrade(more=f"Authorization: Bearer {door.key}\r\n")).status == 429


def test_a_token_ends_when_its_key_is_replaced(tmp_path: Path) -> None:
    door = Door(tmp_path)
    token = str(door.mint(b"{}")["value"])
    other, kept = new_key()
    before = door.file.read_text()
    assert door.ask(token) == "app"
    door.file.write_text(f'[keys.app]\nhash = "{kept}"\n')
    door.auth.reload()
    assert door.ask(other) == "app"
    assert door.ask(token) == (401, "invalid_token")
    hexadecimal = before.split("sha256:")[1][:64]
    door.file.write_text(before.replace(hexadecimal, hexadecimal.upper()))
    door.auth.reload()
    assert door.ask(token) == "app"  # the same hash, written in another way


def test_a_token_opens_until_its_end_and_mints_no_other(tmp_path: Path) -> None:
    door = Door(tmp_path, "is_admin = true", token_ttl_ms=60_000)
    made = door.mint(b'{"session": {"type": "realtime"}}')
    token = str(made["value"])
    assert made["expires_at"] == int(NOON_S + 60)
    assert made["session"] == {"type": "realtime"}
    assert door.ask(token) == "app"
    assert door.ask(token[:-2] + ("AA" if token[-2:] != "AA" else "BB")) == (401, "invalid_token")
    figures = Caller("/v1/stats", {}, Headers({"Authorization": f"Bearer {token}"}))
    refused = door.auth.refuse_admin(figures)
    assert refused is not None
    assert refused.status == 401
    door.now_s += 61.0
    assert door.ask(token) == (401, "invalid_token")


def test_a_token_asked_for_wrongly_names_the_field(tmp_path: Path) -> None:
    door = Door(tmp_path)
    assert "expires_after.seconds" in str(door.mint(b'{"expires_after": {"seconds": 9000}}'))
    assert "error" in door.mint(b"nonsense")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b'{"expires_after": {"seconds": 0}}', "decimal_below_min_value", "expires_after.seconds"),
        (b'{"expires_after": {"seconds": 1e-300}}', "decimal_below_min_value", "expires_after.seconds"),
        (b'{"expires_after": {"seconds": -1}}', "decimal_below_min_value", "expires_after.seconds"),
        (b'{"expires_after": {"seconds": 7201}}', "decimal_above_max_value", "expires_after.seconds"),
        (b'{"expires_after": {"seconds": "9"}}', "invalid_type", "expires_after.seconds"),
        (b'{"expires_after": {"anchor": "now"}}', "invalid_value", "expires_after.anchor"),
        (b'{"expires_after": {"anchor": 7}}', "invalid_type", "expires_after.anchor"),
        (b'{"expires_after": 7}', "invalid_type", "expires_after"),
        (b"nonsense", "invalid_json", None),
    ],
)
def test_what_is_wrong_with_a_request_for_a_token_is_worded(
    tmp_path: Path, body: bytes, code: str, param: str | None
) -> None:
    error: dict[str, str | None] = Door(tmp_path).mint(body)["error"]  # type: ignore[assignment]
    assert (error["code"], error["param"]) == (code, param)
    assert param is None or param in str(error["message"]) or "'created_at'" in str(error["message"])


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (b"", 600),
        (b'{"expires_after": null}', 600),
        (b'{"expires_after": {"anchor": "created_at"}}', 600),
        (b'{"expires_after": {"anchor": "created_at", "seconds": 1}, "more": 1}', 1),
        (b'{"expires_after": {"seconds": 7200}}', 7_200),
    ],
)
def test_a_token_is_good_for_as_long_as_was_asked(tmp_path: Path, body: bytes, seconds: int) -> None:
    assert Door(tmp_path).mint(body)["expires_at"] == int(NOON_S) + seconds


def test_a_key_needs_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("", " ", "a\nb"):
        with pytest.raises(ConfigError, match="must be printable and not empty"):
            cli.key(name)
    cli.key("web")
    assert '[keys."web"]' in capsys.readouterr().out


def test_a_token_that_is_nested_too_deep_to_be_read_is_a_mistake_and_no_fault(tmp_path: Path) -> None:
    door = Door(tmp_path)
    shell = door.shell("reply")
    token = door.auth.make_token("app", NOON_S + 60, b"[" * 2_000 + b"]" * 2_000)
    line = shell.call(upgrade("/v1/realtime", f"Authorization: Bearer {token}\r\n"))
    assert (line.status, line.body["error"]["code"]) == (400, "invalid_request_error")


def test_a_session_that_is_too_deep_for_its_reader_is_not_put_into_a_token(tmp_path: Path) -> None:
    def read(session: bytes) -> None:
        raise RecursionError

    door = Door(tmp_path, check_session=read)
    assert "too deep" in str(door.mint(b'{"session": {"type": "realtime"}}')["error"])


def test_the_key_of_a_token_can_be_taken_away(tmp_path: Path) -> None:
    door = Door(tmp_path)
    token = str(door.mint()["value"])
    door.file.write_text(f'[keys.other]\nhash = "{hash_of("k")}"\n')
    door.auth.reload()
    assert door.ask(token) == (401, "invalid_token")
    assert door.ask(door.key) == (401, "invalid_key")


def test_only_pages_of_listed_origins_connect_but_programs_have_none(tmp_path: Path) -> None:
    door = Door(tmp_path, origins="https://a.example, https://b.example/")
    assert door.ask(door.key) == "app"
    assert door.ask(door.key, Origin="https://b.example") == "app"
    assert door.ask(door.key, Origin="https://evil.example") == (403, "origin_not_allowed")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[keys.a]", "hash"),
        ('[keys.a]\nhash = "plain"', "keys.a.hash"),
        ('[keys.a]\nhash = "sha256:' + "0" * 64 + '"\nmax_session = 1', "max_session"),
        ("not toml", "TOML"),
        ('[keys.a]\nhash = "sha256:' + "g" * 64 + '"', "keys.a.hash must be .* 64 hex digits"),
        ('[keys.""]\nhash = "sha256:' + "0" * 64 + '"', "the name of a key must be printable and not empty"),
        (f"{VALID}\nmax_sessions = -1", "keys.a.max_sessions must be from 0 .*, not -1"),
        (f'{VALID}\nmax_sessions = "1"', "keys.a: .*max_sessions"),
        (f"{VALID}\ntalk_minutes_per_day = nan", "keys.a.talk_minutes_per_day must be from 0 .*, not nan"),
        (f"{VALID}\ntalk_minutes_per_day = inf", "keys.a.talk_minutes_per_day must be from 0 .*, not inf"),
        (f"{VALID}\ntalk_minutes_per_day = -5", "keys.a.talk_minutes_per_day must be from 0 .*, not -5"),
        (f"{VALID}\ntalk_minutes_per_day = 1e300", "keys.a.talk_minutes_per_day must be from 0"),
        (f"{VALID}\n{VALID}", "more than one keys.a; every key needs a name of its own"),
        (
            f"{VALID}\n" + VALID.replace("keys.a", "keys.b").replace("abc", "ABC"),
            "keys.b.hash is that of keys.a",
        ),
    ],
)
def test_a_wrong_key_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=named):
        Auth(AuthConfig(keys_file=str(file)), lambda: 0.0)
    with pytest.raises(ConfigError, match="cannot be read"):
        Auth(AuthConfig(keys_file=str(tmp_path / "none")), lambda: 0.0)


def test_a_wrong_file_at_a_reload_leaves_the_old_keys(tmp_path: Path) -> None:
    door = Door(tmp_path)
    door.file.write_text("broken")
    with pytest.raises(ConfigError):
        door.auth.reload()
    assert door.ask(door.key) == "app"


def test_sessions_of_a_key_are_counted_through_the_shell(tmp_path: Path) -> None:
    door = Door(tmp_path, "max_sessions = 1")
    shell = door.shell("vad")
    more = f"Authorization: Bearer {door.key}\r\n"
    assert shell.call(upgrade()).status == 401
    line = shell.call(upgrade(more=more))
    assert line.status == 101
    line.receive(audio(bytes(32_000)))
    assert shell.call(upgrade(more=more)).status == 429
    line.receive(masked(Opcode.CLOSE, b"\x03\xe8"))
    line.lose()
    assert shell.call(upgrade(more=more)).status == 101
    assert not any(door.key in str(entry) for entry in shell.logged)


def test_the_offer_of_a_session_is_refused_as_an_upgrade_would_be(tmp_path: Path) -> None:
    door = Door(tmp_path, "max_sessions = 1")
    shell = door.shell("vad")

    def offer(more: str) -> tuple[int, dict[str, Any]]:
        line = shell.call(f"GET /v1/session HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode())
        return line.status, line.body

    more = f"Authorization: Bearer {door.key}\r\n"
    assert [offer("")[1]["error"]["code"], offer(f"{more[:-2]}x\r\n")[1]["error"]["code"]] == [
        "missing_key",
        "invalid_key",
    ]
    status, told = offer(more)
    assert (status, list(told["engines"])) == (200, ["vad"])
    assert shell.call(upgrade(more=more)).status == 101  # the offer took no session
    status, told = offer(more)
    assert (status, told["error"]["code"]) == (429, "key_sessions_exhausted")


def test_the_offer_of_a_session_is_refused_to_pages_of_other_origins(tmp_path: Path) -> None:
    shell = Door(tmp_path, origins="https://page.example").shell("vad")

    def status(origin: str) -> int:
        return shell.call(f"GET /v1/session{origin} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).status

    assert status("?origin=https%3A%2F%2Felsewhere.example") == 403
    assert status("?origin=https%3A%2F%2Fpage.example") == 401  # the key is next
    assert status("") == 401


def test_sessions_that_talk_at_once_share_the_minutes_of_their_key(tmp_path: Path) -> None:
    door = Door(tmp_path, "talk_minutes_per_day = 1")
    auth = door.auth
    for name in ("a", "b"):
        auth.enter("app")
        auth.note("app", name, 25_000.0)
    assert auth.talk_limit("app") == (60_000.0, 10_000.0, 43_200.0)
    auth.leave("app", 26_000.0, "a")
    assert auth.talk_left_ms("app") == 9_000.0
    auth.note("app", "b", 34_000.0)
    assert auth.talk_left_ms("app") == 0.0
    auth.leave("app", 34_000.0, "b")
    assert auth.talk_left_ms("app") == 0.0


def test_a_key_whose_minutes_are_used_up_ends_the_session_within_seconds_also_without_pings(
    tmp_path: Path,
) -> None:
    door = Door(tmp_path, "talk_minutes_per_day = 1")
    shell = door.shell("vad", ping_interval_ms=0, idle_timeout_ms=0, max_session_ms=0)
    door.auth.enter("app")
    door.auth.leave("app", 57_000.0)
    line = shell.call(upgrade("/v1/stream", f"Authorization: Bearer {door.key}\r\n"))
    for _ in range(20):
        line.receive(audio(bytes(3_200)))
        shell.loop.advance(100.0)
    assert line.close_code is None
    for _ in range(40):
        line.receive(audio(bytes(3_200)))
        shell.loop.advance(100.0)
    assert "key_talk_exhausted" in [event.get("code") for event in line.events()]
    assert line.close_code == 1008


def test_a_realtime_client_hears_after_each_response_what_its_key_may_still_say(tmp_path: Path) -> None:
    door = Door(tmp_path, "talk_minutes_per_day = 1")
    shell = door.shell("vad", "reply")
    door.auth.enter("app")
    door.auth.leave("app", 20_000.0)
    line = shell.call(upgrade("/v1/realtime", f"Authorization: Bearer {door.key}\r\n"))
    second = base64.b64encode(bytes(48_000)).decode()
    line.receive(text({"type": "input_audio_buffer.append", "audio": second}))
    line.receive(text({"type": "response.create"}))
    (stream,) = shell.pools["reply"].streams
    stream.answer(ResultKind.DONE, 1, 1, b"{}")
    shell.loop.settle()
    (limits,) = (event for event in line.events() if event["type"] == "rate_limits.updated")
    half_a_day_s = 43_200.0
    expected = {"name": "tokens", "limit": 600, "remaining": 390, "reset_seconds": half_a_day_s}
    assert limits["rate_limits"] == [expected]


def test_a_token_brings_the_session_that_a_backend_wrote_into_it(tmp_path: Path) -> None:
    door = Door(tmp_path)
    shell = door.shell("reply")
    given = {
        "type": "realtime",
        "instructions": "Sing.",
        "output_modalities": ["text"],
        "max_output_tokens": 9,
    }
    made = door.mint(json.dumps({"session": given}).encode())
    assert made["session"] == given
    line = shell.call(upgrade("/v1/realtime", f"Authorization: Bearer {made['value']}\r\n"))
    (created,) = line.events()
    assert created["session"]["instructions"] == "Sing."
    assert created["session"]["output_modalities"] == ["text"]
    line.receive(text({"type": "response.create"}))
    (stream,) = shell.pools["reply"].streams
    request = json.loads(stream.sent[0][3])
    assert (request["instructions"], request["max_output_tokens"]) == ("Sing.", 9)
    assert [event["type"] for event in line.events()] == ["session.created", "response.created"]


def test_a_token_of_a_wrong_session_is_not_made(tmp_path: Path) -> None:
    door = Door(tmp_path)
    wrong = {"type": "realtime", "audio": {"input": {"turn_detection": {"threshold": 7}}}}
    error = door.mint(json.dumps({"session": wrong}).encode())["error"]
    assert error["param"] == "session.audio.input.turn_detection.threshold"  # type: ignore[index]
    long = {"type": "realtime", "instructions": "a" * MAX_SESSION_BYTES}
    assert door.mint(json.dumps({"session": long}).encode())["error"]["param"] == "session"  # type: ignore[index]
    assert "value" in door.mint(b'{"session": null}')


@pytest.mark.parametrize(
    "session",
    [
        b"[" * 30_000 + b"]" * 30_000,
        b'{"tracing": ' + b"[" * 2_900 + b"]" * 2_900 + b"}",
        b'"\xff"',
        b"1",
        b"{",
    ],
    ids=["deep", "deep-within", "not-utf-8", "number", "open"],
)
def test_whatever_is_asked_to_be_put_into_a_token_is_answered(tmp_path: Path, session: bytes) -> None:
    door = Door(tmp_path)
    assert "error" in door.mint(b'{"session": ' + session + b"}")


def test_a_token_that_was_changed_or_has_ended_brings_no_session(tmp_path: Path) -> None:
    door = Door(tmp_path)
    token = str(door.mint(b'{"session": {"type": "realtime"}, "expires_after": {"seconds": 60}}')["value"])

    def session_of(presented: str) -> bytes:
        return door.auth.session_of(Caller("/", {}, Headers({"Authorization": f"Bearer {presented}"})))

    assert json.loads(session_of(token)) == {"type": "realtime"}
    assert session_of(token[:-2]) == session_of(door.key) == session_of("") == b""
    door.now_s += 61.0
    assert session_of(token) == b""


def test_a_post_with_a_body_in_two_pieces_is_answered(tmp_path: Path) -> None:
    door = Door(tmp_path)
    shell = door.shell("vad")
    body = b'{"expires_after": {"seconds": 60}}'
    head = (
        f"POST {CLIENT_SECRETS} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {door.key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    line = shell.call(head + body[:5])
    assert not line.transport.data
    line.receive(body[5:])
    assert line.status == 200
    assert str(line.body["value"]).startswith("ek_")
    too_long = head.replace(str(len(body)).encode(), b"70000")
    assert shell.call(too_long).status == 413
