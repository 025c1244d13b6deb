"""Three kinds of callers for a load: those that talk, those that only listen in, and those that hold the line.

Every latency counts from when something was *scheduled*, never from when it was really sent: a server (or a generator) that
falls behind cannot hide it (no coordinated omission). ``Schedule`` drives all callers of a process from one timer.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from voiceserver.events.events import ServerBusy, SessionClosing, SpeechStopped
from voiceserver_clients.histogram import Histogram
from voiceserver_clients.raw import BINARY, PING, TEXT, RawConnection, build_frame, build_request
from voiceserver_clients.recording import BYTES_PER_SAMPLE, Recording

TICK_MS: Final = 2.0
TALKER_CHUNK_MS: Final = 20
LISTENER_CHUNK_MS: Final = 100
GAP_MS: Final = 4_000  # silence after a recording: the endpointing wait, and the time to hear an answer
SILENCE_MS: Final = 500
SILENT_AFTER_MS: Final = (
    1_000.0  # whoever waits for an answer and hears nothing for longer is met with silence
)
VAD_WINDOW_MS: Final = 32  # the end of a turn is decided at the end of such a window

LATENCIES: Final = ("handshake", "ping", "turn_end", "final", "first_audio", "lateness")
COUNTS: Final = (
    "connected", "refused", "failed", "lost", "closed", "chunks", "held_chunks", "turns", "finals", "replies", "interrupted",
    "busy", "ready", "errors", "reply_bytes", "sent_ms", "received_ms", "consumed_ms", "dropped_ms", "discarded_ms",
    "pings", "pongs", "present", "worker_lost", "silence_ms", "greeted",
)  # fmt: skip


class Tally:
    """What happened: counts by name and latencies in ms by name; reasons: why callers failed, with how many did. Tallies of
    several processes add up."""

    __slots__ = ("counts", "latencies", "reasons")

    def __init__(self) -> None:
        self.counts: dict[str, float] = dict.fromkeys(COUNTS, 0)
        self.reasons: dict[str, int] = {}
        self.latencies = {name: Histogram() for name in LATENCIES}

    def count(self, name: str, amount: float = 1) -> None:
        self.counts[name] += amount

    def count_failed(self, reason: str, amount: int = 1) -> None:
        self.counts["failed"] += amount
        self.reasons[reason] = self.reasons.get(reason, 0) + amount

    def add(self, other: Tally) -> None:
        for reason, times in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + times
        for name, amount in other.counts.items():
            self.counts[name] += amount
        for name, histogram in other.latencies.items():
            self.latencies[name].add(histogram)


class Script(msgspec.Struct, frozen=True):
    """A loop of prebuilt frames of ``chunk_ms`` audio each: recordings with silence after each one. Shared by all callers."""

    frames: tuple[bytes, ...]
    chunk_ms: int

    @classmethod
    def build(cls, recordings: Sequence[Recording], chunk_ms: int, gap_ms: int = GAP_MS) -> Script:
        """Raises ValueError for no recordings."""
        if not recordings:
            raise ValueError("a script needs a recording")
        rate_hz = recordings[0].rate_hz
        size = rate_hz * chunk_ms // 1000 * BYTES_PER_SAMPLE
        silence = build_frame(BINARY, bytes(size))
        frames: list[bytes] = []
        for recording in recordings:
            for start in range(0, len(recording.pcm), size):
                frames.append(build_frame(BINARY, recording.pcm[start : start + size].ljust(size, b"\0")))
            frames += [silence] * (gap_ms // chunk_ms)
        return cls(tuple(frames), chunk_ms)


class Stepper(Protocol):
    def step(self, due_ms: float) -> None: ...


class Schedule:
    """Steps its members at fixed periods on an absolute clock, each at its own phase. A late tick is made up, not skipped."""

    def __init__(self, now_ms: Callable[[], float], lateness: Histogram) -> None:
        self._now_ms = now_ms
        self._lateness = lateness
        self._cycles: dict[int, list[list[Stepper]]] = {}
        self._joined: dict[int, int] = {}
        self._slots: dict[tuple[int, int], list[Stepper]] = {}  # where a member of a period stands
        self._start_ms = 0.0
        self._tick = 0

    def join(self, member: Stepper, period_ms: int) -> None:
        """Members of one period get evenly spread phases."""
        slots = max(1, int(period_ms / TICK_MS))
        cycle = self._cycles.get(slots)
        if cycle is None:
            cycle = self._cycles[slots] = [[] for _ in range(slots)]
        index = self._joined[slots] = self._joined.get(slots, -1) + 1
        # A golden-ratio walk spreads any number of members evenly over the slots.
        slot = cycle[int(index * 0.618033988749895 % 1.0 * slots)]
        slot.append(member)
        self._slots[id(member), slots] = slot

    def leave(self, member: Stepper, period_ms: int) -> None:
        slot = self._slots.pop((id(member), max(1, int(period_ms / TICK_MS))), None)
        if slot is not None:
            slot.remove(member)

    async def run(self) -> None:
        """Until cancelled."""
        self._start_ms = self._now_ms()
        while True:
            due_ms = self._start_ms + (self._tick + 1) * TICK_MS
            await asyncio.sleep(max(0.0, due_ms - self._now_ms()) / 1000)
            self.advance(self._now_ms())

    def advance(self, now_ms: float) -> None:  # hot
        """Step all that is due by ``now_ms``, in order."""
        due_tick = int((now_ms - self._start_ms) / TICK_MS)
        while self._tick < due_tick:
            self._tick += 1
            due_ms = self._start_ms + self._tick * TICK_MS
            self._lateness.record(now_ms - due_ms)
            for slots, cycle in self._cycles.items():
                for member in tuple(cycle[self._tick % slots]):
                    member.step(due_ms)


_MASK: Final = os.urandom(4)  # one for all pings of this process: nobody is to be protected from them
_PRESENT: Final = b"present"
_ROLL_CALL: Final = build_frame(PING, _PRESENT)
# The first words of the native wire, to those who are in and to those who wait for a place.
_GREETINGS: Final = (b'{"type":"session.ready"', b'{"type":"server.busy"')


class Caller(RawConnection):
    """What all callers share: they are counted when they come, are refused, and go."""

    __slots__ = ("_asked_ms", "_is_answered", "_is_greeted", "_now_ms", "_tally", "_when_settled")

    def __init__(
        self, host: str, target: str, tally: Tally, now_ms: Callable[[], float], asked_ms: float
    ) -> None:
        super().__init__(build_request(host, target))
        self._tally = tally
        self._now_ms = now_ms
        self._asked_ms = asked_ms
        self._is_answered = False
        self._is_greeted = False

    def on_open(self) -> None:
        self._is_answered = True
        self._tally.count("connected")
        self._tally.latencies["handshake"].record(self._now_ms() - self._asked_ms)

    def on_refused(self, status: int, retry_after_ms: float) -> None:
        self._is_answered = True
        if status in (429, 503):
            self._tally.count("refused")
        else:
            self._tally.count_failed(f"HTTP {status}" if status else "the answer is not HTTP")

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.fail_unanswered("closed before the handshake was answered")

    def fail_unanswered(self, reason: str) -> None:
        """Count this caller as failed if the server has not answered its handshake."""
        if not self._is_answered:
            self._is_answered = True
            self._tally.count_failed(reason)

    def on_text(self, payload: bytes) -> None:
        if not self._is_greeted and payload.startswith(_GREETINGS):
            self._is_greeted = True
            self._tally.count("greeted")

    def on_lost(self, code: int) -> None:
        self._tally.count("closed" if code == 1000 else "lost")

    def step(self, due_ms: float) -> None:
        raise AssertionError("a kind of caller defines its step")

    def ping(self, due_ms: float) -> None:
        """A WebSocket ping that carries the time at which it was due."""
        if self.is_open:
            self._tally.counts["pings"] += 1
            self.send(build_frame(PING, repr(due_ms).encode(), _MASK))

    def call_roll(self) -> None:
        """Ask for one sign of life, to be counted as ``present``; how long it takes is not counted."""
        if self.is_open:
            self.send(_ROLL_CALL)

    def on_pong(self, payload: bytes) -> None:
        if payload == _PRESENT:
            self._tally.counts["present"] += 1
            return
        self._tally.counts["pongs"] += 1
        self._tally.latencies["ping"].record(self._now_ms() - float(payload))

    def leave(self) -> None:
        """Say goodbye; the server closes after its turn."""
        self.send(build_frame(TEXT, b'{"type":"session.close"}'))


class Idle(Caller):
    """Holds the line and pings now and then."""

    __slots__ = ()

    def step(self, due_ms: float) -> None:
        self.ping(due_ms)


class Speaker(Caller):
    """Sends a script in real time, as far as the server's credit goes, and times what comes back."""

    __slots__ = ("_at", "_credit_ms", "_decided_due_ms", "_held", "_script", "_start_ms", "is_leaving")

    greeting: bytes = b""

    def __init__(
        self,
        host: str,
        target: str,
        tally: Tally,
        now_ms: Callable[[], float],
        asked_ms: float,
        script: Script,
        first: int,
    ) -> None:
        super().__init__(host, target, tally, now_ms, asked_ms)
        self._script = script
        self._at = first % len(script.frames)
        self._start_ms = math.nan
        self._credit_ms = math.inf
        self._held = 0
        self._decided_due_ms = math.nan
        self.is_leaving = False

    def on_open(self) -> None:
        super().on_open()
        if self.greeting:
            self.send(build_frame(TEXT, self.greeting))

    def step(self, due_ms: float) -> None:  # hot
        if not self.is_open or self.is_leaving:
            return
        chunk_ms = self._script.chunk_ms
        if math.isnan(self._start_ms):
            self._start_ms = due_ms - chunk_ms
        self._held += 1
        while self._held and self._credit_ms >= chunk_ms:
            self.send(self._script.frames[self._at])
            self._at = (self._at + 1) % len(self._script.frames)
            self._held -= 1
            self._credit_ms -= chunk_ms
            self._tally.counts["chunks"] += 1
            self._tally.counts["sent_ms"] += chunk_ms
        if self._held:
            self._tally.counts["held_chunks"] += 1

    def leave(self) -> None:
        self.is_leaving = True
        super().leave()

    def on_text(self, payload: bytes) -> None:  # hot
        if not self._is_greeted:
            super().on_text(payload)
        kind = payload[9 : payload.index(b'"', 9)]
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, payload)

    def on_binary(self, size: int) -> None:  # hot
        self._tally.counts["reply_bytes"] += size
        if not math.isnan(self._decided_due_ms):
            self._tally.latencies["first_audio"].record(self._now_ms() - self._decided_due_ms)
            self._decided_due_ms = math.nan

    def _on_stopped(self, payload: bytes) -> None:
        event = _decode_stopped(payload)
        self._tally.count("turns")
        if event.reason == "close":
            self._decided_due_ms = math.nan  # decided by our goodbye, not by the audio
            return
        waited_ms = math.ceil(SILENCE_MS / VAD_WINDOW_MS) * VAD_WINDOW_MS if event.reason == "silence" else 0
        chunks = math.ceil((event.at_ms + waited_ms) / self._script.chunk_ms)
        # When the chunk was due that held the decisive sample.
        self._decided_due_ms = self._start_ms + chunks * self._script.chunk_ms
        self._tally.latencies["turn_end"].record(self._now_ms() - self._decided_due_ms)

    def _on_final(self, payload: bytes) -> None:
        self._tally.count("finals")
        if not math.isnan(self._decided_due_ms):
            self._tally.latencies["final"].record(self._now_ms() - self._decided_due_ms)

    def _on_done(self, payload: bytes) -> None:
        self._tally.count("interrupted" if b'"interrupted"' in payload else "replies")

    def _on_busy(self, payload: bytes) -> None:
        event = _decode_busy(payload)
        self._tally.count("busy")
        if event.reason.startswith("worker_"):
            self._tally.count("worker_lost")
        self._credit_ms = event.credit_ms

    def _on_ready(self, payload: bytes) -> None:
        self._tally.count("ready")
        self._credit_ms = math.inf

    def _on_error(self, payload: bytes) -> None:
        self._tally.count("errors")

    def _on_closing(self, payload: bytes) -> None:
        sums = _decode_closing(payload).accounting
        self._tally.count("received_ms", sums.received_ms)
        self._tally.count("consumed_ms", sums.consumed_ms)
        self._tally.count("dropped_ms", sums.dropped_ms)
        self._tally.count("discarded_ms", sums.discarded_ms)


