"""A connection's frames, sans I/O: the short path, and the strict parser of everything else.

Complete, unfragmented, masked text, binary, ping and pong frames are read here. Whatever else arrives (fragments, close
frames, reserved bits, bad opcodes, unmasked or oversized frames) goes to ``websockets``' own ``ServerProtocol``, made when
the first such byte arrives and dropped at the next message boundary. ``tests/laws/test_frames_differential.py`` holds the
two against each other: what a caller gets may not depend on which of them read a frame.

Bounds: a message by ``max_message_bytes``, its fragments by ``MAX_FRAGMENTS``, the frames handled in one go by
``FRAMES_PER_TURN``, so that a flood of tiny messages takes turns with everybody else; a long text counts as many.
"""

from __future__ import annotations

import logging
import struct
from typing import Final, Protocol

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from voiceserver.wire.frames import BINARY, INCOMPLETE, LENGTH_16, PING, PONG, TEXT, build_head, find_payload

try:
    from websockets.speedups import apply_mask
except ImportError:  # a build of websockets without its C extension
    from websockets.utils import apply_mask

FRAMES_PER_TURN: Final = 256
# A text message of this many bytes more counts as one more frame: JSON costs by the byte.
TEXT_BYTES_PER_FRAME: Final = 4_096
# Whoever has had this much of a turn by text gives the rest of it away, also where nothing more has come so far.
_MUCH_TEXT: Final = 16
# Binary frames of one read are handed over together, up to this size: half a second of audio at 16 kHz.
RUN_BYTES: Final = 16_384
MAX_FRAGMENTS: Final = 4_096
_STRICT_SLICE_BYTES: Final = 4_096

_AUDIO_FRAME: Final = BINARY << 8 | LENGTH_16
_AUDIO_HEAD_BYTES: Final = 8
_read_audio_head: Final = struct.Struct(">HH4s").unpack_from

# The strict parser reports every connection at info level; its only news for us is a fault of its own.
_strict_parser_log: Final = logging.getLogger("voiceserver.websockets")
_strict_parser_log.setLevel(logging.ERROR)


# The attribute with the size of a message that is not whole; renamed in version 16.
_PARTIAL: Final = "current_size" if hasattr(ServerProtocol(), "current_size") else "cur_size"


