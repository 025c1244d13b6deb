"""What a soak has shown: the evidence, the checks, and the table that says which of them passed."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.report.results import print_table
from benchmarks.sides.server_process import bucket_percentile
from voiceserver_clients.callers import Tally

MEMORY_OF_ONE = "memory per idle connection"
PING_P99_MS = 10.0
MEMORY_BYTES = 400 * 2**20
BYTES_PER_CONNECTION = 2_500
MEASURABLE = 2_000  # connections; of fewer, the memory of one is lost in that of the processes


@dataclass(frozen=True, slots=True)
class Evidence:
    """memory: PSS of the servers before anybody came, when all were in and nobody talked yet (idle), and half-way; workers_bytes:
    of their workers. cpu_s: of all of them while everybody was there. loop_lag_ms: bucket bound -> samples at or below it."""

    connections: int
    talkers: int
    seconds: float
    held: int
    tally: Tally
    memory_before_bytes: int
    idle_memory_bytes: int
    memory_bytes: int
    workers_bytes: int
    loop_lag_ms: dict[float, float]
    cpu_s: float
    server_processes: int
    killed_pid: int

    @property
    def lost(self) -> int:
        counts = self.tally.counts
        return int(counts["lost"] + counts["failed"] + counts["refused"])

    @property
    def unaccounted_ms(self) -> float:
        """Of the audio that callers sent: neither consumed nor said to be dropped or discarded, or never received."""
        counts = self.tally.counts
        kept = counts["consumed_ms"] + counts["dropped_ms"] + counts["discarded_ms"]
        return round(abs(counts["received_ms"] - kept) + abs(counts["sent_ms"] - counts["received_ms"]), 3)

    @property
    def bytes_per_connection(self) -> int | None:
        """Of an idle one. None: there were too few to tell."""
        if self.connections < MEASURABLE:
            return None
        return round((self.idle_memory_bytes - self.memory_before_bytes) / self.connections)

    def ping_ms(self, rank: float) -> float:
        pings = self.tally.latencies["ping"]
        return pings.percentile(rank) if pings.count else float("nan")

    def to_payload(self, checks: list[Check]) -> dict[str, object]:
        answers = self.tally.latencies["first_audio"]
        return {
            "connections": self.connections,
            "talkers": self.talkers,
            "seconds": self.seconds,
            "server_processes": self.server_processes,
            "held": self.held,
            "lost": self.lost,
            "ping_ms": {f"p{rank:g}": round(self.ping_ms(rank), 3) for rank in (50, 99, 99.9)},
            "pings": self.tally.latencies["ping"].count,
            "first_audio_ms": {f"p{rank:g}": round(answers.percentile(rank), 3) for rank in (50, 99)}
            if answers.count
            else {},
            "turns": self.tally.counts["turns"],
            "replies": self.tally.counts["replies"] + self.tally.counts["interrupted"],
            "bytes_per_connection": self.bytes_per_connection,
            "server_memory_idle_bytes": self.idle_memory_bytes,
            "server_memory_bytes": self.memory_bytes,
            "server_memory_before_bytes": self.memory_before_bytes,
            "workers_memory_bytes": self.workers_bytes,
            "loop_lag_p99_ms": bucket_percentile(self.loop_lag_ms, 99),
            "cpu_cores": round(self.cpu_s / self.seconds, 3),
            "silence_s": round(self.tally.counts["silence_ms"] / 1000, 3),
            "unaccounted_ms": self.unaccounted_ms,
            "generator_lateness_ms": {
                f"p{rank:g}": round(self.tally.latencies["lateness"].percentile(rank), 3)
                for rank in (50, 99, 99.9)
                if self.tally.latencies["lateness"].count
            },
            "worker_lost_told": self.tally.counts["worker_lost"],
            "busy_signals": self.tally.counts["busy"],
            "checks": {check.name: {"value": check.value, "is_good": check.is_good} for check in checks},
        }


@dataclass(frozen=True, slots=True)
class Check:
    """is_promise: of the software, on any machine; the others depend on how fast and how busy this one is."""

    name: str
    value: str
    bound: str
    is_good: bool
    is_promise: bool = True


def judge(evidence: Evidence) -> list[Check]:
    e, counts = evidence, evidence.tally.counts
    memory_mib = e.memory_bytes / 2**20
    checks = [
        Check(
            "connections that answered at the end",
            f"{e.held:,}",
            f"{e.connections:,}",
            e.held == e.connections,
        ),
        Check("lost, refused or failed", f"{e.lost:,}", "0", e.lost == 0),
        Check("errors told", f"{counts['errors']:.0f}", "0", counts["errors"] == 0),
        Check("unaccounted audio", f"{e.unaccounted_ms:g} ms", "0 ms", e.unaccounted_ms == 0),
        Check(
            "ping to pong p50 / p99 / p99.9",
            " / ".join(f"{e.ping_ms(rank):.2f}" for rank in (50, 99, 99.9)) + " ms",
            f"p99 under {PING_P99_MS:g} ms",
            e.ping_ms(99) < PING_P99_MS,
            is_promise=False,
        ),
        Check(
            "memory of the servers",
            f"{memory_mib:,.0f} MiB",
            f"under {MEMORY_BYTES / 2**20:.0f} MiB",
            e.memory_bytes < MEMORY_BYTES,
            is_promise=False,
        ),
        Check(
            "loop lag p99",
            f"at most {bucket_percentile(e.loop_lag_ms, 99):g} ms",
            f"{PING_P99_MS:g} ms",
            bucket_percentile(e.loop_lag_ms, 99) <= PING_P99_MS,
            is_promise=False,
        ),
    ]
    if e.bytes_per_connection is not None:
        checks.append(
            Check(
                MEMORY_OF_ONE,
                f"{e.bytes_per_connection:,} bytes",
                f"at most {BYTES_PER_CONNECTION:,}",
                e.bytes_per_connection <= BYTES_PER_CONNECTION,
                is_promise=False,
            )
        )
    if e.talkers:
        silence_s = counts["silence_ms"] / 1000
        answered = counts["replies"] + counts["interrupted"]
        checks.append(
            Check("talkers met with silence", f"{silence_s:.1f} s", "0 s", silence_s == 0, is_promise=False)
        )
        checks.append(
            Check(
                "turns answered",
                f"{answered:.0f}",
                f"of {counts['turns']:.0f}",
                0 < answered >= counts["turns"],
            )
        )
    if e.killed_pid and e.talkers:
        told = counts["worker_lost"]
        checks.append(
            Check("told of the worker that was killed", f"{told:.0f}", "some", told > 0, is_promise=False)
        )
    return checks


def show(evidence: Evidence, checks: list[Check]) -> None:
    """Print the verdict."""
    e = evidence
    rows = [(check.name, check.value, check.bound, "yes" if check.is_good else "NO") for check in checks]
    if e.bytes_per_connection is None:
        rows.append((MEMORY_OF_ONE, "not measured", f"{MEASURABLE:,} connections or more", ""))
    answers = e.tally.latencies["first_audio"]
    if answers.count:
        value = f"{answers.percentile(50):.1f} / {answers.percentile(99):.1f} ms"
        rows.append(("end of turn to reply audio, p50 / p99", value, "", ""))
    late = e.tally.latencies["lateness"]
    if late.count:
        value = f"{late.percentile(50):.2f} / {late.percentile(99):.2f} / {late.percentile(99.9):.2f} ms"
        rows.append(("the callers' own lateness, in it", value, "", ""))
    rows.append(("processors in use, callers apart", f"{e.cpu_s / e.seconds:.2f} cores", "", ""))
    rows.append(("memory of the workers", f"{e.workers_bytes / 2**20:,.0f} MiB", "", ""))
    title = (
        f"{e.connections:,} connections, {e.talkers:,} of them talking, for {e.seconds:.0f} s"
        f" on {e.server_processes} server processes"
    )
    print_table(title, ("", "found", "wanted", "good"), rows)
    is_good = all(check.is_good for check in checks)
    missed = ", ".join(check.name for check in checks if not check.is_good)
    print("verdict: all as wanted" if is_good else f"verdict: not as wanted: {missed}")
