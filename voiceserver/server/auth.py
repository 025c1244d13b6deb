"""Who may come in: API keys, ephemeral client tokens, Origins. Decided before any upgrade; secrets are never logged or kept.

::

    key file (TOML)   [keys.NAME] hash, max_sessions, talk_minutes_per_day, is_admin      made by ``voiceserver key NAME``
    Authorization: Bearer KEY, api-key: KEY, or, from a browser, a subprotocol: openai-insecure-api-key.KEY, voiceserver-key.KEY
    POST /v1/realtime/client_secrets  with a key: a token for a page, good for ``auth.token_ttl_ms``

A key is 256 random bits, so a plain SHA-256 of it is a safe thing to keep; comparisons take constant time. Tokens are those of
``voiceserver.server.client_tokens``, bound to the hash of their key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from voiceserver.config.schema import AuthConfig
from voiceserver.errors import ConfigError, ProtocolError
from voiceserver.server.client_tokens import TOKEN_PREFIX, ClientToken, TokenSigner
from voiceserver.server.key_usage import DAY_S, KeyUsage, SharedUsage
from voiceserver.transport.http import TOO_DEEP, Caller, Response, error_response, json_response
from voiceserver.wire.decoding import parameter_error

CLIENT_SECRETS: Final = "/v1/realtime/client_secrets"
KEY_PREFIX: Final = "vs_"
# Of an admin token that was made at a start, and is for this machine only.
MADE_PREFIX: Final = "vs_here_"
HASH_PREFIX: Final = "sha256:"
SUBPROTOCOL_PREFIXES: Final = ("openai-insecure-api-key.", "voiceserver-key.")
MAX_TOKEN_TTL_S: Final = 7_200.0  # as the service that this endpoint is named after
MAX_SESSION_BYTES: Final = 6_000  # of a token, which is sent in a header
MIN_TOKEN_TTL_S: Final = 1.0
MOST_OF_A_KEY: Final = 1_000_000_000  # sessions, or minutes a day
ANCHOR: Final = "created_at"  # what a token's time is counted from
_HASH: Final = re.compile(HASH_PREFIX + "[0-9a-fA-F]{64}")
_DECLARED_TWICE: Final = re.compile(r"Cannot declare \('keys', '(.*)'\) twice")


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key. 0: no limit. ``is_admin``: may see the figures and drain the server."""

    hash: str
    max_sessions: int = 0
    talk_minutes_per_day: float = 0.0
    is_admin: bool = False


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: dict[str, dict[str, Any]] = {}


class _ExpiresAfter(msgspec.Struct, frozen=True):
    seconds: Annotated[float, msgspec.Meta(ge=MIN_TOKEN_TTL_S, le=MAX_TOKEN_TTL_S)] | None = None
    anchor: str | None = None


class _SecretRequest(msgspec.Struct, frozen=True):
    expires_after: _ExpiresAfter | None = None
    session: msgspec.Raw = msgspec.Raw()