class Talker(Speaker):
    """Holds conversations: 20 ms chunks, waits for answers. Counts the time in which it waits and nothing is said to it."""

    __slots__ = ("_heard_ms", "_waits_from_ms")

    def on_open(self) -> None:
        super().on_open()
        self._heard_ms = self._now_ms()
        self._waits_from_ms = math.inf  # since when an answer is owed

    def on_text(self, payload: bytes) -> None:  # hot
        super().on_text(payload)
        self._hear()

    def on_binary(self, size: int) -> None:  # hot
        super().on_binary(size)
        self._hear()

    def _hear(self) -> None:  # hot
        now_ms = self._now_ms()
        silent_ms = now_ms - max(self._heard_ms, self._waits_from_ms)
        if silent_ms > SILENT_AFTER_MS:
            self._tally.counts["silence_ms"] += silent_ms - SILENT_AFTER_MS
        self._heard_ms = now_ms

    def _on_stopped(self, payload: bytes) -> None:
        super()._on_stopped(payload)
        if not math.isnan(self._decided_due_ms):
            self._waits_from_ms = self._decided_due_ms

    def _on_done(self, payload: bytes) -> None:
        self._hear()
        super()._on_done(payload)
        self._waits_from_ms = math.inf


class Listener(Speaker):
    """Is listened to and not answered: 100 ms chunks, speech boundaries only."""

    __slots__ = ()

    greeting = b'{"type":"session.update","replies":false,"transcribes":false}'


_decode_stopped = msgspec.json.Decoder(SpeechStopped).decode
_decode_busy = msgspec.json.Decoder(ServerBusy).decode
_decode_closing = msgspec.json.Decoder(SessionClosing).decode

_HANDLERS: Final[dict[bytes, Callable[[Speaker, bytes], None]]] = {
    b"speech.stopped": lambda caller, payload: caller._on_stopped(payload),
    b"transcript.final": Speaker._on_final,
    b"reply.done": lambda caller, payload: caller._on_done(payload),
    b"server.busy": Speaker._on_busy,
    b"server.ready": Speaker._on_ready,
    b"error": Speaker._on_error,
    b"session.closing": Speaker._on_closing,
}
