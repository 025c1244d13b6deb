"""What all connections of one server share. ``voiceserver.server.build`` makes it; nothing of it is replaced afterwards."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from voiceserver.announcements.spoken import Announcements
from voiceserver.config.schema import Config
from voiceserver.observability.metrics import Metrics
from voiceserver.transport.http import Gatekeeper, Response, Router, Upgrade
from voiceserver.transport.outage_notices import OutageNotices
from voiceserver.transport.places import Places
from voiceserver.transport.server_state import ServerState
from voiceserver.transport.session_factory import SessionFactory
from voiceserver.transport.ticks import Ticks
from voiceserver.transport.timers import Timers


class Accounts(Gatekeeper, Protocol):
    """The API keys of callers and what they have used; ``voiceserver.server.auth.Auth`` is one."""

    def enter(self, name: str) -> None: ...

    def note(self, name: str, session_id: str, talk_ms: float) -> None: ...

    def leave(self, name: str, talk_ms: float, session_id: str = "") -> None: ...

    def talk_left_ms(self, name: str) -> float: ...

    def take_talk(self, name: str, session_id: str, talk_ms: float) -> float: ...

    def talk_check_ms(self, name: str) -> float: ...

    def talk_limit(self, name: str) -> tuple[float, float, float] | None: ...

    def publish_usage(self) -> None: ...

    def reload(self) -> None: ...


class Handoff(Protocol):
    """The other processes of this server; ``voiceserver.server.multiprocess.handoff.Handoff`` is one."""

    def hand_on(self, transport: asyncio.Transport, process: int, data: bytes) -> bool: ...


class CallerLog(Protocol):
    """``voiceserver.transport.caller_log.CallerLog`` is one."""

    def opened(self, upgrade: Upgrade, session_id: str, *, is_resumed: bool = False) -> None: ...

    def cannot_say(self, message: str) -> None: ...

    def told(self, upgrade: Upgrade, now_ms: float) -> None: ...

    def answered(self, response: Response, head: bytes, address: str, now_ms: float) -> None: ...


class Log(Protocol):
    """``voiceserver.observability.logs.UnfailingLog`` is one."""

    def info(self, event: str, **fields: object) -> None: ...

    def warning(self, event: str, **fields: object) -> None: ...

    def error(self, event: str, **fields: object) -> None: ...


class Sampled(Protocol):
    """The figures of the last hour; ``voiceserver.observability.history.History`` is one."""

    def sample(self, now_ms: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """``handoff`` None: this process serves alone."""

    config: Config
    log: Log
    metrics: Metrics
    ticks: Ticks
    timers: Timers
    state: ServerState
    places: Places
    sessions: SessionFactory
    outage: OutageNotices
    router: Router
    auth: Accounts
    announcements: Announcements
    history: Sampled
    caller_log: CallerLog
    handoff: Handoff | None = None
