"""Log entries about callers: who came in, who was refused for want of a place, who had no right, and what cannot be
said to them.

Rule: a storm of refusals writes ``MOST_A_SECOND`` entries a second; the next entry says how many were passed over. Never keys or
tokens.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from voiceserver.transport.handshake import BadRequest, read_handshake

if TYPE_CHECKING:
    from websockets.datastructures import Headers

    from voiceserver.transport.http import Response, Upgrade
    from voiceserver.transport.proxies import TrustedProxies
    from voiceserver.transport.services import Log

MOST_A_SECOND: Final = 10
_UNAUTHORISED: Final = (401, 403)
_REFUSED: Final = (429, 503)
MAX_TEXT: Final = 200


class CallerLog:
    """``refused`` and ``opened`` cost nothing that a caller waits for."""

    __slots__ = ("_count", "_log", "_passed_over", "_proxies", "_second", "_unsaid")

    def __init__(self, log: Log, proxies: TrustedProxies) -> None:
        self._log = log
        self._proxies = proxies
        self._second = -1
        self._count = 0
        self._passed_over = 0
        self._unsaid: set[str] = set()  # one for each script at most

    def opened(self, upgrade: Upgrade, session_id: str, *, is_resumed: bool = False) -> None:
        caller = upgrade.caller
        self._log.info(
            "session opened",
            session=session_id,
            wire=upgrade.codec.traits.name,
            is_resumed=is_resumed,
            **_who(caller.headers, caller.address, upgrade.key),
        )

    def cannot_say(self, message: str) -> None:
        """A caller was told that the voice cannot say a script: each is logged once."""
        if message not in self._unsaid:
            self._unsaid.add(message)
            self._log.warning(
                "script_unsupported", reason=message, fix="choose a tts engine or voice that speaks it"
            )

    def told(self, upgrade: Upgrade, now_ms: float) -> None:
        """A caller who is refused over an upgraded connection."""
        if upgrade.refusal is not None and self._may_tell(now_ms):
            caller, passed_over = upgrade.caller, self._take_passed_over()
            who = _who(caller.headers, caller.address, upgrade.key)
            self._log.info(
                "caller refused", reason=upgrade.refusal.reason, path=caller.path, **who, **passed_over
            )

    def answered(self, response: Response, head: bytes, address: str, now_ms: float) -> None:
        """A plain answer to a request with this head; most are no refusal."""
        if response.status not in _UNAUTHORISED and response.status not in _REFUSED:
            return
        if not self._may_tell(now_ms):
            return
        try:
            handshake = read_handshake(head)
        except BadRequest:
            return
        address = self._proxies.client_address(address, handshake.headers)
        path, who = handshake.path.partition("?")[0], _who(handshake.headers, address, response.key)
        event = "caller unauthorised" if response.status in _UNAUTHORISED else "caller refused"
        self._log.info(
            event,
            status=response.status,
            reason=response.code,
            path=path[:MAX_TEXT],
            **who,
            **self._take_passed_over(),
        )

    def _may_tell(self, now_ms: float) -> bool:
        second = int(now_ms // 1000.0)
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        if self._count <= MOST_A_SECOND:
            return True
        self._passed_over += 1
        return False

    def _take_passed_over(self) -> dict[str, object]:
        count, self._passed_over = self._passed_over, 0
        return {"passed_over": count} if count else {}


def _who(headers: Headers, address: str, key: str) -> dict[str, object]:
    """The request's id is the one that a proxy gave it, else one of our own."""
    found: dict[str, object] = {
        "peer": address,
        "user_agent": _first(headers, "User-Agent"),
        "request_id": _first(headers, "X-Request-Id") or secrets.token_hex(8),
    }
    return {**found, "key": key} if key else found


def _first(headers: Headers, name: str) -> str:
    values = headers.get_all(name)
    return values[0][:MAX_TEXT] if values else ""
