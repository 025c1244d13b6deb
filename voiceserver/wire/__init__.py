"""Sans-I/O codecs: one wire protocol each, over the neutral events of ``voiceserver.events.events``.

A codec never touches a socket, a clock or a session (R3). It turns frames into neutral events and events into frames, and
keeps only what its wire needs to remember (ids, items, marks). A new codec passes ``tests/conformance/codec`` first.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from voiceserver.errors import ProtocolError
from voiceserver.events.events import ClientEvent, ServerEvent

Frame = str | bytes  # str: a text message; bytes: a binary message


class Audio(NamedTuple):
    """PCM16 little-endian mono at the codec's ``input_rate_hz``, a whole number of samples."""

    pcm: bytes


class Codec(Protocol):
    binary_is_pcm: bool  # binary messages are the pcm of Audio and nothing else, so nobody need be asked
    is_shared: bool  # has no state of its own, so that one serves all sessions with these rates
    name: str  # "native", "openai", "twilio", "whisperlive"
    subprotocol: str | None  # to select at the handshake, if offered
    input_rate_hz: int  # of the Audio it gives; fixed before the first Audio
    output_rate_hz: int  # of the ReplyAudio it wants; fixed before the first reply

    def receive_text(self, message: bytes) -> list[ClientEvent | Audio]:
        """Decode one text message (UTF-8 already checked). Raises ProtocolError; the codec's state is then unchanged."""

    def receive_binary(self, message: bytes) -> list[ClientEvent | Audio]:
        """Decode one binary message. Raises ProtocolError."""

    def encode(self, event: ServerEvent) -> list[Frame]:
        """The frames that say ``event`` on this wire; may be empty. Busy is always voiced in some way."""

    def encode_protocol_error(self, error: ProtocolError) -> list[Frame]:
        """The wire's own shape for a client's mistake."""

    def frames_to_send(self) -> list[Frame]:
        """Take the frames that the codec answers by itself (acknowledgements, retrieved items). Drain after each receive."""
