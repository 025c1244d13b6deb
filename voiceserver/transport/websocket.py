"""A connection's frames, sans I/O: the short path, and the judge of everything else.

Complete, unfragmented, masked text, binary, ping and pong frames are read here. Whatever else arrives (fragments, close
frames, reserved bits, bad opcodes, unmasked or oversized frames) goes to the judge, ``websockets``' own ``ServerProtocol``, made
when the first such byte arrives and dropped at the next message boundary. ``tests/laws/test_frames_differential.py`` holds the
two against each other: what a caller gets may not depend on which of them read a frame.

Bounds: a message by ``max_message_bytes``, its fragments by ``MAX_FRAGMENTS``, the frames handled in one go by
``FRAMES_PER_TURN``, so that a flood of tiny messages takes turns with everybody else; a long text counts as many.
"""

from __future__ import annotations

import logging
import struct
from typing import Final

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
_JUDGE_SLICE_BYTES: Final = 4_096

_AUDIO_FRAME: Final = BINARY << 8 | LENGTH_16
_AUDIO_HEAD_BYTES: Final = 8
_read_audio_head: Final = struct.Struct(">HH4s").unpack_from

# The judge reports every connection at info level; its only news for us is a fault of its own.
_strict_parser_log: Final = logging.getLogger("voiceserver.websockets")
_strict_parser_log.setLevel(logging.ERROR)


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
        return self._is_at_boundary and self.state is State.OPEN and self.current_size is None

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


