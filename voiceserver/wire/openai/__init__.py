"""The OpenAI Realtime wire: GA and beta over the neutral events.

::

    frames --> schema (what may be said) --> codec (ids to keys, rules) --> neutral client events
    frames <-- responses, items, settings <-- outbound (golden order)  <-- neutral server events
"""

from __future__ import annotations

from voiceserver.wire.openai.codec import OpenAICodec
from voiceserver.wire.openai.dialect import Dialect
from voiceserver.wire.openai.handshake import PATH, WIRE, Request, codec_for, read_request
from voiceserver.wire.openai.items import Conversation
from voiceserver.wire.openai.schema import MAX_MESSAGE_BYTES
from voiceserver.wire.openai.settings import read_session

__all__ = [
    "MAX_MESSAGE_BYTES",
    "PATH",
    "WIRE",
    "Conversation",
    "Dialect",
    "OpenAICodec",
    "Request",
    "codec_for",
    "read_request",
    "read_session",
]
