"""What the server asks of a wire protocol: ``CodecTraits``, which hold for all its connections, and ``Codec``, one connection.

A codec never touches a socket, a clock or a session (R3). It turns frames into neutral events and events into frames, and
keeps only what its wire needs to remember (ids, items, marks). The server asks for nothing that is not stated here, and
never which wire it serves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from voiceserver.errors import ProtocolError
from voiceserver.events.events import ClientEvent, ServerEvent
from voiceserver.events.json_values import MAX_VALUES, has_too_many_values

Frame = str | bytes  # str: a text message; bytes: a binary message


class Audio(NamedTuple):
    """PCM16 little-endian mono at the codec's ``input_rate_hz``, a whole number of samples."""

    pcm: bytes


Received = list[ClientEvent | Audio]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecTraits:
    """What is the same for all connections of one wire.

    ``name``: of the wire, in logs and metrics.
    ``subprotocol``: to select at the handshake if the client offers it.
    ``binary_is_pcm``: a binary message is the pcm of an ``Audio`` and nothing else, so the codec need not decode it.
    ``is_shared``: the codec has no state, so that one serves all connections with the same rates.
    ``can_wait``: a caller may be given a place in the waiting room; a browser always may.
    ``tells_refusal``: a refused caller is told over an upgraded connection, because it would not understand an HTTP 503.
    ``plays_earcons``: a busy cue is sent as reply audio of turn 0; otherwise the codec has its own way to encode it.
    ``tells_talk_limit``: the codec wants ``set_talk_limit`` before each ``ReplyDone``.
    ``max_message_bytes``: largest message of a client; None for the server's own limit.
    ``resume_parameter``: query parameter with the token of a session to resume; empty where the wire cannot resume.
    ``after_parameter``: query parameter with the number of messages received before a resume; empty if clients do not count.
    ``rate_parameter``: query parameter with the rate of the input audio, which a resume cannot change; empty for none.
    """

    name: str
    subprotocol: str | None = None
    binary_is_pcm: bool = False
    is_shared: bool = False
    can_wait: bool = True
    tells_refusal: bool = False
    plays_earcons: bool = False
    tells_talk_limit: bool = False
    max_message_bytes: int | None = None
    resume_parameter: str = ""
    after_parameter: str = ""
    rate_parameter: str = ""


class Codec(ABC):
    """One connection of a wire, or all of them (``is_shared``). The hooks that have a body here are optional.

    ``traits``: what is the same for all connections.
    ``binary_is_pcm``: the trait of that name, where the short path of audio finds it with one look-up.
    ``input_rate_hz``: of the Audio that the codec gives; fixed before the first Audio.
    ``output_rate_hz``: of the ReplyAudio that it wants; fixed before the first reply.
    """

    __slots__ = ()

    traits: ClassVar[CodecTraits]
    binary_is_pcm: ClassVar[bool]
    input_rate_hz: int
    output_rate_hz: int

    def __init_subclass__(cls) -> None:
        cls.binary_is_pcm = cls.traits.binary_is_pcm

    @abstractmethod
    def receive_text(self, message: bytes) -> Received:
        """Decode one text message. Raises ProtocolError; the codec's state is then unchanged."""

    @abstractmethod
    def receive_binary(self, message: bytes) -> Received:
        """Decode one binary message. Raises ProtocolError."""

    @abstractmethod
    def encode(self, event: ServerEvent) -> list[Frame]:
        """The frames for ``event``; may be empty. A busy signal is never left out."""

    @abstractmethod
    def encode_protocol_error(self, error: ProtocolError) -> list[Frame]:
        """The frames for a client's mistake. What the refused message changed in the codec is taken back."""

    def frames_to_send(self) -> list[Frame]:
        """Take the frames that the codec answers by itself (acknowledgements, retrieved items). Drain after each receive."""
        return []

    @property
    def has_opening(self) -> bool:
        """Whether ``opening_events`` has something to give."""
        return False

    def opening_events(self) -> list[ClientEvent]:
        """Take what the session has to know before the client's first message. Raises ProtocolError."""
        return []

    @property
    def is_resumable(self) -> bool:
        """Whether this session is kept when its connection is lost. Only for wires with a ``resume_parameter``."""
        return False

    @property
    def linger_ms(self) -> float:
        """Audio that was sent and is not yet played: so long should a connection stay open that is to be closed."""
        return 0.0

    @property
    def memory_bytes(self) -> int:
        """About what the codec remembers of the conversation."""
        return 0

    def set_talk_limit(self, daily_ms: float, left_ms: float, reset_s: float) -> None:
        """Audio that the caller's API key may send: a day, of that left, and seconds until the next day begins."""
        return


def read_text(codec: Codec, message: bytes) -> Received:  # hot
    """``message`` read by ``codec``, which is not asked about more values than the loop has time for. Raises ProtocolError."""
    if has_too_many_values(message):
        text = f"The message has too many values: there may be {MAX_VALUES}, and text as long as a message can be."
        raise ProtocolError("too_many_values", text)
    return codec.receive_text(message)
