"""The wires of this server. A new one is a line here."""

from __future__ import annotations

from typing import Final

from voiceserver.wire import native, openai, twilio, whisperlive
from voiceserver.wire.request import Wire

WIRES: Final[tuple[Wire, ...]] = (native.WIRE, openai.WIRE, twilio.WIRE, whisperlive.WIRE)
