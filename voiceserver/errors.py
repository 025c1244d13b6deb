"""Every error that can reach a caller: its code on the wire, and whether to try again.

The text of an internal exception never leaves the server; only texts written for it do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final

_PARAMETER: Final = re.compile(r"[a-z][\w.-]*")


class VoiceServerError(Exception):
    """Base of what voiceserver raises on purpose."""


class ConfigError(VoiceServerError):
    """A setting is wrong. ``key`` is its dotted path, ``source`` where it came from."""

    def __init__(self, key: str, message: str, source: str = "") -> None:
        where = f" (from {source})" if source else ""
        super().__init__(f"{key}: {message}{where}")
        self.key = key
        self.message = message
        self.source = source


def engine_error(stage: str, message: str, otherwise: str = "params") -> ConfigError:
    """What an engine of ``stage`` said when it was made. Engines begin with the name of the parameter that is wrong; where one
    did not, ``otherwise`` is the setting of the stage that is to blame.
    """
    name, colon, problem = message.partition(": ")
    if colon and _PARAMETER.fullmatch(name):
        return ConfigError(f"stages.{stage}.params.{name}", problem)
    return ConfigError(f"stages.{stage}.{otherwise}", message)


class StartError(VoiceServerError):
    """The server cannot start here; the message is one line for whoever started it."""


class IllegalTransition(VoiceServerError):
    """A state machine was given input that its table does not allow. Nothing was changed."""


class ProtocolError(VoiceServerError):
    """A client broke the wire protocol. ``param`` names the field. ``close_code`` is set when the connection cannot go on.
    ``http_status`` is the answer where it is met before the upgrade."""

    http_status: ClassVar[int] = 400

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        event_id: str | None = None,
        close_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.event_id = event_id
        self.close_code = close_code


class Forbidden(ProtocolError):
    """The request does not come from where it says. Only met before the upgrade."""

    http_status: ClassVar[int] = 403


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer, not a fault: no place now. ``retry_after_ms`` is an honest estimate, before jitter."""

    reason: str
    retry_after_ms: float
    stage: str | None = None