class Framing:
    """Bytes in by ``feed``, messages out by the ``receive_*`` hooks, bytes out by ``write``. Subclasses give the hooks."""

    __slots__ = ("_receive_buffer", "_strict_parser", "max_message_bytes")

    def __init__(self, max_message_bytes: int) -> None:
        self.max_message_bytes = max_message_bytes
        self._receive_buffer: ReceiveBuffer | None = None
        self._strict_parser: StrictParser | None = None

    # ------------------------------------------------------------------------------------------------------- hooks

    def receive_binary(self, payload: bytes) -> None:
        raise NotImplementedError

    def receive_run(self, payloads: list[bytes]) -> None:
        """Binary messages that came together."""
        for payload in payloads:
            if self.is_closing:  # by one of them: what follows is discarded
                return
            self.receive_binary(payload)

    def receive_text(self, payload: bytes) -> None:
        """``payload`` is valid UTF-8."""
        raise NotImplementedError

    def receive_pong(self, payload: bytes) -> None:
        """Of interest only to those who count what the peer has received."""

    def receive_close(self, code: int, reason: str) -> None:
        """The peer closes; the answer is written next."""
        raise NotImplementedError

    def receive_violation(self, code: int, reason: str) -> None:
        """The peer broke the standard. The close frame is written next: the moment for a last word."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        raise NotImplementedError

    def end_stream(self) -> None:
        """Nothing more will be written, and nothing more is read: close the socket when what was written has left."""
        raise NotImplementedError

    def has_had_enough(self) -> bool:
        """Whether a turn that still has messages has lasted too long already: an answer may cost far more than its question."""
        return False

    def wait_for_turn(self) -> None:
        """Enough for now. Stop reading, and call ``feed(b"")`` later to go on."""
        raise NotImplementedError

    # --------------------------------------------------------------------------------------------------------- in

    @property
    def is_closing(self) -> bool:
        return self._strict_parser is not None and self._strict_parser.state is not State.OPEN

    @property
    def has_partial_message(self) -> bool:
        return self._receive_buffer is not None or self._strict_parser is not None

    def feed(self, data: bytes | bytearray) -> int:  # hot
        """Read what arrived; the number of frames that were complete. Never raises for what a peer sent."""
        receive_buffer = self._receive_buffer
        if receive_buffer is not None:
            receive_buffer += data
            if len(receive_buffer) < receive_buffer.needed:
                return 0
            self._receive_buffer = None
            data = receive_buffer
        at = 0
        size = len(data)
        limit = self.max_message_bytes
        frames = 0
        budget = FRAMES_PER_TURN
        while at < size:
            if frames >= budget:
                self._stash(data, at, 0)
                self.wait_for_turn()
                break
            if self._strict_parser is not None:
                came, text_bytes = self._ask_strict_parser(data[at : at + _JUDGE_SLICE_BYTES])
                frames += came
                at += _JUDGE_SLICE_BYTES
                budget = self._charge(budget, text_bytes)
                if text_bytes and at < size and self.has_had_enough():
                    budget = 0
                continue
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
                self.receive_run(run)
                continue
            start, end = find_payload(data, at, limit)
            if start < 0:
                if start == INCOMPLETE:
                    self._stash(data, at, end - at)
                    break
                self._strict_parser = StrictParser(limit)
                continue
            head = data[at]
            at = end
            frames += 1
            payload = apply_mask(data[start:end], data[start - 4 : start])
            if head == BINARY:
                self.receive_binary(payload)
            else:
                self._receive_other(head, payload)
                if head == TEXT:
                    budget = self._charge(budget, len(payload))
                    if at < size and self.has_had_enough():
                        budget = 0
        return frames

    def _charge(self, budget: int, text_bytes: int) -> int:
        """What a turn's budget of frames is after text of so many bytes."""
        price = text_bytes // TEXT_BYTES_PER_FRAME
        if price < _MUCH_TEXT:
            return budget - price
        self.wait_for_turn()
        return 0

    def _stash(self, data: bytes | bytearray, at: int, needed: int) -> None:
        self._receive_buffer = receive_buffer = ReceiveBuffer(data[at:])
        receive_buffer.needed = needed

    def _receive_other(self, head: int, payload: bytes) -> None:
        if head == PING:
            self.write(build_head(PONG, len(payload)) + payload)
        elif head == PONG:
            self.receive_pong(payload)
        elif head == TEXT:
            try:
                payload.decode()
            except UnicodeDecodeError as error:
                self.fail(CloseCode.INVALID_DATA, f"{error.reason} at position {error.start}")
            else:
                self.receive_text(payload)

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
                self.receive_binary(payload)
            elif head == TEXT:
                text_bytes += len(payload)
                self.receive_text(payload)
            else:
                self.receive_pong(payload)
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
            self.receive_close(strict_parser.close_rcvd.code, strict_parser.close_rcvd.reason)
        elif strict_parser.close_sent is not None:
            self.receive_violation(strict_parser.close_sent.code, strict_parser.close_sent.reason)

    def restart(self) -> None:
        """Another socket: what is left of a frame of the old one means nothing."""
        self._receive_buffer = self._strict_parser = None

    # -------------------------------------------------------------------------------------------------------- out

    def close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake. Nothing is sent after it. Does nothing on a connection that is closing."""
        strict_parser = self._strict_parser
        if strict_parser is None:
            strict_parser = self._strict_parser = StrictParser(self.max_message_bytes)
            if self._receive_buffer is not None:
                self._receive_buffer.needed = 0
        if strict_parser.state is State.OPEN:
            strict_parser.is_own_close = True
            strict_parser.send_close(code, _fit(reason))
            self._speak(strict_parser)

    def fail(self, code: int, reason: str) -> None:
        """Close because of the peer, without waiting for its answer."""
        if not self.is_closing:
            self.receive_violation(code, reason)
        strict_parser = self._strict_parser
        if strict_parser is None:
            strict_parser = self._strict_parser = StrictParser(self.max_message_bytes)
        if not strict_parser.eof_sent:
            strict_parser.is_own_close = True
            strict_parser.fail(code, _fit(reason))
            self._speak(strict_parser)

    def _speak(self, strict_parser: StrictParser) -> None:
        for data in strict_parser.data_to_send():
            if data:
                self.write(data)
            else:
                self.end_stream()


def _fit(reason: str) -> str:
    """At most the 123 bytes that a close frame has for its reason."""
    return reason.encode()[:123].decode(errors="ignore")