def new_key() -> tuple[str, str]:
    """A key for a client, and the hash of it for the key file."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, hash_of(key)


def hash_of(key: str) -> str:
    return HASH_PREFIX + hashlib.sha256(key.encode()).hexdigest()


def name_problem(name: str) -> str:
    """Why this cannot be the name of a key; empty if it can."""
    is_name = bool(name.strip()) and name.isprintable()
    return "" if is_name else "the name of a key must be printable and not empty"


def read_keys(path: str, source: str = "") -> dict[str, Key]:
    """Raises ConfigError naming what is wrong in the file: the key, the field, and what is allowed."""
    try:
        read = msgspec.convert(tomllib.loads(Path(path).read_text()), _File).keys
    except OSError as error:
        raise ConfigError("auth.keys_file", f"{path!r} cannot be read: {error.strerror}", source) from None
    except tomllib.TOMLDecodeError as error:
        twice = _DECLARED_TWICE.search(str(error))
        message = f"is not TOML: {error}"
        if twice is not None:
            message = f"there is more than one keys.{twice[1]}; every key needs a name of its own"
        raise ConfigError("auth.keys_file", f"{path!r}: {message}", source) from None
    except UnicodeDecodeError as error:
        raise ConfigError("auth.keys_file", f"{path!r}: is not TOML: {error}", source) from None
    except msgspec.ValidationError as error:
        raise ConfigError("auth.keys_file", f"{path!r}: {error}", source) from None
    keys: dict[str, Key] = {}
    names: dict[str, str] = {}  # by hash
    for name, fields in read.items():
        try:
            keys[name] = key = msgspec.convert(fields, Key)
            problem = _problem(name, key, names)
        except msgspec.ValidationError as error:
            problem = f"keys.{name}: {error}"
        if problem:
            raise ConfigError("auth.keys_file", f"{path!r}: {problem}", source)
        names[key.hash.lower()] = name
    return keys


def _problem(name: str, key: Key, names: Mapping[str, str]) -> str:
    """What is wrong with a key; empty: nothing. names: of the keys before it, by hash."""
    if problem := name_problem(name):
        return f"{problem}, not {name!r}"
    if _HASH.fullmatch(key.hash) is None:
        return f"keys.{name}.hash must be {HASH_PREFIX} and 64 hex digits; 'voiceserver key {name}' makes one"
    if key.hash.lower() in names:
        return f"keys.{name}.hash is that of keys.{names[key.hash.lower()]} too; every key needs a hash of its own"
    if not 0 <= key.max_sessions <= MOST_OF_A_KEY:
        return (
            f"keys.{name}.max_sessions must be from 0 (no limit) to {MOST_OF_A_KEY}, not {key.max_sessions}"
        )
    minutes = key.talk_minutes_per_day
    if not 0 <= minutes <= MOST_OF_A_KEY:  # nan neither
        return (
            f"keys.{name}.talk_minutes_per_day must be from 0 (no limit) to {MOST_OF_A_KEY}, not {minutes:g}"
        )
    return ""


class Auth:
    """``wall_s``: seconds since the epoch, for token ends and days. Without a key file only Origins are checked."""

    def __init__(
        self,
        config: AuthConfig,
        wall_s: Callable[[], float],
        source: str = "",
        *,
        check_session: Callable[[bytes], object] = lambda session: None,
        shared_usage: SharedUsage | None = None,
    ) -> None:
        """check_session raises ProtocolError for a session object that a client token cannot open. ``shared_usage``: what keys
        have used at the other processes of this server."""
        self._config = config
        self._wall_s = wall_s
        self._origins = frozenset(one.strip().rstrip("/") for one in config.origins.split(",") if one.strip())
        self._signer = TokenSigner(config.token_secret.encode() or secrets.token_bytes(32), wall_s)
        self._keys = read_keys(config.keys_file, source) if config.keys_file else {}
        self._usage = KeyUsage(wall_s, shared_usage)
        self._check_session = check_session

    @property
    def has_keys(self) -> bool:
        return bool(self._config.keys_file)

    def tenant(self, name: str) -> str:
        """Whose share of the places a key uses; a single key is nobody in particular."""
        return f"key:{name}" if len(self._keys) > 1 else ""

    def reload(self) -> None:
        """Read the key file again; raises ConfigError and keeps the old keys if it is wrong. Who is in stays in."""
        if self.has_keys:
            self._keys = read_keys(self._config.keys_file)

    # --------------------------------------------------------------------------------------------------- checking

    @property
    def is_for_all(self) -> bool:
        """Whether who is far away may have a secret at all; one that was made at the start is for this machine."""
        return self.has_keys or not self._config.admin_token.startswith(MADE_PREFIX)

    def refuse_change(self, caller: Caller) -> Response | None:
        """For what changes the server's state: None for an admin key or the admin token, else the refusal."""
        if self.has_keys or self._shows_admin_token(caller):
            return self.refuse_admin(caller)
        return _unauthorized(
            "missing_key",
            "This needs the server's admin token, 'Authorization: Bearer TOKEN'. On its machine 'voiceserver drain' uses it, and "
            "'voiceserver dashboard' prints a link with it.",
        )

    def _shows_admin_token(self, caller: Caller) -> bool:
        token = self._config.admin_token
        return bool(token) and hmac.compare_digest(presented_key(caller).encode(), token.encode())

    def refuse_admin(self, caller: Caller) -> Response | None:
        """For figures: None for an admin key, the admin token, or where there are no keys; else the refusal."""
        if self._shows_admin_token(caller):
            return None
        name = self._identify(caller, takes_tokens=False)
        if isinstance(name, Response):
            return name
        if name and not self._keys[name].is_admin:
            return error_response(
                403, "not_allowed", "This key is not an admin's (is_admin in the key file)."
            )
        return None

    def admit(self, caller: Caller) -> str | Response:
        """For an upgrade: the name of the key ("" without keys), or the refusal."""
        origins = [origin.rstrip("/") for origin in caller.headers.get_all("Origin")]
        if self._origins and not self._origins.issuperset(origins):
            return error_response(403, "origin_not_allowed", "Pages of this Origin may not connect here.")
        return self._identify(caller, takes_tokens=True)

    def refuse_over_limit(self, name: str, *, is_resumed: bool = False) -> Response | None:
        """For an upgrade with the key ``name``: None if it may have the session, which is counted from now on. Who resumes has a
        session already."""
        key = self._keys.get(name)
        if key is None:
            return None
        if self.talk_left_ms(name) <= 0:
            return self._talk_exhausted(key)
        if key.max_sessions and not is_resumed and not self._usage.try_reserve(name, key.max_sessions):
            return _sessions_exhausted(key)
        return None

    def why_over_limit(self, name: str) -> Response | None:
        """What an upgrade with the key ``name`` would be refused with now; nothing is counted."""
        key = self._keys.get(name)
        if key is None:
            return None
        if self.talk_left_ms(name) <= 0:
            return self._talk_exhausted(key)
        return _sessions_exhausted(key) if self._usage.is_full(name, key.max_sessions) else None

    def _talk_exhausted(self, key: Key) -> Response:
        seconds = str(int(DAY_S - self._wall_s() % DAY_S) + 1)
        message = f"This key may talk {key.talk_minutes_per_day:g} minutes a day (UTC), and has."
        return error_response(429, "key_talk_exhausted", message, ("Retry-After", seconds))

    def _identify(self, caller: Caller, *, takes_tokens: bool) -> str | Response:
        if not self.has_keys:
            return ""
        presented = presented_key(caller)
        if not presented:
            return _unauthorized("missing_key", "This server wants an API key: 'Authorization: Bearer KEY'.")
        if takes_tokens and presented.startswith(TOKEN_PREFIX):
            name = self._name_of_token(presented)
            if name is None:
                return _unauthorized(
                    "invalid_token", "The client token is wrong or has ended; ask for a new one."
                )
            return name
        digest = hash_of(presented)
        found = ""
        for name, key in self._keys.items():  # all of them: the time taken tells nothing
            if hmac.compare_digest(digest, key.hash.lower()):
                found = name
        return found or _unauthorized("invalid_key", "The API key is not one of this server's.")

    # ------------------------------------------------------------------------------------------------------ usage

    def enter(self, name: str) -> None:
        """A session of the key has begun."""
        self._usage.enter(name)

    def note(self, name: str, session_id: str, talk_ms: float) -> None:
        """An open session has sent so much audio by now: many at once have one limit together."""
        key = self._keys.get(name)
        if key is not None and key.talk_minutes_per_day:
            self._usage.note(name, session_id, talk_ms)

    def leave(self, name: str, talk_ms: float, session_id: str = "") -> None:
        """It has ended; ``talk_ms``: the audio that it sent."""
        self._usage.leave(name, talk_ms, session_id)

    def publish_usage(self) -> None:
        """Tell the other processes of this server what keys have used. Call it about once a second."""
        self._usage.publish()

    def talk_left_ms(self, name: str) -> float:
        """How much audio sessions of the key may still send today, as far as open ones were noted."""
        key = self._keys.get(name)
        if key is None or not key.talk_minutes_per_day:
            return float("inf")
        return key.talk_minutes_per_day * 60_000.0 - self._usage.talk_ms(name)

    def talk_check_ms(self, name: str) -> float:
        """How soon the key's audio may be used up, all its sessions talking; at least a second. Infinite without a limit."""
        left_ms = self.talk_left_ms(name)
        return max(left_ms / max(self._usage.sessions(name), 1), 1_000.0)

    def take_talk(self, name: str, session_id: str, talk_ms: float) -> float:
        """For audio at the door of a session, which has sent ``talk_ms`` with that: what is left of the key's day then, in ms.
        Negative: it must not come in. Infinite without a limit."""
        key = self._keys.get(name)
        if key is None or not key.talk_minutes_per_day:
            return float("inf")
        self._usage.note(name, session_id, talk_ms)
        return self.talk_left_ms(name)

    def talk_limit(self, name: str) -> tuple[float, float, float] | None:
        """Of a key with a daily limit: ms of audio a day, ms that are left, and seconds until they are all there again. None
        without one."""
        left_ms = self.talk_left_ms(name)
        if left_ms == float("inf"):
            return None
        daily_ms = self._keys[name].talk_minutes_per_day * 60_000.0
        return daily_ms, max(left_ms, 0.0), DAY_S - self._wall_s() % DAY_S

    # ----------------------------------------------------------------------------------------------------- tokens

    def client_secret(self, caller: Caller) -> Response:
        """POST /v1/realtime/client_secrets: a token for a page, so that it never holds the key."""
        name = self._identify(caller, takes_tokens=False)
        if isinstance(name, Response):
            return name
        try:
            request = msgspec.json.decode(caller.body or b"{}", type=_SecretRequest)
        except msgspec.ValidationError as error:
            mistake = parameter_error(error, _SecretRequest)
            return error_response(400, mistake.code, mistake.message, param=mistake.param)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return error_response(400, "invalid_json", f"The body is not JSON: {error}.")
        except RecursionError:
            return TOO_DEEP
        expires_after = request.expires_after or _ExpiresAfter()
        if expires_after.anchor not in (None, ANCHOR):
            message = f"Invalid value: {expires_after.anchor[:90]!r}. Supported values are: {ANCHOR!r}."
            return error_response(400, "invalid_value", message, param="expires_after.anchor")
        ttl_s = expires_after.seconds or self._config.token_ttl_ms / 1000.0
        session = bytes(request.session).removeprefix(b"null")
        if len(session) > MAX_SESSION_BYTES:
            message = f"A session in a token may have {MAX_SESSION_BYTES} bytes: it travels in a header."
            return error_response(400, "invalid_value", message, param="session")
        try:
            if session:
                self._check_session(session)
        except ProtocolError as error:
            return error_response(400, error.code, error.message, param=error.param)
        except RecursionError:
            return TOO_DEEP
        ends_s = self._wall_s() + ttl_s
        value = self.make_token(name, ends_s, session)
        shown = msgspec.Raw(session or b"{}")
        return json_response(200, {"value": value, "expires_at": int(ends_s), "session": shown})

    def make_token(self, name: str, ends_s: float, session: bytes = b"") -> str:
        """``session``: JSON that its bearer's session begins with; the bearer can read it."""
        key = self._keys.get(name)
        return self._signer.sign(
            ClientToken.for_key(name, key.hash if key is not None else "", ends_s, session)
        )

    def session_of(self, caller: Caller) -> bytes:
        """The session object of the client token that an upgrade brings; empty without one."""
        presented = presented_key(caller)
        token = self._signer.read(presented) if presented.startswith(TOKEN_PREFIX) else None
        session = bytes(token.session) if token is not None else b""
        return b"" if session == b"null" else session

    def _name_of_token(self, token: str) -> str | None:
        read = self._signer.read(token)
        key = self._keys.get(read.key) if read is not None else None
        return read.key if read is not None and key is not None and read.is_of(key.hash) else None


def presented_key(caller: Caller) -> str:
    """The key that a request brings: its Bearer header, ``api-key``, or a subprotocol, where a browser can set no header."""
    for header in caller.headers.get_all("Authorization"):
        scheme, _, value = header.partition(" ")
        if scheme.lower() == "bearer" and value.strip():
            return value.strip()
    for value in caller.headers.get_all("api-key"):  # Azure's
        if value.strip():
            return value.strip()
    offered = ",".join(caller.headers.get_all("Sec-WebSocket-Protocol")).split(",")
    for name in offered:
        for prefix in SUBPROTOCOL_PREFIXES:
            if name.strip().startswith(prefix):
                return name.strip().removeprefix(prefix)
    return ""


def _sessions_exhausted(key: Key) -> Response:
    message = f"This key may hold {key.max_sessions} sessions at once, and does."
    return error_response(429, "key_sessions_exhausted", message, ("Retry-After", "5"))


def _unauthorized(code: str, message: str) -> Response:
    return error_response(401, code, message, ("WWW-Authenticate", "Bearer"))
