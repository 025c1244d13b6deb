"""The admin token lies where its user alone can read it, and the commands find it by the port."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from voiceserver.config.loader import load
from voiceserver.config.schema import AuthConfig, Config, ServerConfig
from voiceserver.errors import VoiceServerError
from voiceserver.server import admin, admin_client
from voiceserver.server.auth import MADE_PREFIX


class Lines:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.told.append((event, fields))

    debug = warning = error = info

    def log(self, level: int, event: str, **fields: object) -> None:
        self.info(event, **fields)

    def bind(self, **fields: object) -> Lines:
        return self


@pytest.fixture(autouse=True)
def _runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("VOICESERVER_KEY", raising=False)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_at_each_start_kept_for_its_user_and_never_logged(tmp_path: Path) -> None:
    first, second = admin.with_admin_token(Config()), admin.with_admin_token(Config())
    token = first.auth.admin_token
    assert token.startswith(MADE_PREFIX)
    assert len(token) > 40
    assert token != second.auth.admin_token
    log = Lines()
    admin.publish(first, 8765, log)
    path = tmp_path / "voiceserver" / "8765.token"
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert admin.read(8765) == token
    assert admin.read(8766) == ""
    assert log.told == [("admin token kept", {"path": str(path)})]
    admin.publish(second, 8765, log)  # the next server on the port
    assert admin.read(8765) == second.auth.admin_token
    admin.withdraw(first, 8765)
    assert path.exists()
    admin.withdraw(second, 8765)
    assert not path.exists()


@pytest.mark.parametrize("auth", [AuthConfig(keys_file="keys.toml"), AuthConfig(admin_token="chosen")])
def test_with_keys_or_a_token_of_the_operator_none_is_made(auth: AuthConfig, tmp_path: Path) -> None:
    config = Config(auth=auth)
    assert admin.with_admin_token(config) is config
    admin.publish(config, 8765, Lines())
    assert not list(tmp_path.iterdir())


def test_a_directory_that_others_can_enter_gets_no_token_and_the_server_starts_all_the_same(
    tmp_path: Path,
) -> None:
    (tmp_path / "voiceserver").mkdir()
    (tmp_path / "voiceserver").chmod(0o755)
    log = Lines()
    admin.publish(admin.with_admin_token(Config()), 8765, log)
    assert [event for event, _ in log.told] == ["no admin token file"]
    assert admin.read(8765) == ""


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "voiceserver").mkdir(mode=0o700)
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / "voiceserver" / "8765.token").symlink_to(tmp_path / "elsewhere")
    assert admin.read(8765) == ""
    config = admin.with_admin_token(Config())
    admin.publish(config, 8765, Lines())
    assert (tmp_path / "elsewhere").read_text() == "theirs"
    assert admin.read(8765) == config.auth.admin_token


def test_the_token_is_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = admin.with_admin_token(Config())
    admin.publish(config, 8765, Lines())
    assert config.auth.admin_token not in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    admin.publish(config, 8765, Lines())
    assert f"http://127.0.0.1:8765/dashboard#key={config.auth.admin_token}" in capsys.readouterr().err


def test_the_shown_configuration_hides_it() -> None:
    shown = load(None, {}, [("auth.admin_token", "chosen-secret", "--set")]).to_toml()
    assert "admin_token" in shown
    assert "chosen-secret" not in shown


class Door(BaseHTTPRequestHandler):
    """Answers as the drain button does."""

    token = ""

    def do_POST(self) -> None:
        is_right = self.headers["Authorization"] == f"Bearer {self.token}"
        is_right = is_right and self.headers["X-Voiceserver-Action"] == "drain" and self.path == "/v1/drain"
        answer = {"status": "draining"} if is_right else {"error": {"message": "It wants a token."}}
        body = json.dumps(answer).encode()
        self.send_response(202 if is_right else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def door() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_the_commands_use_the_token_of_the_port(door: int) -> None:
    config = admin.with_admin_token(Config())
    admin.publish(config, door, Lines())
    Door.token = config.auth.admin_token
    asked = Config(server=ServerConfig(port=door))
    assert "drains" in admin_client.drain(asked)
    assert admin_client.dashboard(asked).endswith(f":{door}/dashboard#key={Door.token}")
    admin.withdraw(config, door)
    with pytest.raises(VoiceServerError, match="It wants a token"):
        admin_client.drain(asked)
    assert admin_client.dashboard(asked).endswith("/dashboard")


def test_an_admins_key_in_the_environment_goes_first(door: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Door.token = "vs_boss"
    monkeypatch.setenv("VOICESERVER_KEY", "vs_boss")
    assert "drains" in admin_client.drain(Config(server=ServerConfig(port=door)))


def test_no_server_is_one_line(door: int) -> None:
    with pytest.raises(VoiceServerError, match="does not answer"):
        admin_client.drain(Config(server=ServerConfig(host="127.0.0.9", port=door)))
