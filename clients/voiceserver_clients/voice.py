"""An async client of the native wire: audio in, typed events out.

::

    async with VoiceClient.connect("ws://127.0.0.1:8765/v1/stream", rate_hz=16_000) as client:
        await client.send_audio(pcm)
        async for event in client.events():
            match event:
                case ReplyAudio(pcm=pcm): speaker.play(pcm)
                case ReplyDone(): break

The rule it keeps: it never sends more than the server asked for. While a ``server.busy`` stands, ``send_audio`` waits once its
``credit_ms`` is used up. With a :class:`Reconnect` policy a lost connection is picked up by the session's resume token: audio
continues from the position that the server has received, messages after the last one received here. Where the session
is gone (another server, too late) a new one begins, and its ``session.ready`` says so.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from voiceserver.errors import VoiceServerError
from voiceserver.events.events import (
    ClientEvent,
    ErrorEvent,
    InputClear,
    InputCommit,
    ReplyAudio,
    ReplyCancel,
    ReplyStarted,
    ServerBusy,
    ServerEvent,
    ServerReady,
    SessionClose,
    SessionReady,
)
from voiceserver_clients.connecting import (
    READY_TIMEOUT_S,
    ConnectFailed,
    ConnectionLost,
    Reconnect,
    Refused,
    not_native,
    open_stream,
    stream_url,
)
from voiceserver_clients.sending import BYTES_PER_SAMPLE, AudioLog, Credit, EventLog

__all__ = ["ConnectFailed", "ConnectionLost", "Reconnect", "Refused", "VoiceClient"]

MAX_MESSAGE_MS: Final = 100  # a longer send is split, so that credit is honoured in small steps
MAX_WAITING_EVENTS: Final = 1024  # then the client stops reading, and the server knows
NORMAL_CLOSE: Final = 1000
TRY_AGAIN_CLOSE: Final = 1013
# Worth another try; any other says that this session is over.
LOST_CODES: Final = (1001, 1005, 1006, 1012, 1013)
PING_TIMEOUT: Final = "ping timeout"
KEPT_EVENTS: Final = 256  # control events that may have to be sent again: more than fit between two sockets
GONE_STATUSES: Final = (404, 410)  # of a session to resume: begin a new one

_decode_event = msgspec.json.Decoder(ServerEvent).decode
_decode_any = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode_event = msgspec.json.Encoder().encode


class VoiceClient:
    """One session. Made by :meth:`connect`; use as an async context manager."""

    def __init__(
        self,
        url: str,
        rate_hz: int,
        *,
        reconnect: Reconnect | None = None,
        headers: dict[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        open_timeout_s: float = 10.0,
    ) -> None:
        self.url = url
        self.rate_hz = rate_hz
        self.ready: SessionReady | None = None
        self.reconnects = 0
        self.lost_ms = 0.0  # audio that the server lacks after resumes and that was no longer kept here
        self._policy = reconnect
        self._headers = headers or {}
        self._tls = tls
        self._open_timeout_s = open_timeout_s
        self._unheard: asyncio.TimerHandle | None = None  # until the first event of the native wire
        self._log = AudioLog(rate_hz, reconnect.keep_ms if reconnect else 0.0)
        self._event_log = EventLog(KEPT_EVENTS if reconnect else 0)
        self._saying = asyncio.Lock()
        self._is_greeted = True  # False from a reconnect to its session.ready, which says where to go on
        self._credit = Credit()
        self._may_send = asyncio.Condition()
        self._sending = asyncio.Lock()
        self._socket: ClientConnection | None = None
        self._events: asyncio.Queue[ServerEvent | VoiceServerError | None] = asyncio.Queue(MAX_WAITING_EVENTS)
        self._ready = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._resuming: asyncio.Task[None] | None = None
        self._ending: VoiceServerError | None = None
        self._failure: ConnectFailed | None = None  # nobody there speaks the native wire
        self._has_ended = False
        self._is_leaving = False
        self._is_finishing = False
        self._reply_turn = 0
        self._session = 0  # counts sessions: a new one begins where the old one cannot be picked up
        self._received = 0  # messages of this session, but for session.ready
        self._last_error: ErrorEvent | None = None
        self._retry_after_ms = 0.0

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        rate_hz: int = 16_000,
        reconnect: Reconnect | None = None,
        headers: dict[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        open_timeout_s: float = 10.0,
    ) -> Self:
        """A client for ``async with``. Entering raises Refused (503, with its retry time) or ConnectFailed. A server that lets
        us in and then says nothing of the native wire for 5 s ends the session with ConnectFailed."""
        return cls(url, rate_hz, reconnect=reconnect, headers=headers, tls=tls, open_timeout_s=open_timeout_s)

    async def __aenter__(self) -> Self:
        self._socket = await self._open()
        loop = asyncio.get_running_loop()
        self._unheard = loop.call_later(READY_TIMEOUT_S, self._give_up, self._socket)
        self._reader = asyncio.create_task(self._read_until_end(), name="voice-client")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_leaving = True
        self._cancel_give_up()
        tasks = [task for task in (self._reader, self._resuming) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            await self._socket.close()

    # ------------------------------------------------------------------------------------------------ to the server

    async def send_audio(self, pcm: bytes) -> None:
        """PCM16 little-endian mono at ``rate_hz``. Waits while the server's credit is used up, or while reconnecting.

        Raises ConnectionLost once the session has ended, ValueError for half a sample.
        """
        step = self.rate_hz * MAX_MESSAGE_MS // 1000 * BYTES_PER_SAMPLE
        for start in range(0, len(pcm), step):
            self._log.append(pcm[start : start + step])
        async with self._sending:
            await self._send_log()

    async def send(self, event: ClientEvent) -> None:
        """What refers to the audio before it keeps its place behind that audio. Raises ConnectionLost once the session
        has ended."""
        self._is_finishing = self._is_finishing or isinstance(event, SessionClose)
        has_place = isinstance(event, InputCommit | InputClear | SessionClose)
        position = self._log.end if has_place else self._log.cursor
        number = self._event_log.append(_encode_event(event).decode(), position)
        session = self._session
        if not has_place:
            await self._say_due()
        while self._session == session and self._event_log.sent <= number:
            async with self._sending:
                await self._send_log()

    async def _say_due(self) -> None:
        """Send the control events whose place in the audio has come, in their order, as soon as there is a connection."""
        async with self._saying:
            socket = await self._connected()
            while self._socket is socket and (message := self._event_log.peek(self._log.cursor)) is not None:
                try:
                    await socket.send(message)
                except ConnectionClosed:
                    await self._wait_for_other(socket)
                    return
                if self._socket is socket:  # else a resume has moved the cursor meanwhile
                    self._event_log.advance()

    async def commit(self) -> None:
        """End the utterance by hand."""
        await self.send(InputCommit())

    async def cancel_reply(self) -> None:
        await self.send(ReplyCancel())

    async def finish(self) -> None:
        """Ask the server to finish the turn in progress and close; ``events`` then ends by itself."""
        await self.send(SessionClose())

    # ---------------------------------------------------------------------------------------------- from the server

    async def wait_ready(self) -> SessionReady:
        """The session's own data. Raises what ended the session if that came first."""
        await self._ready.wait()
        if self.ready is None:
            raise self._ending or ConnectionLost(NORMAL_CLOSE, "closed before it was ready")
        return self.ready

    async def events(self) -> AsyncIterator[ServerEvent]:
        """Everything the server says, audio as ReplyAudio. Ends with the session; raises ConnectionLost, Refused or
        ConnectFailed."""
        while not (self._has_ended and self._events.empty()):
            event = await self._events.get()
            if event is None:
                return
            if isinstance(event, VoiceServerError):
                raise event
            yield event
        if self._ending is not None:
            raise self._ending

    @property
    def credit_ms(self) -> float:
        """Audio that may leave now."""
        return self._credit.left_ms(self._now_ms())

    @property
    def sent_ms(self) -> float:
        """Audio of this session that has left."""
        return self._log.sent_ms

    # ------------------------------------------------------------------------------------------------------ inside

    async def _send_chunk(self, chunk: bytes) -> None:
        duration_ms = len(chunk) / BYTES_PER_SAMPLE * 1000 / self.rate_hz
        async with self._may_send:
            while not self._has_ended and (wait_ms := self._wait_ms(duration_ms)) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._may_send.wait(), None if wait_ms == math.inf else wait_ms / 1000
                    )
        if self._has_ended or (socket := self._socket) is None:
            raise self._ending or ConnectionLost(NORMAL_CLOSE, "the session is closed")
        if self._log.peek() is not chunk:
            return  # a resume moved the cursor while this waited
        self._credit.take(duration_ms, self._now_ms())
        self._log.advance()
        try:
            await socket.send(chunk)
        except ConnectionClosed:
            await self._wait_for_other(socket)

    def _wait_ms(self, duration_ms: float) -> float:
        return math.inf if self._socket is None else self._credit.wait_ms(duration_ms, self._now_ms())

    @staticmethod
    def _now_ms() -> float:
        return asyncio.get_running_loop().time() * 1000

    async def _connected(self) -> ClientConnection:
        async with self._may_send:
            await self._may_send.wait_for(
                lambda: self._has_ended or (self._socket is not None and self._is_greeted)
            )
        if self._has_ended or self._socket is None:
            raise self._ending or ConnectionLost(NORMAL_CLOSE, "the session is closed")
        return self._socket

    async def _wait_for_other(self, socket: ClientConnection) -> None:
        async with self._may_send:
            await self._may_send.wait_for(lambda: self._has_ended or self._socket not in (socket, None))

    async def _open(self, resume_token: str = "") -> ClientConnection:
        url = stream_url(self.url, self.rate_hz, resume_token, self._received)
        return await open_stream(url, self._headers, self._tls, self._open_timeout_s)

    async def _read_until_end(self) -> None:
        ending: VoiceServerError | None = None
        try:
            while (socket := self._socket) is not None:
                try:
                    async for message in socket:
                        await self._receive(message)
                except ConnectionClosed:
                    pass  # the close code is read below
                await socket.wait_closed()  # before websockets 14 the code comes a little later
                ending = self._ending_of(socket)
                if ending is None or self._policy is None or self._is_leaving or not _is_worth_a_try(ending):
                    break
                ending = await self._reconnect(self._policy, ending)
                if ending is not None:
                    break
        finally:
            await self._end(ending)

    def _give_up(self, socket: ClientConnection) -> None:
        if self._socket is socket:
            self._failure = not_native(self.url, READY_TIMEOUT_S)
            socket.transport.abort()

    def _cancel_give_up(self) -> None:
        if self._unheard is not None:
            self._unheard.cancel()
            self._unheard = None

    async def _end(self, ending: VoiceServerError | None) -> None:
        self._ending = ending
        self._has_ended = True
        self._cancel_give_up()
        self._ready.set()
        if not self._events.full():
            self._events.put_nowait(ending)  # wakes a waiting reader; otherwise it sees _has_ended
        async with self._may_send:
            self._may_send.notify_all()

    def _ending_of(self, socket: ClientConnection) -> VoiceServerError | None:
        if self._failure is not None:
            return self._failure
        code = socket.protocol.close_code if socket.protocol.close_code is not None else 1006
        if code == NORMAL_CLOSE:
            return None
        if code == TRY_AGAIN_CLOSE:
            reason = (
                self._last_error.message
                if self._last_error
                else (socket.protocol.close_reason or "server overloaded")
            )
            return Refused(reason, self._retry_after_ms)
        reason = socket.protocol.close_reason or ""
        if code not in LOST_CODES and self._last_error is not None:
            reason = f"{reason}: {self._last_error.message}" if reason else self._last_error.message
        return ConnectionLost(code, reason)

    async def _receive(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self._received += 1
            await self._events.put(ReplyAudio(self._reply_turn, message))
            return
        self._received += 1
        try:
            event = _decode_event(message)
        except msgspec.ValidationError:
            if "type" in _decode_any(message):
                return  # an event of a newer server
            raise
        if self._unheard is not None:
            self._cancel_give_up()
        match event:
            case ReplyStarted(turn=turn):
                self._reply_turn = turn
            case ServerBusy(credit_ms=credit_ms, retry_after_ms=retry_after_ms):
                self._retry_after_ms = retry_after_ms
                self._credit.receive_busy(credit_ms, self._now_ms())
                await self._wake_senders()
            case ServerReady(credit_ms=credit_ms):
                self._credit.receive_ready(credit_ms, self._now_ms())
                await self._wake_senders()
            case SessionReady():
                self._received = self._received - 1 if event.is_resumed else 0
                await self._begin(event)
            case ErrorEvent():
                self._last_error = event
                self._retry_after_ms = event.retry_after_ms or self._retry_after_ms
        await self._events.put(event)

    async def _begin(self, ready: SessionReady) -> None:
        if self.ready is not None:  # a second one: after a reconnect
            if ready.is_resumed:
                self.lost_ms += self._log.rewind(ready.received_ms)
                if ready.received_events is not None:
                    self._event_log.rewind(ready.received_events)
            else:
                self.lost_ms += self._log.sent_ms
                self._event_log.restart(self._log.cursor)
                self._log.restart()
                self._session += 1
            does_count = ready.is_resumed and ready.received_events is not None
            if self._is_finishing and not does_count and self._event_log.peek(self._log.end) is None:
                self._event_log.append(_encode_event(SessionClose()).decode(), self._log.end)
            if self._resuming is not None:
                self._resuming.cancel()
            self._resuming = asyncio.create_task(self._resume_sending(), name="voice-client-resume")
        self.ready = ready
        self._is_greeted = True
        self._credit.receive_ready(ready.credit_ms, self._now_ms())
        self._ready.set()
        await self._wake_senders()

    async def _resume_sending(self) -> None:
        with suppress(VoiceServerError):  # another loss: the next session.ready starts this again
            async with self._sending:
                await self._send_log()

    async def _send_log(self) -> None:
        """The audio, and between its chunks the events that have their place there."""
        while True:
            if self._event_log.peek(self._log.cursor) is not None:
                await self._say_due()
            elif (chunk := self._log.peek()) is not None:
                await self._send_chunk(chunk)
            else:
                return

    async def _wake_senders(self) -> None:
        async with self._may_send:
            self._may_send.notify_all()

    async def _reconnect(self, policy: Reconnect, lost: VoiceServerError) -> VoiceServerError | None:
        """None when connected again, else what to tell the caller."""
        self._socket = None
        self._is_greeted = False
        self._credit.receive_busy(
            0.0, self._now_ms()
        )  # audio waits until the new session.ready says where to go on
        token = self.ready.resume_token if self.ready is not None else ""
        retry_after_ms = lost.retry_after_ms if isinstance(lost, Refused) else 0.0
        for attempt in range(policy.attempts):
            await asyncio.sleep(policy.delay_ms(attempt, retry_after_ms) / 1000)
            try:
                socket = await self._open(token)
            except Refused as refusal:
                lost, retry_after_ms = refusal, refusal.retry_after_ms
            except ConnectFailed as failure:
                if token and failure.status in GONE_STATUSES:
                    token = ""
                elif 400 <= failure.status < 500:
                    return failure  # asking again will not help
                lost, retry_after_ms = failure, 0.0
            else:
                self.reconnects += 1
                self._socket = socket
                return None
        return lost


def _is_worth_a_try(ending: VoiceServerError) -> bool:
    """Whether the session may go on over another connection: not when the server has ended it for a reason."""
    if isinstance(ending, ConnectionLost):
        return ending.code in LOST_CODES or ending.reason == PING_TIMEOUT
    return not isinstance(ending, ConnectFailed)
