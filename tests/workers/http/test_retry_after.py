"""Retry-After in seconds and as a date of any form of the standard."""

from __future__ import annotations

import pytest

from voiceserver_workers.http.retry_after import MAX_RETRY_MS, retry_after_ms

NOW_S = 784_111_747.0  # Sun, 06 Nov 1994 08:49:07 GMT


@pytest.mark.parametrize(
    ("headers", "ms"),
    [
        ({}, 0.0),
        ({"retry-after": "1"}, 1_000.0),
        ({"retry-after": " 0.5 "}, 500.0),
        ({"retry-after": "99999999999999999999"}, MAX_RETRY_MS),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "inf"}, 0.0),
        ({"retry-after": "nan"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "1", "retry-after-ms": "250"}, 250.0),
        # The three forms of RFC 9110.
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 30_000.0),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:37 GMT"}, 30_000.0),
        ({"retry-after": "Sun Nov  6 08:49:37 1994"}, 30_000.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:00 GMT"}, 0.0),
        # By the clock of the endpoint, where it says what that shows.
        ({"retry-after": "Sun, 06 Nov 1994 10:00:03 GMT", "date": "Sun, 06 Nov 1994 10:00:00 GMT"}, 3_000.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT", "date": "now"}, 30_000.0),
        ({"retry-after": "Sun, 99 Nov 1994 08:49:37 GMT"}, 0.0),
    ],
)
def test_the_time_to_wait_is_read(headers: dict[str, str], ms: float) -> None:
    assert retry_after_ms(headers, NOW_S) == ms
