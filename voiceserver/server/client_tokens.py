"""Client tokens: what a page shows in place of a key. They are signed with HMAC-SHA256: every process that has the secret can
check one, and none must remember it.

::

    ek_ + base64url(claim, JSON) + . + base64url(signature)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

TOKEN_PREFIX: Final = "ek_"


class ClientToken(msgspec.Struct, frozen=True):
    """``key``: its name. ``session``: what the session begins with, as JSON; null for nothing. ``bound``: to the hash that the
    key had, so that a token ends when the key is replaced."""

    key: str
    ends_s: float
    nonce: str
    session: msgspec.Raw = msgspec.Raw()
    bound: str = ""

    @classmethod
    def for_key(cls, name: str, key_hash: str, ends_s: float, session: bytes) -> ClientToken:
        return cls(name, ends_s, secrets.token_hex(8), msgspec.Raw(session or b"null"), _bound_to(key_hash))

    def is_of(self, key_hash: str) -> bool:
        """Whether its key still has the hash that it had."""
        return hmac.compare_digest(self.bound, _bound_to(key_hash))


class TokenSigner:
    """``wall_s``: seconds since the epoch, for the ends of tokens."""

    def __init__(self, secret: bytes, wall_s: Callable[[], float]) -> None:
        self._secret = secret
        self._wall_s = wall_s

    def sign(self, token: ClientToken) -> str:
        claim = msgspec.json.encode(token)
        return f"{TOKEN_PREFIX}{_text(claim)}.{_text(self._signature(claim))}"

    def read(self, token: str) -> ClientToken | None:
        """None for one that is wrong, not ours, or has ended."""
        claimed, _, signed = token.removeprefix(TOKEN_PREFIX).partition(".")
        try:
            claim, signature = _bytes(claimed), _bytes(signed)
            if not hmac.compare_digest(signature, self._signature(claim)):
                return None
            read = msgspec.json.decode(claim, type=ClientToken)
        except (ValueError, binascii.Error, msgspec.DecodeError):
            return None
        return read if read.ends_s > self._wall_s() else None

    def _signature(self, claim: bytes) -> bytes:
        return hmac.digest(self._secret, claim, "sha256")


def _bound_to(key_hash: str) -> str:
    """What a token shows of its key: half a hash of the hash."""
    return hashlib.sha256(key_hash.lower().encode()).hexdigest()[:32]


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
