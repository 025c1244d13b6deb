"""The certificate of ``serve --tls self-signed``: for which names, how long, by which tool, and what is printed."""

from __future__ import annotations

import datetime
import importlib.util
import shutil
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from voiceserver.config.schema import ServerConfig
from voiceserver.errors import StartError
from voiceserver.server import self_signed
from voiceserver.server.self_signed import (
    RENEWED_DAYS,
    VALID_DAYS,
    CannotKeep,
    addresses,
    announcement,
    certificate_for,
    names_of_this_machine,
    qr_code,
)
from voiceserver.server.tls import tls_context

NAMES = ["localhost", "127.0.0.1", "::1", "voice.local", "192.0.2.7"]
NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(params=["cryptography", "openssl"])
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of the two ways to make a certificate; the other is not there."""
    only(request.param, monkeypatch)
    return str(request.param)


def only(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec, which = importlib.util.find_spec, shutil.which
    if tool != "cryptography":
        lost = lambda name: None if name == "cryptography" else find_spec(name)  # noqa: E731
        monkeypatch.setattr(self_signed.importlib.util, "find_spec", lost)
    else:
        assert find_spec("cryptography") is not None
    if tool != "openssl":
        monkeypatch.setattr(self_signed.shutil, "which", lambda name: None)
    else:
        assert which("openssl") is not None


def handshake(cert: Path, served: ssl.SSLContext, name: str) -> None:
    """A client that trusts ``cert`` and nothing else calls the server by ``name``. Raises what a browser would warn of."""
    trusting = ssl.create_default_context(cafile=str(cert))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname=name)
    server = served.wrap_bio(to_server, to_client, server_side=True)
    steps: list[Callable[[], object]] = [client.do_handshake, server.do_handshake]
    for step in steps * 3:
        try:
            step()
        except ssl.SSLWantReadError:
            continue


@pytest.mark.usefixtures("tool")
def test_the_certificate_is_for_each_name_and_for_no_other(tmp_path: Path) -> None:
    made = certificate_for(NAMES, tmp_path / "kept")
    served = tls_context(str(made.cert), str(made.key))
    for name in NAMES:
        handshake(made.cert, served, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made.cert, served, "elsewhere.example")
    assert made.key.stat().st_mode & 0o777 == 0o600
    assert len(made.fingerprint.split(":")) == 32


@pytest.mark.usefixtures("tool")
def test_it_is_used_again_until_it_ends_or_there_is_a_new_name(tmp_path: Path) -> None:
    first = certificate_for(NAMES, tmp_path).fingerprint
    assert certificate_for(NAMES[:2], tmp_path).fingerprint == first
    nearly = NOW + datetime.timedelta(days=VALID_DAYS - RENEWED_DAYS + 1)
    assert certificate_for(NAMES, tmp_path, nearly).fingerprint != first
    second = certificate_for(NAMES, tmp_path).fingerprint
    assert certificate_for([*NAMES, "more.example"], tmp_path).fingerprint != second


@pytest.mark.parametrize("name", ["cert.pem", "key.pem", "names.txt"])
def test_a_damaged_file_is_replaced(tmp_path: Path, name: str) -> None:
    first = certificate_for(NAMES, tmp_path)
    (tmp_path / name).write_bytes(b"\xff damaged")
    made = certificate_for(NAMES, tmp_path)
    handshake(made.cert, tls_context(str(made.cert), str(made.key)), "localhost")
    assert made == first


def test_without_either_tool_the_error_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only("neither", monkeypatch)
    with pytest.raises(StartError, match=r"voiceserver\[self-signed\].*openssl"):
        certificate_for(NAMES, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotKeep, match="cannot be kept in"):
        certificate_for(NAMES, tmp_path / "file" / "folder")


@pytest.mark.parametrize("has_home", [True, False])
def test_a_user_without_a_place_to_keep_it_gets_one_for_this_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_home: bool
) -> None:
    """As in a container whose user has no home, or one that cannot be written to."""

    def home() -> Path:
        if not has_home:
            raise RuntimeError("Could not determine home directory.")
        return tmp_path / "file"

    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    printed: list[str] = []
    monkeypatch.setattr(self_signed, "_print", printed.append)
    files, tell = self_signed.certify("self-signed", ServerConfig())
    paths = {key: text for key, text, _ in files}
    served = tls_context(paths["server.tls_cert"], paths["server.tls_key"])
    handshake(Path(paths["server.tls_cert"]), served, "localhost")
    tell(8765)
    while not printed:
        time.sleep(0.01)
    assert "after a restart browsers warn again" in printed[0]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(StartError):
        self_signed.certify("self-signed", ServerConfig())


def test_the_names_are_those_that_lead_to_the_address_that_is_listened_on() -> None:
    local = ["localhost", "127.0.0.1", "::1"]
    assert names_of_this_machine("127.0.0.1") == local
    assert names_of_this_machine("192.0.2.7") == [*local, "192.0.2.7"]
    assert set(names_of_this_machine("0.0.0.0")) > set(local)
    assert not [name for name in names_of_this_machine("0.0.0.0") if ":" in name and name != "::1"]


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", ["https://127.0.0.1:8765/"]),
        ("localhost", ["https://localhost:8765/"]),
        ("0.0.0.0", ["https://192.0.2.7:8765/", "https://localhost:8765/"]),
        ("::", ["https://192.0.2.7:8765/", "https://localhost:8765/"]),
        ("2001:db8::7", ["https://[2001:db8::7]:8765/"]),
    ],
)
def test_the_first_address_is_one_for_other_machines(host: str, shown: list[str]) -> None:
    assert addresses(host, 8765, NAMES) == shown


def test_a_code_is_printed_for_an_address_that_a_phone_can_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = certificate_for(NAMES, tmp_path)
    words = announcement("0.0.0.0", 8765, made, NAMES)
    assert "https://192.0.2.7:8765/" in words
    assert made.fingerprint in words
    assert qr_code("https://192.0.2.7:8765/") in words
    local = announcement("127.0.0.1", 8765, made, NAMES)
    assert "--host 0.0.0.0" in local
    assert "▀" not in local
    monkeypatch.setattr(self_signed.importlib.util, "find_spec", lambda name: None)
    assert "voiceserver[self-signed]" in announcement("0.0.0.0", 8765, made, NAMES)
