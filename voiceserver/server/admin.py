"""The admin token: the secret that changes the state of a server that has no keys.

It is made at each start, unless ``auth.admin_token`` gives one. A token that was made is good on this machine only, and lies in a
file that nobody else can read; ``voiceserver drain`` and ``voiceserver dashboard`` find it there by the port.

::

    $XDG_RUNTIME_DIR/voiceserver/PORT.token        or, in the temporary directory, voiceserver-run-UID/PORT.token
    directory 0700, file 0600
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
import tempfile
from pathlib import Path

import msgspec

from voiceserver.config.environment import environment
from voiceserver.config.schema import Config, ServerConfig
from voiceserver.observability.logs import Log
from voiceserver.server import pages
from voiceserver.server.auth import MADE_PREFIX


def with_admin_token(config: Config) -> Config:
    """``config`` with a token, where neither keys nor a token are configured."""
    if config.auth.keys_file or config.auth.admin_token:
        return config
    token = MADE_PREFIX + secrets.token_urlsafe(32)
    return msgspec.structs.replace(config, auth=msgspec.structs.replace(config.auth, admin_token=token))


def publish(config: Config, port: int, log: Log) -> None:
    """Keep a made token where the commands find it, and show it on a terminal, this once. Without a place for it the server
    serves all the same."""
    token = config.auth.admin_token
    if not token.startswith(MADE_PREFIX):
        return
    try:
        path = _write(port, token)
    except OSError as error:
        log.warning("no admin token file", reason=error.strerror or str(error), fix="set auth.admin_token")
        return
    log.info("admin token kept", path=str(path))
    if sys.stderr.isatty():
        print(
            f"dashboard with its drain button: {dashboard_url(config.server, port, token)}", file=sys.stderr
        )


def withdraw(config: Config, port: int) -> None:
    """Remove the file, unless another server has the port by now."""
    token = config.auth.admin_token
    if token.startswith(MADE_PREFIX) and read(port) == token:
        with contextlib.suppress(OSError):
            _path(port).unlink()
            _path(port).parent.rmdir()  # which fails where another server has its file


def read(port: int) -> str:
    """The token that the server on ``port`` of this machine, and of this user, has made; empty if there is none."""
    try:
        with open(os.open(_path(port), os.O_RDONLY | os.O_NOFOLLOW), encoding="ascii") as file:
            is_ours = os.fstat(file.fileno()).st_uid == os.geteuid()
            return file.read(200).strip() if is_ours else ""
    except (OSError, ValueError):
        return ""


def dashboard_url(server: ServerConfig, port: int, token: str) -> str:
    """The token stands behind the #, which a browser keeps to itself."""
    return f"{pages.address(server, port)}dashboard" + (f"#key={token}" if token else "")


def _path(port: int) -> Path:
    runtime = environment().get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "voiceserver" / f"{port}.token"
    return Path(tempfile.gettempdir()) / f"voiceserver-run-{os.geteuid()}" / f"{port}.token"


def _write(port: int, token: str) -> Path:
    """Raises OSError, also where the directory is somebody else's."""
    path = _path(port)
    try:
        return _write_to(path, token)
    except FileNotFoundError:  # another server ended and removed the directory in between
        return _write_to(path, token)


def _write_to(path: Path, token: str) -> Path:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    found = path.parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise OSError(None, f"{path.parent} is not a directory of this user alone")
    made = path.with_suffix(f".{secrets.token_hex(4)}")
    with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(f"{token}\n")
    made.replace(path)
    return path
