"""The calls of one server that can be resumed: their tokens, their bounds, and the end of those that nobody comes back to.

::

    attached --connection lost--> detached --a request with its token--> attached
                                     |--HOLD_MS: its place and its idle streams are for others again
                                     '--window_ms, or too many are kept--> gone (410)

A token is good for one resume; the one that the caller came with stays good until a pong shows that the next one
arrived. What is kept is bounded, for one call and for all together. Nothing of it knows a socket, a loop or HTTP.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

from voiceserver.session.session import Session
from voiceserver.wire import Codec

MAX_DETACHED: Final = 1_000
MAX_DETACHED_BYTES: Final = 64 * 1_048_576
# Most callers are back sooner, and then find their place and their streams as they left them.
HOLD_MS: Final = 3_000.0
SEED_BYTES: Final = 24  # of a session: 64 random bits are its name, 128 its first token
_ID_BYTES: Final = 8
REMEMBERED_ENDS: Final = 1_000
_PROCESS_IN: Final = re.compile(r"sess_([0-9]{1,4})_")


class HasPlace(Protocol):
    @property
    def has_place(self) -> bool:
        """Whether the caller would find the place that it left."""


class HasMemory(Protocol):
    @property
    def memory_bytes(self) -> int:
        """About what a call costs in memory."""


class StoredCall(Protocol):
    """A call, as the store sees it; ``voiceserver.transport.call.Call`` is one."""

    @property
    def session(self) -> Session: ...

    @property
    def codec(self) -> Codec: ...

    @property
    def places(self) -> HasPlace: ...

    @property
    def messages(self) -> HasMemory: ...

    def give_up(self, reason: str, now_ms: float) -> None:
        """Nobody came back: end it."""


class SilentCall(Protocol):
    """A caller whose session is made when something needs it."""

    def make_call(self) -> StoredCall: ...


class ResumeTarget(NamedTuple):
    """A request that came with ``token`` may go on with ``call``. ``after``: messages that its caller has received, None if it
    does not count."""

    call: StoredCall
    token: str
    after: int | None


class DetachedCall(NamedTuple):
    """Until when a call without a connection keeps its place and its idle streams, until when it is kept, and the bytes that it
    keeps."""

    hold_until_ms: float
    keep_until_ms: float
    size: int


class SessionStore:
    """``window_ms``: how long a call is kept; 0: none is. process, processes: which of how many this is; a session's id names
    its process."""

    __slots__ = (
        "_bytes",
        "_came_with",
        "_detached",
        "_ended",
        "_of_seed",
        "_of_session",
        "_process",
        "_processes",
        "window_ms",
    )

    def __init__(self, window_ms: float, process: int = 0, processes: int = 1) -> None:
        self.window_ms = window_ms
        self._process, self._processes = process, processes
        self._of_session: dict[str, StoredCall] = {}
        self._of_seed: dict[bytes, SilentCall] = {}
        self._detached: dict[str, DetachedCall] = {}  # the oldest first
        self._bytes = 0
        self._came_with: dict[str, str] = {}  # session -> the token of its last resume
        self._ended: dict[str, str] = {}  # session -> why it cannot be resumed any more

    # ------------------------------------------------------------------------------------------------------ tokens

    def session_id_of(self, seed: bytes) -> str:
        place = f"{self._process}_" if self._processes > 1 else ""
        return f"sess_{place}{seed[:_ID_BYTES].hex()}"

    def elsewhere(self, token: str) -> int | None:
        """Another process that may keep the call of ``token``; None if it would be kept here."""
        named = _PROCESS_IN.match(token)
        process = int(named[1]) if named is not None else self._process
        return process if process != self._process and process < self._processes else None

    def next_token(self, session_id: str, token: str) -> str:
        """Another one for the session of ``token``, which the caller came with: it has that one for certain."""
        self._came_with[session_id] = token
        return f"{session_id}.{_secret_of(self.new_seed())}" if self.window_ms else ""

    def note_arrival(self, session_id: str) -> None:
        """The caller has the newest token of its session: the one that it came with is used up."""
        self._came_with.pop(session_id, None)

    def new_seed(self) -> bytes:
        """The name and the first token of a session."""
        return secrets.token_bytes(SEED_BYTES)

    def token_of(self, seed: bytes) -> str:
        return f"{self.session_id_of(seed)}.{_secret_of(seed)}" if self.window_ms else ""

    def find(self, token: str) -> StoredCall | str:
        """The call of ``token``, or why there is none: unknown, used, expired, ..."""
        session_id = token.partition(".")[0]
        call = self._of_session.get(session_id)
        if call is None:
            silent = self._of_seed.get(_seed_of(token))
            return silent.make_call() if silent is not None else self._ended.get(session_id, "unknown")
        good = (call.session.resume_token, self._came_with.get(session_id))
        is_good = any(one and hmac.compare_digest(token.encode(), one.encode()) for one in good)
        return call if is_good else "used"

    # --------------------------------------------------------------------------------------------------- the calls

    def add_silent(self, seed: bytes, silent: SilentCall) -> None:
        """seed: of ``new_seed``."""
        if self.window_ms:
            self._of_seed[seed] = silent

    def forget_silent(self, seed: bytes) -> None:
        self._of_seed.pop(seed, None)

    def grow(self, seed: bytes, session_id: str, call: StoredCall) -> None:
        """The session of a seed was made."""
        if self.window_ms:
            del self._of_seed[seed]
            self.add(session_id, call)

    def add(self, session_id: str, call: StoredCall) -> None:
        self._of_session[session_id] = call

    @property
    def detached(self) -> int:
        return len(self._detached)

    def kept(self) -> Iterable[StoredCall]:
        """Those that nobody is connected to."""
        return (self._of_session[session_id] for session_id in self._detached)

    def detached_call(self, session_id: str) -> DetachedCall | None:
        """None for a call that is not kept."""
        return self._detached.get(session_id)

    def detach(self, session_id: str, call: StoredCall, now_ms: float) -> None:
        self._detached[session_id] = DetachedCall(now_ms + HOLD_MS, now_ms + self.window_ms, 0)
        self.weigh(session_id, call, now_ms)

    def weigh(self, session_id: str, call: StoredCall, now_ms: float) -> None:
        """Count what a detached call keeps by now. The oldest are given up while all together keep too much."""
        detached, size = self._detached[session_id], call.messages.memory_bytes
        self._bytes += size - detached.size
        self._detached[session_id] = detached._replace(size=size)
        while len(self._detached) > MAX_DETACHED or (
            self._bytes > MAX_DETACHED_BYTES and len(self._detached) > 1
        ):
            self.end(next(iter(self._detached)), "evicted", now_ms)

    def attach(self, session_id: str) -> None:
        detached = self._detached.pop(session_id, None)
        if detached is not None:
            self._bytes -= detached.size

    def forget(self, session_id: str) -> None:
        """The call is over, and its caller knows."""
        self._of_session.pop(session_id, None)
        self.note_arrival(session_id)

    def end(self, session_id: str, reason: str, now_ms: float) -> None:
        """End a detached call."""
        self.attach(session_id)
        call = self._of_session[session_id]
        self.forget(session_id)
        self._ended[session_id] = reason
        if len(self._ended) > REMEMBERED_ENDS:
            del self._ended[next(iter(self._ended))]
        call.give_up(reason, now_ms)

    def end_all(self, reason: str, now_ms: float) -> None:
        for session_id in tuple(self._detached):
            self.end(session_id, reason, now_ms)


def _secret_of(seed: bytes) -> str:
    return base64.urlsafe_b64encode(seed[_ID_BYTES:]).decode().rstrip("=")


def _seed_of(token: str) -> bytes:
    """The seed that a token was made of; empty for one that was not."""
    session_id, _, secret = token.partition(".")
    try:
        return bytes.fromhex(session_id.rpartition("_")[2]) + base64.urlsafe_b64decode(f"{secret}==")
    except ValueError:
        return b""
