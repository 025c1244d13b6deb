"""One connection: the thin shell between a socket and whose bytes come over it. It dies with the socket; a ``Call`` survives it.

It decides nothing. Bytes come in through ``data_received``, time through ``on_deadline`` and ``on_keepalive``; what is to be
written leaves in one write per tick. There is no task, queue or timer of its own.

::

    request (Opening) ---> pending (SilentCaller) ---> call (Call)         ``call`` and ``pending`` are None before the upgrade
       |     |-----------> pending (RefusedCaller), closed when it has read why
       '--> ended (a plain HTTP answer)
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, cast

from voiceserver.transport.call import Call
from voiceserver.transport.call_messages import EMPTY_PING
from voiceserver.transport.flow_control import FlowControl
from voiceserver.transport.http import error_response
from voiceserver.transport.services import Services
from voiceserver.transport.time_limits import Activity, next_look_ms, reason_to_end
from voiceserver.transport.upgrade import Opening, PendingCaller, SilentCaller
from voiceserver.transport.websocket import FrameReader

# For the peer's half of a closing handshake, and for the last bytes to leave.
CLOSE_TIMEOUT_MS: Final = 2_000.0


class Connection(asyncio.Protocol):
    """``transport`` None: it is lost. ``close_by_ms``: when it ends at the latest, infinity for open."""

    # An idle connection has this object and a ``SilentCaller``. Times in monotonic ms; 0 is "not so".
    __slots__ = (
        "_flow",
        "_heard_ms",
        "_held_ms",
        "_is_ended",
        "_outbox",
        "_pinged_ms",
        "_reader",
        "call",
        "close_by_ms",
        "pending",
        "services",
        "transport",
    )

    def __init__(self, services: Services, head: bytes = b"") -> None:
        """head: what came before another process handed the connection on."""
        self.services = services
        self.transport: asyncio.Transport | None = None
        self.call: Call | None = None
        self.pending: PendingCaller | None = None
        self.close_by_ms = math.inf
        self._reader: Opening | FrameReader | None = Opening(self, head) if head else None
        self._flow: FlowControl | None = None
        self._outbox: list[bytes] | None = None
        self._is_ended = False  # nothing more is written after what the outbox holds
        self._heard_ms = self._pinged_ms = self._held_ms = 0.0

    # ------------------------------------------------------------------------------------------------ the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        services = self.services
        self.transport = cast("asyncio.Transport", transport)
        services.state.connections[self] = None
        services.state.unopened.add(self, services.state.sessions)
        services.metrics.count_connection(1)
        services.timers.expect_by(services.ticks.clock() + services.config.server.handshake_timeout_ms, self)

    @property
    def data_received(self) -> Connection:
        """What a transport calls with what it has read. uvloop keeps it: a bound method would cost every connection 80 bytes."""
        return self

    def __call__(self, data: bytes) -> None:  # hot
        services = self.services
        services.ticks.now_ms = now_ms = services.ticks.clock()
        try:
            if self._is_ended:
                return
            reader = self._reader
            if not isinstance(reader, FrameReader):
                if self.call is None and self.pending is None:
                    opening = reader if reader is not None else Opening(self)
                    self._reader = opening
                    opening.feed(data, now_ms)
                    return
                reader = self.frames
            if reader.feed(data):
                self._heard_ms = now_ms
            call = self.call
            if call is not None:
                call.move(now_ms)
            elif isinstance(self.pending, SilentCaller) and not reader.has_partial_message:
                self._reader = None  # a ping was answered, or a pong came: most callers wait for long
            if self._held_ms:
                self.flow.read_or_not()
        except Exception as error:
            self.on_fault(error)

    @property
    def frames(self) -> FrameReader:  # hot
        """Of an upgraded connection."""
        reader = self._reader
        if isinstance(reader, FrameReader):
            return reader
        call, pending = self.call, self.pending
        caller = call or pending
        receiver = call.messages if call is not None else pending
        assert caller is not None
        assert receiver is not None
        limit = caller.codec.traits.max_message_bytes or self.services.config.server.max_message_bytes
        self._reader = reader = FrameReader(receiver, self, self.services.ticks, limit)
        return reader

    @property
    def flow(self) -> FlowControl:
        if self._flow is None:
            limit_bytes = self.services.config.server.write_limit_bytes
            self._flow = FlowControl(self, self.services.ticks, limit_bytes)
        return self._flow

    def open(self, caller: Call | PendingCaller, now_ms: float) -> None:
        """The handshake is done: whose messages the connection brings from now on."""
        self._heard_ms = now_ms
        self._reader = None
        if isinstance(caller, Call):
            self.call = caller
        else:
            self.pending = caller
        self.services.state.unopened.discard(self)
        self.services.state.join()

    def make_call(self) -> Call | None:
        """The call, made now if nothing has needed its session yet; None where there can be none."""
        pending = self.pending
        if pending is not None:
            call = pending.begin()
            if call is not None:
                self.call, self.pending = call, None
                if self._reader is not None:
                    self.frames.give_to(call.messages)
        return self.call

    def connection_lost(self, exc: Exception | None) -> None:
        now_ms = self.services.ticks.read_clock()
        self.transport = self._outbox = None
        call, pending = None, self.pending
        try:
            call = self.make_call()
        except Exception as error:
            self.services.log.error("connection fault while closing", exc_info=error)
        is_kept = call is not None and call.is_worth_keeping
        self.leave()
        if call is not None:
            call.lose_connection(now_ms, is_kept=is_kept)
        elif pending is not None:
            pending.leave()
        # The wheels may hold this connection for a while, and what it read is worth nothing.
        self._reader = self._flow = None

    def leave(self) -> None:
        """The connection counts no more, and has no caller. Idempotent."""
        services = self.services
        is_upgraded = self.call is not None or self.pending is not None
        self.call = self.pending = None
        if self in services.state.connections:
            del services.state.connections[self]
            services.state.unopened.discard(self)
            services.metrics.count_connection(-1)
            if is_upgraded:
                services.state.leave()

    def pause_writing(self) -> None:
        self._held_ms = now_ms = self.services.ticks.clock()
        call = self.make_call()
        if call is not None:
            call.session.hold_output(True, now_ms)
        self.services.timers.wake_at(now_ms + self.services.config.server.slow_reader_timeout_ms, self)

    def resume_writing(self) -> None:
        self._held_ms = 0.0
        now_ms, call, reader = self.services.ticks.read_clock(), self.call, self._reader
        if isinstance(reader, FrameReader) and reader.has_partial_message:
            self.flow.wait_for_turn()  # or messages that waited until answers had left
        else:
            self.flow.read_or_not()
        if call is not None:
            call.session.hold_output(False, now_ms)
            call.move(now_ms)

    # -------------------------------------------------------------------------------------------------- bytes out

    def write(self, data: bytes) -> None:  # hot
        if self.transport is None:
            return
        if self._outbox is None:
            self._outbox = [data]
            self.services.ticks.flush_later(self)
        else:
            self._outbox.append(data)

    def flush(self) -> None:  # hot
        outbox, transport = self._outbox, self.transport
        self._outbox = None
        if transport is None:
            return
        if outbox:
            transport.write(outbox[0] if len(outbox) == 1 else b"".join(outbox))
        if self._is_ended and transport.can_write_eof():
            transport.write_eof()
        elif self._is_ended:  # TLS has no half-closed state
            transport.close()

    def end_stream(self) -> None:
        """Say our last, then wait a little for the peer's end: to close on unread bytes would reset the connection, and
        the peer would lose what we said."""
        self._is_ended = True
        self.services.ticks.flush_later(self)
        self.close_by(self.services.ticks.clock() + CLOSE_TIMEOUT_MS)

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        self.frames.close(code, reason)
        self.close_by(self.services.ticks.clock() + CLOSE_TIMEOUT_MS)

    def close_by(self, due_ms: float) -> None:
        """End the connection at ``due_ms`` at the latest."""
        self.close_by_ms = due_ms
        self.services.timers.wake_at(due_ms, self)

    def drain(self, within_ms: float) -> None:
        """The server is going: finish the turn in progress within ``within_ms``, then close with 1012."""
        now_ms, call = self.services.ticks.clock(), self.make_call()
        if call is not None:
            call.session.drain(within_ms, now_ms)
            call.move(now_ms)
        elif self.pending is not None:
            self.close(1012, "draining")

    def abort(self) -> None:
        """Drop the connection with all that is unsent."""
        self._is_ended = True
        if self.transport is not None:
            self.transport.abort()

    def on_fault(self, error: Exception) -> None:
        """A bug was met while serving this connection: it ends, and nobody else notices."""
        call = None
        try:
            call = self.make_call()
        except Exception as second:
            self.services.log.error("connection fault while closing", exc_info=second)
        if call is not None:
            call.on_fault(error)
        else:
            self.services.log.error("connection fault", exc_info=error)
            self.abort()

    # ------------------------------------------------------------------------------------------------------- time

    def on_deadline(self, now_ms: float) -> None:
        call, server = self.call, self.services.config.server
        if self.transport is None:
            return
        if call is not None and not call.session.is_closed and not self.frames.is_closing:
            if self._held_ms and now_ms >= self._held_ms + server.slow_reader_timeout_ms:
                self.services.metrics.count_error("slow_reader")
                call.session.fail("slow_reader", "What was sent was not read in time.", 1008, now_ms)
                # The reason is behind what is unread, for one who reads on within CLOSE_TIMEOUT_MS.
                call.move(now_ms)
        elif now_ms < self.close_by_ms:  # it was put off
            return
        elif self._is_ended or self.frames.is_closing:
            self.abort()
        elif call is not None:
            call.part(now_ms)
        else:
            self.close(1013, "at_capacity")

    @property
    def _activity(self) -> Activity:
        """Of an upgraded connection."""
        caller, flow = self.call or self.pending, self._flow
        assert caller is not None
        # What came while it was not read was not late.
        since_ms = flow.read_since_ms if flow is not None else 0.0
        heard_ms, active_ms = max(self._heard_ms, since_ms), max(caller.active_ms, since_ms)
        return Activity(heard_ms, self._pinged_ms, active_ms, caller.opened_ms)

    def keep(self, now_ms: float) -> None:
        """Look after the caller: pings, and the bounds of its time."""
        services, call = self.services, self.call
        due_ms = next_look_ms(services.config.server, self._activity)
        if call is not None and call.session.key:
            due_ms = min(due_ms, now_ms + services.auth.talk_check_ms(call.session.key))
        services.timers.keep_at(due_ms, self)

    def on_keepalive(self, now_ms: float) -> None:
        call, services = self.call, self.services
        if self.transport is None or self._is_ended or (call is None and self.pending is None):
            return
        if call is not None and call.session.is_closed:
            return
        if self._flow is not None and self._flow.is_held_back:
            self._flow.read_since_ms = now_ms
        activity, server = self._activity, services.config.server
        if self._pinged_ms and activity.heard_ms >= self._pinged_ms:
            self._pinged_ms = 0.0
        end = (call.talk_exhausted() if call is not None else None) or reason_to_end(server, activity, now_ms)
        if end is not None:
            call = self.make_call()
            if call is not None:
                call.session.fail(*end, now_ms)
        elif self._pinged_ms and now_ms >= self._pinged_ms + server.ping_timeout_ms:
            if call is not None and call.is_worth_keeping:
                self.abort()  # perhaps only this connection is gone
            else:
                self.frames.fail(1011, "ping timeout")
        elif not self._pinged_ms and now_ms >= activity.heard_ms + (server.ping_interval_ms or math.inf):
            self._pinged_ms = now_ms
            self.write(call.messages.ping() if call is not None else EMPTY_PING)
        if self.call is not None:
            self.call.move(now_ms)
        self.keep(now_ms)

    def on_unopened(self, now_ms: float) -> None:
        """No complete request came in time, if none came."""
        is_open = self.call is not None or self.pending is not None
        if self.transport is not None and not is_open and not self._is_ended:
            Opening(self).answer(
                error_response(408, "handshake_timeout", "No complete request came in time.")
            )
