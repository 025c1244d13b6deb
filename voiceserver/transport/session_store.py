"""Resume: a call whose connection broke is kept for a while, and goes on over the next one.

::

    attached --connection lost--> detached --a request with its token--> attached
                                     |--HOLD_MS: its place and its idle streams are for others again
                                     '--window_ms, or too many are kept--> gone (410)

It is the connection object that is kept and given the new socket, so session, streams and codec do not notice. Rules: messages
are numbered from 1 in the order they were said (``session.ready`` is not counted), and kept until the caller is known to have
them: a resumed caller gets each message once. A token is good for one resume; the one before it stays good only until
a pong shows that the new one arrived. What is kept is bounded, for one call and for
all together. No socket and no loop here (``voiceserver.transport.connection``).
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from voiceserver.events.events import ErrorEvent, ServerBusy, ServerReady
from voiceserver.session.weight import session_bytes
from voiceserver.transport.call import Pump
from voiceserver.transport.http import Caller, OtherProcess, Response, error_response
from voiceserver.wire.frames import PING, build_frame, build_head

if TYPE_CHECKING:
    from voiceserver.session.session import Session
    from voiceserver.transport.services import Services
    from voiceserver.wire import Codec, Frame

MAX_CALL_BYTES: Final = 1_048_576  # messages kept of one call: about 20 s of speech at 24 kHz
MESSAGE_BYTES: Final = 48  # of memory that a message costs beside its own
MAX_DETACHED: Final = 1_000
MAX_DETACHED_BYTES: Final = 64 * 1_048_576
ASK_BYTES: Final = 65_536  # kept, after which the caller is asked how far it is
HOLD_MS: Final = (
    3_000.0  # most callers are back sooner, and then find their place and streams as they left them
)
SEED_BYTES: Final = 24  # of a session: 64 random bits are its name, 128 its first token
_ID_BYTES: Final = 8
REMEMBERED_ENDS: Final = 1_000
_PROCESS_IN: Final = re.compile(r"sess_([0-9]{1,4})_")


class ReplayBuffer:
    """What one call was told and is not known to have received. ``count``: messages ever; ``cut``: how many had left when the
    connection broke; ``heard``: text messages that it has sent, ever."""

    __slots__ = ("_asked", "_frames", "base", "count", "cut", "heard", "size", "spare_token")

    def __init__(self, base: int = 0) -> None:
        """base: messages that were said before and are not kept: they were about their moment."""
        self._frames: deque[bytes] = deque()
        self._asked = 0
        self.base = self.count = base
        self.cut = 0
        self.heard = 0
        self.size = 0
        self.spare_token = ""

    def add(self, frame: bytes) -> None:  # hot
        self._frames.append(frame)
        self.count += 1
        self.size += len(frame)

    @property
    def memory_bytes(self) -> int:
        return self.size + len(self._frames) * MESSAGE_BYTES

    @property
    def acknowledged(self) -> int:
        return self.count - len(self._frames)

    def acknowledge(self, count: int) -> None:
        """The caller has received ``count`` messages."""
        if count <= self.count:
            while self.acknowledged < count:
                self.size -= len(self._frames.popleft())

    def forget_oldest(self) -> None:
        """Keep to the bound of one call."""
        while self.size > MAX_CALL_BYTES:
            self.size -= len(self._frames.popleft())

    def ask(self, *, is_always: bool = False) -> bytes:
        """A ping whose answer says how far the caller is; empty while there is nothing to ask."""
        if not is_always and (self.size <= ASK_BYTES or self._asked > self.acknowledged):
            return b""
        self._asked = self.count
        return build_head(PING, 8) + self.count.to_bytes(8, "big")

    def after(self, count: int) -> Iterable[bytes]:
        """What is kept of the messages after the first ``count``."""
        skipped = max(count - self.acknowledged, 0)
        return (frame for index, frame in enumerate(self._frames) if index >= skipped)


class Resumable(Pump):
    """A call that can be kept. ``Connection`` adds the socket."""

    __slots__ = ("_detached_ms", "_replay_buffer", "_shared")

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._replay_buffer: ReplayBuffer | None = None
        self._shared = 0  # messages that were said to all, before there was a session
        self._detached_ms = 0.0  # since when; 0 while there is a connection

    @property
    def is_detached(self) -> bool:
        return self._detached_ms > 0.0

    @property
    def has_place(self) -> bool:
        """Whether the caller would find the place that it left."""
        return self._ticket is not None and self._ticket.state in ("admitted", "waiting")

    @property
    def key(self) -> str:
        """The name of the API key that the call came with."""
        return self._session.key if self._session is not None else ""

    @property
    def rates_hz(self) -> tuple[int, int]:
        assert self._codec is not None
        return self._codec.input_rate_hz, self._codec.output_rate_hz

    @property
    def replay_buffer(self) -> ReplayBuffer:
        if self._replay_buffer is None:
            self._replay_buffer = ReplayBuffer(self._shared)
        return self._replay_buffer

    def is_claimed_by(self, token: str) -> bool:
        session, replay_buffer = self._session, self._replay_buffer
        if session is None:
            return False
        is_current = hmac.compare_digest(token.encode(), session.resume_token.encode())
        spare = replay_buffer.spare_token if replay_buffer is not None else ""
        return is_current or (bool(spare) and hmac.compare_digest(token.encode(), spare.encode()))

    def kept_bytes(self) -> int:
        """About what the call costs in memory."""
        total = self._codec.memory_bytes if self._codec is not None else 0
        if self._replay_buffer is not None:
            total += self._replay_buffer.memory_bytes
        return total + (session_bytes(self._session) if self._session is not None else 0)

    # ------------------------------------------------------------------------------------------------ messages out

    def _queue(self, frames: list[Frame]) -> None:  # hot
        session, codec = self._session, self._codec
        if session is None or codec is None or not session.resume_token or not codec.is_resumable:
            self.write_frames(frames)
            return
        replay_buffer = self.replay_buffer
        for frame in frames:
            data = build_frame(frame)
            replay_buffer.add(data)
            self.write(data)
        if replay_buffer.size > ASK_BYTES and not self.is_detached:
            replay_buffer.forget_oldest()
            asked = replay_buffer.ask()
            if asked:
                self.write(asked)

    def _say(self, session: Session, codec: Codec) -> None:  # hot
        if self.is_detached:
            # A busy signal is about now; whoever comes back later gets one of its own time.
            session.outgoing[:] = [event for event in session.outgoing if is_worth_keeping(event)]
        super()._say(session, codec)

    def receive_text(self, payload: bytes) -> None:
        if self.is_countable:
            self.replay_buffer.heard += 1
        super().receive_text(payload)

    def receive_pong(self, payload: bytes) -> None:
        if self._replay_buffer is not None and len(payload) == 8:
            self._replay_buffer.acknowledge(int.from_bytes(payload, "big"))
            self._replay_buffer.spare_token = ""  # the ping came after the new one

    # -------------------------------------------------------------------------------------------------- transitions

    @property
    def is_countable(self) -> bool:
        """Its wire is one whose calls can be resumed."""
        codec = self._codec
        return self._services.sessions.store.window_ms > 0 and codec is not None and codec.is_resumable

    def detach(self, session: Session, now_ms: float) -> bool:
        """The connection is lost: keep the call for whoever shows its token. False: there is nothing to keep."""
        store = self._services.sessions.store
        if not self.is_kept_if_lost(session):
            store.forget(session.session_id)
            return False
        self._detached_ms = now_ms
        self.replay_buffer.cut = self.replay_buffer.count
        session.hold_output(True, now_ms)
        store.detach(session.session_id, self, now_ms)
        self._pump(now_ms)
        self.wake_at(now_ms + HOLD_MS)
        return True

    def is_kept_if_lost(self, session: Session) -> bool:
        if not session.resume_token or self._services.state.is_draining:
            return False
        is_used = (
            session.audio_input is not None
            or session.has_speech_output
            or session.options is not session.settings.options
        )
        if session.is_closed:  # said, and perhaps not heard
            is_told = self._strict_parser is not None and self._strict_parser.close_rcvd is not None
            is_used = is_used and session.close_code == 1000 and not is_told
        return is_used and self._codec is not None and self._codec.is_resumable

    def serve_detached(self, session: Session, now_ms: float) -> None:
        """Time passes for a call that nobody listens to."""
        store = self._services.sessions.store
        if now_ms >= self._detached_ms + store.window_ms:
            store.end(session.session_id, "expired", now_ms)
            return
        if now_ms >= session.deadline_ms:
            session.handle_timer(now_ms)
        if now_ms >= self._detached_ms + HOLD_MS and not session.is_resting:
            self.leave_places(now_ms)
            session.rest(now_ms)
        self._pump(now_ms)
        if self.replay_buffer.size > MAX_CALL_BYTES:
            store.end(session.session_id, "too_much_unheard", now_ms)
            return
        store.weigh(session.session_id, self, now_ms)
        if not self.is_detached:  # it was the oldest, and they were too many bytes
            return
        due_ms = self._detached_ms + (store.window_ms if session.is_resting else HOLD_MS)
        self.wake_at(due_ms)

    def attach(self, session: Session, after: int | None, now_ms: float) -> None:
        """The caller is back, with ``after`` messages received (None: it does not count). Say what it missed."""
        replay_buffer, codec = self.replay_buffer, self._codec
        assert codec is not None
        self._detached_ms = 0.0
        self._services.sessions.store.attach(session.session_id)
        self._services.metrics.calls_resumed.inc()
        replay_buffer.spare_token = session.resume_token
        token = self._services.sessions.store.new_token(session.session_id)
        ready = msgspec.structs.replace(session.resume(token, now_ms), received_events=replay_buffer.heard)
        self.write_frames(codec.encode(ready))
        heard = replay_buffer.cut if after is None else after
        missing = replay_buffer.acknowledged - max(heard, replay_buffer.base)
        for data in replay_buffer.after(heard):
            self.write(data)
        if missing > 0:
            message = f"{missing} messages before these are no longer kept."
            self._queue(codec.encode(ErrorEvent(code="messages_lost", message=message)))
        self.write(replay_buffer.ask(is_always=True))

    def end_detached(self, reason: str, now_ms: float) -> None:
        """Nobody came back. For ``SessionStore``."""
        session = self._session
        if session is None:
            return
        self._detached_ms = 0.0
        self._services.metrics.count_given_up(reason)
        self.leave_places(now_ms)
        session.close_reason = session.close_reason or reason
        session.disconnect(now_ms)
        self._pump(now_ms)
        self._account(session, now_ms)
        self._session = self._codec = None


class ResumeTarget(NamedTuple):
    """A request that may go on with ``call``. ``after``: messages that its caller has received, None if it does not count."""

    call: Resumable
    after: int | None


class SessionStore:
    """Calls of one server that can be resumed, by session. ``window_ms`` 0: none is. process, processes: which of how many
    this is; a session's id names its process."""

    __slots__ = (
        "_bytes",
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
        self._of_session: dict[str, Resumable] = {}
        self._of_seed: dict[bytes, Resumable] = {}  # those whose session is not made yet
        self._detached: dict[str, int] = {}  # session -> bytes kept; the oldest first
        self._bytes = 0
        self._ended: dict[str, str] = {}  # session -> why it cannot be resumed any more

    def session_id_of(self, seed: bytes) -> str:
        place = f"{self._process}_" if self._processes > 1 else ""
        return f"sess_{place}{seed[:_ID_BYTES].hex()}"

    def elsewhere(self, token: str) -> int | None:
        """Another process that may keep the call of ``token``; None if it would be kept here."""
        named = _PROCESS_IN.match(token)
        process = int(named[1]) if named is not None else self._process
        return process if process != self._process and process < self._processes else None

    def new_token(self, session_id: str) -> str:
        """Another one for the same session."""
        return f"{session_id}.{_secret_of(new_seed())}" if self.window_ms else ""

    def new_seed(self, call: Resumable) -> bytes:
        """The name and the token of a session that ``call`` will need some day. ``find`` knows it from now on."""
        seed = new_seed()
        if self.window_ms:
            self._of_seed[seed] = call
        return seed

    def grow(self, seed: bytes, session_id: str, call: Resumable) -> None:
        """The session of a seed was made."""
        if self.window_ms:
            del self._of_seed[seed]
            self.add(session_id, call)

    def token_of(self, seed: bytes) -> str:
        return f"{self.session_id_of(seed)}.{_secret_of(seed)}" if self.window_ms else ""

    def add(self, session_id: str, call: Resumable) -> None:
        self._of_session[session_id] = call

    def resume_target(
        self, caller: Caller, codec: Codec, key: str
    ) -> ResumeTarget | OtherProcess | Response | None:
        """The call that a request wants to go on with; None if it wants a new one. ``key``: the API key's name."""
        traits = codec.traits
        token = caller.query.get(traits.resume_parameter, "") if traits.resume_parameter else ""
        if not token:
            return None
        after = caller.query.get(traits.after_parameter) if traits.after_parameter else None
        if after is not None and not (after.isascii() and after.isdigit() and len(after) <= 12):
            message = f"{traits.after_parameter} must be the number of messages received, not {after[:40]!r}."
            return error_response(400, "bad_parameter", message, param=traits.after_parameter)
        process = self.elsewhere(token)
        if process is not None:
            return OtherProcess(process)
        call = self.find(token)
        if isinstance(call, Resumable) and call.key != key:
            call = "unknown"
        if isinstance(call, str):
            if call == "unknown":
                return error_response(
                    404, "session_unknown", "No session here can be resumed with this token."
                )
            return error_response(
                410, "session_gone", f"This session cannot be resumed with this token: {call}."
            )
        is_given = bool(traits.rate_parameter) and traits.rate_parameter in caller.query
        if is_given and codec.input_rate_hz != call.rates_hz[0]:
            message = f"The session's rate is {call.rates_hz[0]} Hz; a resume cannot change it."
            return error_response(400, "bad_parameter", message, param=traits.rate_parameter)
        return ResumeTarget(call, None if after is None else int(after))

    def find(self, token: str) -> Resumable | str:
        """The call of ``token``, or why there is none: unknown, used, expired, ..."""
        session_id = token.partition(".")[0]
        call = self._of_session.get(session_id)
        if call is None:
            silent = self._of_seed.get(_seed_of(token))
            if silent is not None:
                return silent
            return self._ended.get(session_id, "unknown")
        return call if call.is_claimed_by(token) else "used"

    @property
    def detached(self) -> int:
        return len(self._detached)

    def kept(self) -> Iterable[Resumable]:
        """Those that nobody is connected to."""
        return (self._of_session[session_id] for session_id in self._detached)

    def detach(self, session_id: str, call: Resumable, now_ms: float) -> None:
        self._detached[session_id] = 0
        self.weigh(session_id, call, now_ms)

    def weigh(self, session_id: str, call: Resumable, now_ms: float) -> None:
        """Count what a detached call keeps by now. The oldest are given up while all together keep too much."""
        size = call.kept_bytes()
        self._bytes += size - self._detached[session_id]
        self._detached[session_id] = size
        while len(self._detached) > MAX_DETACHED or (
            self._bytes > MAX_DETACHED_BYTES and len(self._detached) > 1
        ):
            self.end(next(iter(self._detached)), "evicted", now_ms)

    def attach(self, session_id: str) -> None:
        self._bytes -= self._detached.pop(session_id, 0)

    def forget(self, session_id: str) -> None:
        """The call is over, and its caller knows."""
        self._of_session.pop(session_id, None)

    def end(self, session_id: str, reason: str, now_ms: float) -> None:
        """A detached call is given up."""
        self.attach(session_id)
        call = self._of_session.pop(session_id)
        self._ended[session_id] = reason
        if len(self._ended) > REMEMBERED_ENDS:
            del self._ended[next(iter(self._ended))]
        call.end_detached(reason, now_ms)

    def end_all(self, reason: str, now_ms: float) -> None:
        for session_id in tuple(self._detached):
            self.end(session_id, reason, now_ms)


def new_seed() -> bytes:
    return secrets.token_bytes(SEED_BYTES)


def _secret_of(seed: bytes) -> str:
    return base64.urlsafe_b64encode(seed[_ID_BYTES:]).decode().rstrip("=")


def _seed_of(token: str) -> bytes:
    """The seed that a token was made of; empty for one that was not."""
    session_id, _, secret = token.partition(".")
    try:
        return bytes.fromhex(session_id.rpartition("_")[2]) + base64.urlsafe_b64decode(f"{secret}==")
    except ValueError:
        return b""


def is_worth_keeping(event: object) -> bool:
    """Whether somebody who is away should hear of it later: a busy signal is about now, but for what was dropped."""
    return not isinstance(event, ServerBusy | ServerReady) or (
        isinstance(event, ServerBusy) and event.dropped_ms > 0
    )
