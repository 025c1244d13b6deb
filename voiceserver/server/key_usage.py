"""What API keys have used: sessions now, and audio since the day (UTC) began. With several server processes it is their sum.

Each process publishes its own share and reads those of the others (``SharedUsage``). A session is counted before the sum is read:
of two processes that take the last place of a key at once, at least one sees the other. Nobody waits for anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from voiceserver_workers.ipc.ring import make_fence

DAY_S: Final = 86_400.0
# Of audio that the others do not know of.
TELL_EVERY_MS: Final = 1_000.0


class UsedByKey(msgspec.Struct, frozen=True, array_like=True):
    """What one process tells of a key. ``day``: since the epoch; ``talk_ms``: audio of that day."""

    sessions: int
    day: int
    talk_ms: float


class SharedUsage(Protocol):
    """Where the processes of a server tell each other what keys have used."""

    def put_usage(self, usage: Mapping[str, UsedByKey]) -> None: ...

    def usage_of_others(self) -> Sequence[Mapping[str, UsedByKey]]: ...


class _Usage:
    """``sessions``: now. ``talk_ms``: audio of the sessions that ended since the day began. ``open_ms``: audio of each open
    session so far. ``before_ms``: how much of that was sent before the day began. ``open_total_ms``: the sum of the differences.
    ``untold_ms``: what the other processes do not know yet. ``elsewhere_ms``: what they have told."""

    __slots__ = (
        "before_ms",
        "day",
        "elsewhere_ms",
        "open_ms",
        "open_total_ms",
        "sessions",
        "talk_ms",
        "untold_ms",
    )

    def __init__(self) -> None:
        self.sessions = 0
        self.day = 0
        self.talk_ms = self.open_total_ms = self.untold_ms = 0.0
        self.elsewhere_ms: float | None = None
        self.open_ms: dict[str, float] = {}
        self.before_ms: dict[str, float] = {}

    def today_ms(self) -> float:
        return self.talk_ms + self.open_total_ms


class KeyUsage:
    """``wall_s``: seconds since the epoch. ``shared`` None: this process serves alone."""

    def __init__(self, wall_s: Callable[[], float], shared: SharedUsage | None = None) -> None:
        self._wall_s = wall_s
        self._shared = shared
        self._fence = make_fence()
        self._usage: dict[str, _Usage] = {}
        self._is_changed = False
        # The key that a place was taken for, until ``enter``.
        self._reserved = ""

    def _today(self) -> int:
        return int(self._wall_s() // DAY_S)

    def _used(self, name: str) -> _Usage:
        usage = self._usage.setdefault(name, _Usage())
        today = self._today()
        if usage.day != today:
            usage.day, usage.talk_ms, usage.elsewhere_ms = today, 0.0, None
            usage.before_ms = dict(usage.open_ms)
            usage.open_total_ms = 0.0
        return usage

    def try_reserve(self, name: str, most: int) -> bool:
        """Count a session of ``name`` before it is made; False: there are ``most`` already. ``enter`` makes it a session; a
        reservation without one ends with the next call or the next ``publish``."""
        self._release()
        used = self._used(name)
        used.sessions += 1
        self._put()
        self._fence()
        if used.sessions + self._sessions_elsewhere(name) > most:
            used.sessions -= 1
            self._put()
            return False
        self._reserved = name
        return True

    def is_full(self, name: str, most: int) -> bool:
        """Whether ``try_reserve`` would refuse; ``most`` 0: no limit."""
        return 0 < most <= self._used(name).sessions + self._sessions_elsewhere(name)

    def _release(self) -> None:
        name, self._reserved = self._reserved, ""
        if name:
            self._used(name).sessions -= 1
            self._is_changed = True

    def enter(self, name: str) -> None:
        """A session of the key has begun."""
        if self._reserved == name:
            self._reserved = ""
            return
        self._used(name).sessions += 1
        self._put()

    def note(self, name: str, session_id: str, talk_ms: float) -> None:
        """An open session has sent so much audio by now: many at once have one limit together."""
        usage = self._used(name)
        more_ms = talk_ms - usage.open_ms.get(session_id, 0.0)
        usage.open_ms[session_id] = talk_ms
        usage.open_total_ms += more_ms
        usage.untold_ms += more_ms
        self._is_changed = True
        if usage.untold_ms >= TELL_EVERY_MS and self._shared is not None:
            self._put()

    def leave(self, name: str, talk_ms: float, session_id: str = "") -> None:
        """It has ended; ``talk_ms``: the audio that it sent."""
        usage = self._used(name)
        usage.sessions -= 1
        before_ms = usage.before_ms.pop(session_id, 0.0)
        usage.talk_ms += talk_ms - before_ms
        usage.open_total_ms -= usage.open_ms.pop(session_id, 0.0) - before_ms
        self._put()

    def sessions(self, name: str) -> int:
        """Open sessions of the key in this process."""
        return self._used(name).sessions

    def talk_ms(self, name: str) -> float:
        """Audio of today, in all processes, as far as it was noted; that of the others as of a second of audio ago."""
        usage = self._used(name)
        if usage.elsewhere_ms is None:
            usage.elsewhere_ms = self._talk_elsewhere_ms(name)
        return usage.today_ms() + usage.elsewhere_ms

    def publish(self) -> None:
        """Tell the other processes what has changed. Call it about once a second."""
        self._release()
        if self._is_changed:
            self._put()
        for usage in self._usage.values():
            usage.elsewhere_ms = None

    def _put(self) -> None:
        self._is_changed = False
        for usage in self._usage.values():
            usage.untold_ms, usage.elsewhere_ms = 0.0, None
        if self._shared is not None:
            told = {
                name: UsedByKey(one.sessions, one.day, one.today_ms()) for name, one in self._usage.items()
            }
            self._shared.put_usage(told)

    def _elsewhere(self, name: str) -> list[UsedByKey]:
        if self._shared is None:
            return []
        return [usage[name] for usage in self._shared.usage_of_others() if name in usage]

    def _sessions_elsewhere(self, name: str) -> int:
        return sum(one.sessions for one in self._elsewhere(name))

    def _talk_elsewhere_ms(self, name: str) -> float:
        today = self._today()
        return sum(one.talk_ms for one in self._elsewhere(name) if one.day == today)


def usage_that_lasts(kept: Mapping[str, UsedByKey], ended: Mapping[str, UsedByKey]) -> dict[str, UsedByKey]:
    """What is kept of processes that have ended, with one more: the audio of the latest day of each key, and no session."""
    merged = dict(kept)
    for name, one in ended.items():
        before = kept.get(name)
        talk_ms = one.talk_ms
        if before is not None and before.day > one.day:
            continue
        if before is not None and before.day == one.day:
            talk_ms += before.talk_ms
        merged[name] = UsedByKey(0, one.day, talk_ms)
    return merged
