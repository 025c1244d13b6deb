"""What a load looks like to a person: the table of its latencies, and its counts beneath."""

from __future__ import annotations

from rich.table import Table

from voiceserver_clients.callers import Tally
from voiceserver_clients.histogram import Histogram

TITLES = {
    "handshake": "handshake",
    "ping": "ping to pong",
    "turn_end": "end of turn told",
    "final": "final transcript",
    "first_audio": "first reply audio",
    "lateness": "this generator's own lateness",
}
REASONS_SHOWN = 3


def status_table(tally: Tally, url: str, callers: int, elapsed_s: float) -> Table:
    """One look at a running load of so many ``callers``, and its last word."""
    counts = tally.counts
    table = Table(title=f"{elapsed_s:5.1f} s   {url}", title_justify="left")
    for name in ("latency (ms)", "count", "p50", "p90", "p99", "p99.9", "max"):
        table.add_column(name, justify="left" if name.startswith("lat") else "right")
    for name, histogram in tally.latencies.items():
        table.add_row(TITLES[name], *_cells(histogram))
    open_now = counts["connected"] - counts["lost"] - counts["closed"]
    lines = [
        f"callers {counts['connected']:.0f} of {callers} came in, {open_now:.0f} still there,"
        f" {counts['refused']:.0f} refused, {counts['failed']:.0f} failed, {counts['lost']:.0f} lost",
        f"turns {counts['turns']:.0f}, finals {counts['finals']:.0f}, replies {counts['replies']:.0f}"
        f" (+{counts['interrupted']:.0f} interrupted), busy signals {counts['busy']:.0f}, errors {counts['errors']:.0f}",
    ]
    if tally.reasons:
        lines.insert(1, f"failed: {failures(tally)}")
    if counts["received_ms"]:
        missing_ms = (
            counts["received_ms"] - counts["consumed_ms"] - counts["dropped_ms"] - counts["discarded_ms"]
        )
        lines.append(
            f"audio sent {counts['sent_ms'] / 1000:.1f} s = received {counts['received_ms'] / 1000:.1f} s;"
            f" dropped {counts['dropped_ms']:.0f} ms, discarded {counts['discarded_ms']:.0f} ms, unaccounted {missing_ms:.1f} ms"
        )
    table.caption, table.caption_justify = "\n".join(lines), "left"
    return table


def failures(tally: Tally) -> str:
    """The most frequent reasons why callers failed, with their counts."""
    reasons = sorted(tally.reasons.items(), key=lambda item: -item[1])
    told = [f"{reason} ({count})" for reason, count in reasons[:REASONS_SHOWN]]
    return ", ".join([*told, "and others"] if len(reasons) > REASONS_SHOWN else told)


def _cells(histogram: Histogram) -> list[str]:
    if not histogram.count:
        return ["0", "-", "-", "-", "-", "-"]
    values = [histogram.percentile(rank) for rank in (50, 90, 99, 99.9)]
    return [f"{histogram.count:,}", *(f"{value:.2f}" for value in (*values, histogram.max_ms))]
