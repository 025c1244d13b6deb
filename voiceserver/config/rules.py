"""What a setting may be, beyond its type. A rule is given a value and says what is wrong with it, or nothing."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from voiceserver.events.events import TurnDetection, range_of

Rule = Callable[[Any], str]

LONGEST_MS: Final = 604_800_000  # of any time: 7 days
MOST_PROCESSES: Final = 1_024
_SLOT_STEP: Final = 64  # bytes: the header of a record, and a cache line (``voiceserver_workers.ipc.layout``)


def problem_of(parts: Sequence[str], value: object) -> str:
    """What is wrong with ``value`` of the setting whose dotted name has these parts; empty: nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if "params" in parts:  # of an engine, which checks them
        return ""
    name = f"stages.{parts[-1]}" if parts[0] == "stages" else ".".join(parts)
    rule = _RULES.get(name)
    if rule is None and isinstance(value, int | float):
        rule = _between(0, LONGEST_MS) if name.endswith("_ms") else _at_least(0)
    return rule(value) if rule is not None else ""


def _between(low: float, high: float) -> Rule:
    return lambda value: "" if low <= value <= high else f"must be from {low} to {high}"


def _at_least(low: float) -> Rule:
    return lambda value: "" if value >= low else f"must be at least {low}"


def _one_of(*allowed: str) -> Rule:
    return lambda value: "" if value in allowed else f"must be one of {', '.join(allowed)}"


def _slots(value: int) -> str:
    is_power = value > 0 and value & (value - 1) == 0
    return "" if is_power and 2 <= value <= 65_536 else "must be a power of two from 2 to 65536"


def _slot_bytes(value: int) -> str:
    is_fit = value % _SLOT_STEP == 0 and 2 * _SLOT_STEP <= value <= 1_048_576
    return "" if is_fit else f"must be a multiple of {_SLOT_STEP} from {2 * _SLOT_STEP} to 1048576"


def _share(value: float) -> str:
    return "" if 0 < value <= 1 else "must be above 0 and at most 1"


def _host(value: str) -> str:
    try:
        value.encode("idna")
        is_name = value.isprintable() and " " not in value
    except UnicodeError:
        is_name = False
    return "" if is_name else "must be an address or the name of a host"


def _networks(value: str) -> str:
    for one in filter(str.strip, value.split(",")):
        try:
            ipaddress.ip_network(one.strip(), strict=False)
        except ValueError:
            return f"must be addresses or networks such as 10.0.0.0/8, with commas between; {one.strip()!r} is neither"
    return ""


_TIME: Final = _between(1, LONGEST_MS)
_DETECTION: Final = (
    "threshold",
    "prefix_padding_ms",
    "silence_duration_ms",
    "min_speech_ms",
    "max_turn_ms",
    "max_silence_ms",
    "min_silence_ms",
)
_RULES: Final[Mapping[str, Rule]] = {
    "server.host": _host,
    "server.port": _between(0, 65_535),
    "server.processes": _between(1, MOST_PROCESSES),
    "server.trusted_proxies": _networks,
    "server.backlog": _between(1, 2**31 - 1),
    "server.max_message_bytes": _between(1_024, 67_108_864),
    "server.handshake_timeout_ms": _TIME,
    "server.ping_timeout_ms": _TIME,
    "server.slow_reader_timeout_ms": _TIME,
    "server.write_limit_bytes": _between(1_024, 2**30),
    "server.log_level": _one_of("debug", "info", "warning", "error"),
    "server.log_format": _one_of("auto", "console", "json"),
    "session.output_rate_hz": _between(8_000, 48_000),
    **{f"session.{name}": _between(*range_of(TurnDetection, name)) for name in _DETECTION},
    "session.audio_grace_ms": _between(0, 60_000),
    "session.max_manual_turn_ms": _between(1_000, 3_600_000),
    "session.filler_after_ms": _TIME,
    "auth.token_ttl_ms": _between(1, 7_200_000),
    "backpressure.busy_repeat_ms": _TIME,
    "backpressure.max_backlog_ms": _TIME,
    "backpressure.hold": _one_of("connection", "speech"),
    "backpressure.tenant_share": _share,
    "stages.workers": _between(0, MOST_PROCESSES),
    "stages.max_batch_size": _at_least(1),
    "stages.step_timeout_ms": _TIME,
    "stages.request_slots": _slots,
    "stages.result_slots": _slots,
    "stages.slot_bytes": _slot_bytes,
}
