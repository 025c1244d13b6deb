"""Every metric that the server exports, on one page. Names and labels live nowhere else (R5).

Counters are counted where something is decided or closed, never per chunk of audio; label children are looked up once and kept.
What pools know (workers, streams, lag) is read at the scrape.

Rule: counting never raises. A fault in it is counted itself (``voiceserver_metric_faults_total``) and changes nothing
for callers.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Concatenate, Final, ParamSpec, Protocol

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from voiceserver.events import events as ev
from voiceserver.observability.logs import LOST_LINES
from voiceserver.observability.process_metrics import ProcessMetrics
from voiceserver.pool import PoolStats, WorkerStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REFUSAL_BUCKETS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
# Narrow around half a second: most turns end after the default silence, and a quantile is read from between two bounds.
_TURN_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4),
    *(0.5, 0.525, 0.55, 0.6, 0.7, 0.8, 1.2, 2.0, 5.0, 10.0),
)
FIRST_PRIVATE_CODE = 3_000  # from here on a client may choose any of 2,000: no label each
# What is kept of the last hour for the dashboard (``history``): gauges as they were, counters in all, and two histograms.
HISTORY_GAUGES = frozenset(
    f"voiceserver_{name}"
    for name in (
        *("sessions", "talkers", "talkers_limit", "waiting"),
        *("degrade_level", "busiest_stage_ratio", "stage_lag_seconds"),
    )
)
HISTORY_COUNTERS = frozenset({"voiceserver_refused_total", "voiceserver_busy_signals_total"})
_HISTORY_BUCKETS = {
    "voiceserver_turn_seconds_bucket": "first_audio",
    "voiceserver_loop_lag_seconds_bucket": None,
}
_PIECES = ("endpointing", "stt", "reply", "tts", "first_audio")


class Sample(msgspec.Struct, frozen=True, array_like=True):
    labels: dict[str, str]
    value: float


_Arguments = ParamSpec("_Arguments")
Merge = Callable[[Iterable[Metric]], Iterable[Metric]]


class Admitting(Protocol):
    """Who is in and who waits; ``voiceserver.capacity.admission.Admission`` is one."""

    @property
    def talkers(self) -> int: ...
    @property
    def limit(self) -> int: ...
    @property
    def waiting(self) -> int: ...


class Retreating(Protocol):
    """How far the server has retreated, and why; ``voiceserver.capacity.controller.CapacityController`` is one."""

    @property
    def level(self) -> int: ...
    @property
    def standing_ms(self) -> float: ...
    @property
    def busy(self) -> float: ...


def _unfailing(
    count: Callable[Concatenate[Metrics, _Arguments], None],
) -> Callable[Concatenate[Metrics, _Arguments], None]:
    """A method that counts, and whose faults are counted in place of being raised."""

    @functools.wraps(count)
    def guarded(self: Metrics, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        try:
            count(self, *args, **kwargs)
        except Exception:
            self.faults += 1

    return guarded


class Metrics(Collector):
    """One registry; a test or a second server in one process makes its own. ``merge``: the families of this process with those
    of the other processes of this server; None where it serves alone."""

    # Of counting itself.
    faults = 0

    def __init__(self, merge: Merge | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside every counter, which nobody asked for
        registry = self._registry = CollectorRegistry(auto_describe=False)
        self._merge = merge
        registry.register(ProcessMetrics())

        self._connections = Gauge(
            "voiceserver_connections", "Open connections, of any kind.", registry=registry
        )
        self._sessions = Gauge("voiceserver_sessions", "Open sessions.", registry=registry)
        self._opened = Counter("voiceserver_sessions_opened", "Sessions opened.", ["wire"], registry=registry)
        self._closed = Counter(
            "voiceserver_sessions_closed", "Sessions closed.", ["wire", "code"], registry=registry
        )
        self._refused = Counter(
            "voiceserver_refused", "Callers refused at the door.", ["reason"], registry=registry
        )
        self._calls_detached = Gauge(
            "voiceserver_calls_detached", "Calls kept for a caller whose connection broke.", registry=registry
        )
        self._calls_resumed = Counter(
            "voiceserver_calls_resumed", "Calls that went on over another connection.", registry=registry
        )
        self._calls_handed_on = Counter(
            "voiceserver_calls_handed_on",
            "Connections given to the process that keeps their call.",
            registry=registry,
        )
        self._calls_given_up = Counter(
            "voiceserver_calls_given_up",
            "Kept calls that nobody came back to.",
            ["reason"],
            registry=registry,
        )
        self._http = Counter(
            "voiceserver_http_responses", "Plain HTTP answers.", ["status"], registry=registry
        )
        self._errors = Counter(
            "voiceserver_client_errors",
            "Mistakes of clients that were answered.",
            ["code"],
            registry=registry,
        )
        self._busy = Counter(
            "voiceserver_busy_signals", "Busy signals sent.", ["stage", "reason"], registry=registry
        )
        self._replies = Counter(
            "voiceserver_replies", "Replies, by how they ended.", ["reason"], registry=registry
        )
        self._fillers = Counter(
            "voiceserver_fillers", "Fillers said because a reply was late.", registry=registry
        )
        self._audio = Counter(
            "voiceserver_audio_seconds",
            "Audio of closed sessions: received = consumed + dropped + discarded.",
            ["fate"],
            registry=registry,
        )
        self._turn = Histogram(
            "voiceserver_turn_seconds",
            "The measured split of a turn; first_audio counts from the end-of-turn decision.",
            ["part"],
            buckets=_TURN_BUCKETS,
            registry=registry,
        )
        self._loop_lag = Histogram(
            "voiceserver_loop_lag_seconds",
            "How late the event loop runs what is due.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        self._refusal = Histogram(
            "voiceserver_refusal_seconds",
            "From reading a request to its refusal, written.",
            buckets=_REFUSAL_BUCKETS,
            registry=registry,
        )
        self._children: dict[tuple[str, ...], Counter] = {}
        self._audio_of = {
            fate: self._audio.labels(fate) for fate in ("received", "consumed", "dropped", "discarded")
        }
        self._part_of = {part: self._turn.labels(part) for part in _PIECES}

    def observe_state(self, is_draining: Callable[[], bool], wires: Iterable[str]) -> None:
        """Read at every scrape whether the server drains, and have counters begin at 0, also for each of ``wires``."""
        self._registry.register(_StateCollector(is_draining))
        for wire in wires:
            self._opened.labels(wire)
            self._closed.labels(wire, "1000")
        for counter, values in _ZEROS.items():
            for value in values:
                getattr(self, counter).labels(value)

    def observe_detached(self, count: Callable[[], int]) -> None:
        """Read at every scrape how many calls are kept."""
        self._calls_detached.set_function(count)

    def observe_pools(self, stats: Callable[[], Sequence[PoolStats]]) -> None:
        """Read ``stats`` at every scrape."""
        self._registry.register(_PoolCollector(stats))

    def observe_admission(
        self,
        admission: Admitting,
        controller: Retreating,
        live: Callable[[], Iterable[ev.Accounting]],
    ) -> None:
        """Read who is in, who waits, and the accounting of ``live`` sessions at every scrape."""
        self._registry.register(_AdmissionCollector(admission, controller, live))

    @_unfailing
    def count_connection(self, change: int) -> None:
        """``change``: 1 for one that opens, -1 for one that ends."""
        self._connections.inc(change)

    @_unfailing
    def count_resumed(self) -> None:
        self._calls_resumed.inc()

    @_unfailing
    def count_handed_on(self) -> None:
        self._calls_handed_on.inc()

    @_unfailing
    def observe_loop_lag(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)

    @_unfailing
    def observe_refusal(self, seconds: float) -> None:
        self._refusal.observe(seconds)

    @_unfailing
    def count_opened(self, wire: str) -> None:
        self._sessions.inc()
        self._inc(self._opened, wire)

    @_unfailing
    def count_closed(self, wire: str, code: int, accounting: ev.Accounting) -> None:
        self._sessions.dec()
        self._inc(self._closed, wire, str(code) if code < FIRST_PRIVATE_CODE else "private")
        for fate, counter in self._audio_of.items():
            counter.inc(max(getattr(accounting, f"{fate}_ms"), 0.0) / 1000.0)

    @_unfailing
    def count_refused(self, reason: str) -> None:
        self._inc(self._refused, reason)

    @_unfailing
    def count_given_up(self, reason: str) -> None:
        self._inc(self._calls_given_up, reason)

    @_unfailing
    def count_http(self, status: int) -> None:
        self._inc(self._http, str(status))

    @_unfailing
    def count_error(self, code: str) -> None:
        self._inc(self._errors, code)

    @_unfailing
    def observe(self, event: ev.ServerEvent) -> None:
        """Count what an event says; most say nothing."""
        if type(event) is ev.ServerBusy:
            self._inc(self._busy, event.stage, event.reason)
        elif type(event) is ev.ReplyDone:
            self._inc(self._replies, event.reason)
            for part, histogram in self._part_of.items():
                took_ms = getattr(event.timings, f"{part}_ms")
                if took_ms is not None:
                    histogram.observe(took_ms / 1000.0)
        elif type(event) is ev.ReplyFiller:
            self._fillers.inc()

    def _inc(self, counter: Counter, *labels: str) -> None:
        key = (counter._name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = counter.labels(*labels)
        child.inc()

    def own_families(self) -> list[Metric]:
        """What this process knows."""
        return [*self._registry.collect(), *of_observers(self.faults)]

    def collect(self) -> Iterable[Metric]:
        """Those of all processes, where there are several."""
        families = self.own_families()
        return families if self._merge is None else self._merge(families)

    def history_samples(self) -> Iterator[tuple[str, Sample]]:
        """Those that ``history`` keeps, of all processes."""
        for family in self.collect():
            for sample in family.samples:
                name, part = sample.name, sample.labels.get("part")
                is_kept = name in HISTORY_GAUGES or name in HISTORY_COUNTERS
                if is_kept or (name in _HISTORY_BUCKETS and part == _HISTORY_BUCKETS[name]):
                    yield name, Sample(sample.labels, sample.value)

    def history_counts(self) -> Iterator[tuple[str, Sample]]:
        """What is counted here of what ``history`` keeps, read without a scrape; counters are summed over their labels."""
        for metric in (self._sessions, self._refused, self._busy):
            (family,) = metric.collect()
            name = "voiceserver_sessions" if metric is self._sessions else f"{family.name}_total"
            yield name, Sample({}, sum(sample.value for sample in family.samples))
        for histogram, labels in (
            (self._part_of["first_audio"], {"part": "first_audio"}),
            (self._loop_lag, {}),
        ):
            (family,) = histogram.collect()
            for sample in family.samples:
                if "le" in sample.labels:
                    yield sample.name, Sample({**labels, **sample.labels}, sample.value)

    def to_text(self) -> bytes:
        return generate_latest(self)

    def to_samples(self) -> dict[str, list[Sample]]:
        """The same as values: by name, each with its labels."""
        found: dict[str, list[Sample]] = {}
        for family in self.collect():
            for sample in family.samples:
                found.setdefault(sample.name, []).append(Sample(sample.labels, sample.value))
        return found


# Labels that are there from the start: a rate needs a zero before the first count.
_ZEROS: Final = {
    "_refused": ("at_capacity", "tenant_share", "draining"),
    "_calls_given_up": ("expired", "evicted", "too_much_unheard", "draining"),
    "_replies": ("completed", "interrupted", "cancelled", "failed", "limited", "filtered"),
}


class _StateCollector(Collector):
    def __init__(self, is_draining: Callable[[], bool]) -> None:
        self._is_draining = is_draining
        self._labels = {"version": _installed_version(), "python": platform.python_version()}

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "voiceserver_build_info",
            "The version that runs; the value is the number of processes.",
            labels=list(self._labels),
        )
        build.add_metric(list(self._labels.values()), 1.0)
        yield build
        yield GaugeMetricFamily(
            "voiceserver_draining", "Server processes that are draining.", value=float(self._is_draining())
        )


def _installed_version() -> str:
    try:
        return importlib.metadata.version("voiceserver")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def of_observers(faults: int) -> Iterator[Metric]:
    """What was lost of logs and metrics themselves."""
    yield log_lines_lost(LOST_LINES.counts())
    yield CounterMetricFamily(
        "voiceserver_metric_faults", "Faults while counting, kept from callers.", value=faults
    )


def log_lines_lost(counts: Mapping[str, int]) -> Metric:
    """``counts``: by reason."""
    lost = CounterMetricFamily(
        "voiceserver_log_lines_lost",
        "Log lines lost: their reader had stopped or was gone, their disk was full, or they could not be made.",
        labels=["reason"],
    )
    for reason, count in counts.items():
        lost.add_metric([reason], count)
    return lost


class _AdmissionCollector(Collector):
    def __init__(
        self,
        admission: Admitting,
        controller: Retreating,
        live: Callable[[], Iterable[ev.Accounting]],
    ) -> None:
        self._admission = admission
        self._controller = controller
        self._live = live

    def collect(self) -> Iterator[Metric]:
        admission, controller = self._admission, self._controller
        gauges = {
            "talkers": ("Callers with a talker's place.", admission.talkers),
            "talkers_limit": ("Talkers that are let in at once; 0: no limit.", admission.limit),
            "waiting": ("Callers in the waiting room.", admission.waiting),
            "degrade_level": (
                "How far the server has retreated: an index of Ladder.STEPS.",
                controller.level,
            ),
            "standing_delay_seconds": (
                "Delay that has not gone away for half a second.",
                controller.standing_ms / 1e3,
            ),
            "busiest_stage_ratio": ("Working time of the busiest stage, smoothed.", controller.busy),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"voiceserver_{name}", text, value=value)
        family = GaugeMetricFamily(
            "voiceserver_live_audio_seconds",
            "Audio of open sessions: received = consumed + buffered + dropped.",
            labels=["fate"],
        )
        sums = dict.fromkeys(("received", "consumed", "buffered", "dropped"), 0.0)
        for accounting in self._live():
            sums["received"] += accounting.received_ms
            sums["consumed"] += accounting.consumed_ms
            sums["buffered"] += accounting.discarded_ms  # what is still there counts so until the end
            sums["dropped"] += accounting.dropped_ms
        for fate, ms in sums.items():
            family.add_metric([fate], ms / 1e3)
        yield family


class _PoolCollector(Collector):
    def __init__(self, stats: Callable[[], Sequence[PoolStats]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        pools = self._stats()
        yield _by_stage("voiceserver_stage_streams", "Open streams.", pools, lambda pool: pool.streams)
        yield _by_stage("voiceserver_stage_free", "Places for more streams.", pools, lambda pool: pool.free)
        yield _by_stage(
            "voiceserver_stage_lag_seconds",
            "Age of the oldest request.",
            pools,
            lambda pool: pool.lag_ms / 1000.0,
        )
        yield _by_stage(
            "voiceserver_stage_mean_batch", "Items per engine step.", pools, lambda pool: pool.mean_batch
        )
        yield _by_stage(
            "voiceserver_stage_lighter_streams",
            "Open streams on the stage's lighter engine.",
            pools,
            lambda pool: pool.lighter_streams,
        )
        yield _workers(pools)
        yield _restarts(pools)
        yield _skipped(pools)
        yield from _endpoints(pools)
        yield from _each_worker(pools)


def _by_stage(
    name: str, text: str, pools: Iterable[PoolStats], value_of: Callable[[PoolStats], float | None]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["stage"])
    for pool in pools:
        value = value_of(pool)
        if value is not None:
            family.add_metric([pool.stage], value)
    return family


def _workers(pools: Iterable[PoolStats]) -> GaugeMetricFamily:
    family = GaugeMetricFamily("voiceserver_workers", "Worker processes by state.", labels=["stage", "state"])
    for pool in pools:
        for state in ("starting", "ready", "hung", "dead", "backoff"):
            family.add_metric([pool.stage, state], sum(worker.state == state for worker in pool.workers))
    return family


def _restarts(pools: Iterable[PoolStats]) -> CounterMetricFamily:
    family = CounterMetricFamily("voiceserver_worker_restarts", "Workers started again.", labels=["stage"])
    for pool in pools:
        family.add_metric([pool.stage], pool.restarts)
    return family


def _endpoints(pools: Iterable[PoolStats]) -> Iterator[Metric]:
    """Of stages that ask a remote side, as language models are."""
    requests = CounterMetricFamily(
        "voiceserver_endpoint_requests", "Answers asked of a remote endpoint.", labels=["stage", "outcome"]
    )
    up = GaugeMetricFamily(
        "voiceserver_endpoint_up", "1 while the remote endpoint answers.", labels=["stage"]
    )
    first = GaugeMetricFamily(
        "voiceserver_endpoint_first_word_seconds",
        "Moving average of the time to the first word of an answer.",
        labels=["stage"],
    )
    for pool in pools:
        remote = pool.remote
        if remote is not None:
            counts = {"asked": remote.asked, "failed": remote.failed, "cancelled": remote.cancelled}
            for outcome, count in counts.items():
                requests.add_metric([pool.stage, outcome], count)
            up.add_metric([pool.stage], float(remote.is_up))
            first.add_metric([pool.stage], remote.first_ms / 1000.0)
    yield from (requests, up, first)


def _skipped(pools: Iterable[PoolStats]) -> CounterMetricFamily:
    text = "Parts of a remote engine's answers that could not be read and were passed over."
    family = CounterMetricFamily("voiceserver_stage_skipped", text, labels=["stage"])
    for pool in pools:
        family.add_metric([pool.stage], pool.skipped)
    return family


def process_restarts(count: int) -> CounterMetricFamily:
    """Counted by the supervisor of several server processes; a server of one process has none."""
    text = "Server processes that were lost and started again."
    return CounterMetricFamily("voiceserver_process_restarts", text, value=count)


def _each_worker(pools: Sequence[PoolStats]) -> Iterator[Metric]:
    labels = ["stage", "worker"]
    state = GaugeMetricFamily(
        "voiceserver_worker_state", "1 for the state that a worker is in.", labels=[*labels, "state"]
    )
    gauges: dict[str, tuple[str, Callable[[WorkerStats], float]]] = {
        "streams": ("Open streams of one worker.", lambda worker: worker.streams),
        "queued": ("Requests that the worker has not taken.", lambda worker: worker.queued),
        "queue_age_seconds": ("Age of the oldest of them.", lambda worker: worker.queue_age_ms / 1000.0),
        "step_seconds": ("Moving average of one engine step.", lambda worker: worker.service_ms / 1000.0),
    }
    counters: dict[str, tuple[str, Callable[[WorkerStats], float]]] = {
        "steps": ("Engine steps: batches.", lambda worker: worker.batches),
        "items": ("Items in those batches.", lambda worker: worker.items),
    }
    families: list[tuple[GaugeMetricFamily | CounterMetricFamily, Callable[[WorkerStats], float]]] = []
    for kind, table in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
        for name, (text, value_of) in table.items():
            families.append((kind(f"voiceserver_worker_{name}", text, labels=labels), value_of))
    for pool in pools:
        for worker in pool.workers:
            key = [pool.stage, str(worker.index)]
            state.add_metric([*key, worker.state], 1.0)
            for family, value_of in families:
                family.add_metric(key, value_of(worker))
    yield state
    yield from (family for family, _ in families)


class StageCapacity(msgspec.Struct, frozen=True):
    """One stage of ``/v1/capacity``. ``free`` null: no limit."""

    engine: str
    workers: int
    ready: int
    streams: int
    free: int | None
    lag_ms: float
    mean_batch: float
    restarts: int

    @classmethod
    def of(cls, stats: PoolStats) -> StageCapacity:
        return cls(
            engine=stats.engine,
            workers=len(stats.workers),
            ready=sum(worker.state == "ready" for worker in stats.workers),
            streams=stats.streams,
            free=stats.free,
            lag_ms=round(stats.lag_ms, 3),
            mean_batch=round(stats.mean_batch, 2),
            restarts=stats.restarts,
        )
