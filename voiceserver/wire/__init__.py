"""Sans-I/O codecs: one wire protocol each, over the neutral events of ``voiceserver.events.events``.

``traits`` states what a codec is. A new codec passes ``voiceserver.testing.CodecSuite`` first.
"""

from __future__ import annotations

from voiceserver.wire.traits import Audio, Codec, CodecTraits, Frame, Received, read_text

__all__ = ["Audio", "Codec", "CodecTraits", "Frame", "Received", "read_text"]