class StrictParser(ServerProtocol):
    """``ServerProtocol`` from an open connection on, which also puts fragments together and checks text for UTF-8.

    It reads no further than to the end of a message until told to: whoever hears it may close, and then all that follows is
    discarded.
    """

    def __init__(self, max_message_bytes: int) -> None:
        super().__init__(state=State.OPEN, max_size=max_message_bytes, logger=_strict_parser_log)
        self.message: tuple[int, bytes] | None = None  # (TEXT, BINARY or PONG, payload)
        self._unread = bytearray()  # what came after the message
        self.is_own_close = False
        self._is_at_boundary = False  # no byte came after the last whole frame
        self._head = 0
        self._parts = bytearray()
        self._fragments = 0

    @property
    def is_between_messages(self) -> bool:
        return self._is_at_boundary and self.state is State.OPEN and getattr(self, _PARTIAL) is None

    def receive_data(self, data: bytes | bytearray) -> None:
        self._is_at_boundary = False
        super().receive_data(data)

    def recv_frame(self, frame: Frame) -> None:
        # An exception from here is one from the parser: it fails the connection with the right code.
        is_open = self.state is State.OPEN
        self._is_at_boundary = not self.reader.buffer
        super().recv_frame(frame)
        if not is_open:
            return
        if frame.opcode is Opcode.PONG:
            self._stop_at((PONG, bytes(frame.data)))
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self._receive_fragment(frame)

    def _receive_fragment(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.CONT:
            self._head = TEXT if frame.opcode is Opcode.TEXT else BINARY
        self._parts += frame.data
        self._fragments += 1
        if frame.fin:
            payload = bytes(self._parts)
            self._parts.clear()
            self._fragments = 0
            if self._head == TEXT:
                payload.decode()
            self._stop_at((self._head, payload))
        elif self._fragments >= MAX_FRAGMENTS:
            self.fail(CloseCode.MESSAGE_TOO_BIG, f"more than {MAX_FRAGMENTS} fragments")

    def _stop_at(self, message: tuple[int, bytes]) -> None:
        self.message = message
        if self.reader.buffer:
            self._unread, self.reader.buffer = self.reader.buffer, self._unread

    def go_on(self) -> None:
        """Read what came after the message that was taken, to the end of the next one."""
        if self._unread:
            self._unread, self.reader.buffer = self.reader.buffer, self._unread
            next(self.parser)


class ReceiveBuffer(bytearray):
    """Bytes that are not yet a frame, or wait for their connection's turn. ``needed``: how long it must be to be worth a look."""

    __slots__ = ("needed",)

    def __init__(self, data: bytes | bytearray = b"") -> None:
        super().__init__(data)
        self.needed = 0


class FrameReceiver(Protocol):
    """Who gets the messages of a connection."""

    def receive_binary(self, payload: bytes) -> None: ...

    def receive_run(self, payloads: list[bytes]) -> bool:
        """Binary messages that came together. False: none was taken, give them one at a time."""

    def receive_text(self, payload: bytes) -> None:
        """``payload`` is valid UTF-8."""

    def receive_pong(self, payload: bytes) -> None: ...

    def receive_close(self, code: int, reason: str) -> None:
        """The peer closes; the answer is written next."""

    def receive_violation(self, code: int, reason: str) -> None:
        """The peer broke the standard. The close frame is written next: the moment for a last word."""


class TurnTaker(Protocol):
    def wait_for_turn(self) -> None:
        """Enough for now. Stop reading, and call ``feed(b"")`` later to go on."""


class FrameSink(Protocol):
    """Where a connection's bytes go."""

    @property
    def flow(self) -> TurnTaker: ...

    def write(self, data: bytes) -> None: ...

    def end_stream(self) -> None:
        """Nothing more will be written, and nothing more is read: close the socket when what was written has left."""


class TurnClock(Protocol):
    def is_turn_long(self) -> bool:
        """Whether the callback that runs now has lasted long: an answer may cost far more than its question."""


class FrameReader:
    """One connection's frames: bytes in by ``feed``, messages out to ``receiver``, bytes out to ``sink``.

    The receiver may be another one from the next message on (``give_to``).
    """

    __slots__ = ("_clock", "_max_message_bytes", "_receive_buffer", "_receiver", "_sink", "_strict_parser")

    def __init__(
        self, receiver: FrameReceiver, sink: FrameSink, clock: TurnClock, max_message_bytes: int
    ) -> None:
        self._receiver = receiver
        self._sink = sink
        self._clock = clock
        self._max_message_bytes = max_message_bytes
        self._receive_buffer: ReceiveBuffer | None = None
        self._strict_parser: StrictParser | None = None

    # --------------------------------------------------------------------------------------------------------- in

    @property
    def is_closing(self) -> bool:
        return self._strict_parser is not None and self._strict_parser.state is not State.OPEN

    @property
    def has_peer_closed(self) -> bool:
        """The peer has sent its close frame."""
        return self._strict_parser is not None and self._strict_parser.close_rcvd is not None

    @property
    def has_partial_message(self) -> bool:
        return self._receive_buffer is not None or self._strict_parser is not None

    def give_to(self, receiver: FrameReceiver) -> None:
        self._receiver = receiver

    def feed(self, data: bytes | bytearray) -> int:  # hot
        """Read what arrived; the number of frames that were complete. Never raises for what a peer sent."""
        receive_buffer = self._receive_buffer
        if receive_buffer is not None:
            receive_buffer += data
            if len(receive_buffer) < receive_buffer.needed:
                return 0
            self._receive_buffer = None
            data = receive_buffer
        at = frames = 0
        size, limit, budget = len(data), self._max_message_bytes, FRAMES_PER_TURN
        while at < size:
            if frames >= budget:
                self._stash(data, at, 0)
                self._sink.flow.wait_for_turn()
                break
            if self._strict_parser is None:
                # What find_payload would say of the frames that come all the time: chunks of audio.
                run: list[bytes] = []
                run_end = min(size, at + RUN_BYTES)
                while at + _AUDIO_HEAD_BYTES <= run_end and frames < budget:
                    head, length, mask = _read_audio_head(data, at)
                    end = at + _AUDIO_HEAD_BYTES + length
                    if head != _AUDIO_FRAME or end > size or length > limit:
                        break
                    run.append(apply_mask(data[at + _AUDIO_HEAD_BYTES : end], mask))
                    at = end
                    frames += 1
                if run:
                    if not self._receiver.receive_run(run):
                        self._receive_each(run)
                    continue
            read = self._read_any(data, at)
            if read is None:
                break
            at, came, text_bytes = read
            frames += came
            if text_bytes:
                budget = self._charge(budget, text_bytes, is_last=at >= size)
        return frames

    def _receive_each(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            if self.is_closing:  # by one of them: what follows is discarded
                return
            self._receiver.receive_binary(payload)

    def _read_any(self, data: bytes | bytearray, at: int) -> tuple[int, int, int] | None:
        """Read a frame, or a slice for the strict parser: where the next begins, how many frames were complete, and how many
        bytes of text they had. None: the rest is not yet a frame, and was put aside."""
        if self._strict_parser is None:
            start, end = find_payload(data, at, self._max_message_bytes)
            if start >= 0:
                payload = apply_mask(data[start:end], data[start - 4 : start])
                if data[at] == BINARY:
                    self._receiver.receive_binary(payload)
                    return end, 1, 0
                self._receive_other(data[at], payload)
                return end, 1, len(payload) if data[at] == TEXT else 0
            if start == INCOMPLETE:
                self._stash(data, at, end - at)
                return None
            self._strict_parser = StrictParser(self._max_message_bytes)
        came, text_bytes = self._ask_strict_parser(data[at : at + _STRICT_SLICE_BYTES])
        return at + _STRICT_SLICE_BYTES, came, text_bytes

    def _charge(self, budget: int, text_bytes: int, *, is_last: bool) -> int:
        """What a turn's budget of frames is after text of so many bytes. is_last: nothing more has come so far."""
        price = text_bytes // TEXT_BYTES_PER_FRAME
        if price >= _MUCH_TEXT:
            self._sink.flow.wait_for_turn()
            return 0
        return 0 if not is_last and self._clock.is_turn_long() else budget - price

    def _stash(self, data: bytes | bytearray, at: int, needed: int) -> None:
        self._receive_buffer = receive_buffer = ReceiveBuffer(data[at:])
        receive_buffer.needed = needed

    def _receive_other(self, head: int, payload: bytes) -> None:
        if head == PING:
            self._sink.write(build_head(PONG, len(payload)) + payload)
        elif head == PONG:
            self._receiver.receive_pong(payload)
        elif head == TEXT:
            try:
                payload.decode()
            except UnicodeDecodeError as error:
                self.fail(CloseCode.INVALID_DATA, f"{error.reason} at position {error.start}")
            else:
                self._receiver.receive_text(payload)

    def _ask_strict_parser(self, data: bytes | bytearray) -> tuple[int, int]:
        """How many frames were complete, and how many bytes of text the messages had."""
        strict_parser = self._strict_parser
        assert strict_parser is not None
        was_open = strict_parser.state is State.OPEN
        strict_parser.receive_data(data)
        text_bytes = 0
        while strict_parser.message is not None:
            head, payload = strict_parser.message
            strict_parser.message = None
            if head == BINARY:
                self._receiver.receive_binary(payload)
            elif head == TEXT:
                text_bytes += len(payload)
                self._receiver.receive_text(payload)
            else:
                self._receiver.receive_pong(payload)
            strict_parser.go_on()
        frames = len(strict_parser.events_received())
        if was_open and strict_parser.state is not State.OPEN and not strict_parser.is_own_close:
            self._tell_why(strict_parser)
        self._speak(strict_parser)
        if strict_parser.is_between_messages:
            self._strict_parser = None
        return frames, text_bytes

    def _tell_why(self, strict_parser: StrictParser) -> None:
        if strict_parser.close_rcvd is not None and strict_parser.parser_exc is None:
            self._receiver.receive_close(strict_parser.close_rcvd.code, strict_parser.close_rcvd.reason)
        elif strict_parser.close_sent is not None:
            self._receiver.receive_violation(strict_parser.close_sent.code, strict_parser.close_sent.reason)

    # -------------------------------------------------------------------------------------------------------- out

    def close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake. Nothing is sent after it. Does nothing on a connection that is closing."""
        strict_parser = self._strict_parser
        if strict_parser is None:
            strict_parser = self._strict_parser = StrictParser(self._max_message_bytes)
            if self._receive_buffer is not None:
                self._receive_buffer.needed = 0
        if strict_parser.state is State.OPEN:
            strict_parser.is_own_close = True
            strict_parser.send_close(code, _fit(reason))
            self._speak(strict_parser)

    def fail(self, code: int, reason: str) -> None:
        """Close because of the peer, without waiting for its answer."""
        if not self.is_closing:
            self._receiver.receive_violation(code, reason)
        strict_parser = self._strict_parser
        if strict_parser is None:
            strict_parser = self._strict_parser = StrictParser(self._max_message_bytes)
        if not strict_parser.eof_sent:
            strict_parser.is_own_close = True
            strict_parser.fail(code, _fit(reason))
            self._speak(strict_parser)

    def _speak(self, strict_parser: StrictParser) -> None:
        for data in strict_parser.data_to_send():
            if data:
                self._sink.write(data)
            else:
                self._sink.end_stream()


def _fit(reason: str) -> str:
    """At most the 123 bytes that a close frame has for its reason."""
    return reason.encode()[:123].decode(errors="ignore")
