"""When an endpoint wants to be asked again, from the headers of its answer (RFC 9110, "Retry-After"). Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

MAX_RETRY_MS: Final = 3_600_000.0


def retry_after_ms(headers: Mapping[str, str], wall_s: float) -> float:
    """0 where nothing is said, or nothing that can be read. ``headers``: by small names; ``wall_s``: seconds since the epoch, for
    an answer without a date of its own."""
    for name, unit_ms in (("retry-after-ms", 1.0), ("retry-after", 1_000.0)):
        if (number := _number(headers.get(name, ""))) is not None:
            return min(number * unit_ms, MAX_RETRY_MS)
    until = _date(headers.get("retry-after", ""))
    if until is None:
        return 0.0
    # The endpoint's clock may be wrong, but both of its dates are.
    sent = _date(headers.get("date", ""))
    since_s = wall_s if sent is None else sent.timestamp()
    return min(max(until.timestamp() - since_s, 0.0) * 1_000.0, MAX_RETRY_MS)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0.0 else None


def _date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError):
        return None
