"""What may never be shown: values of settings that are secrets by their name, and secrets within addresses."""

from __future__ import annotations

import re
from typing import Final

HIDDEN: Final = "********"
# Engines bring parameters of their own, so this goes by how such things are called: api_key, apiKey, X-Api-Key.
_NAMES: Final = "key|token|secret|password|passwd|passphrase|pwd|pass|credentials?|authorization|auth|bearer|cookie|signature"
_IS_SECRET: Final = re.compile(
    rf"(^|[._-]|(?-i:(?<=[a-z])(?=[A-Z])))(api)?({_NAMES}|sig|jwt)$|[.]params[.](\w+_)?headers?[.]", re.I
)
_PATHS: Final = frozenset({"server.tls_key"})  # of a file
_USER_OF_URL: Final = re.compile(r"(?<=://)[^/\s]+(?=@)")
_QUERY: Final = re.compile(r"(?<=[?&;])([^=&;#\s]+)=([^&;#\s]+)")


def shown_value(key: str, value: object) -> object:
    """``value`` of the setting ``key`` as it may be printed."""
    if value and _IS_SECRET.search(key) and key not in _PATHS:
        return HIDDEN
    return without_secrets(value) if isinstance(value, str) else value


def without_secrets(text: str) -> str:
    """``text`` with the user and the secret parameters of every address in it hidden."""
    text = _USER_OF_URL.sub(HIDDEN, text)
    return _QUERY.sub(lambda found: f"{found[1]}={HIDDEN}" if _IS_SECRET.search(found[1]) else found[0], text)
