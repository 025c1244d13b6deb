"""Stored results as Markdown: one table a benchmark, and the eight figures of README.

Rule: every figure comes out of a document as it was stored; what a document lacks is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from benchmarks.report.svg import number

Document = dict[str, Any]
Rows = list[list[object]]
Find = Callable[..., Document | None]


def table(columns: list[str], rows: Rows) -> str:
    """Markdown, figures as a person reads them."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" + " ---: |" * (len(columns) - 1)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return number(float(value)) if isinstance(value, float) else f"{value:,}"
    return str(value)


def _pair(found: Any) -> str:
    """p50 / p99, from a pair or from percentiles by name; a dash where nothing was measured."""
    if not found:
        return "-"
    p50, p99 = (found["p50"], found["p99"]) if isinstance(found, dict) else found
    return f"{number(float(p50))} / {number(float(p99))}"


# ------------------------------------------------------------------------------------------------------ the tables


def connection(document: Document) -> str:
    figures = document["figures"]
    names = ["ours", *(name for name in figures if name != "ours")]
    wanted = {
        "memory per idle connection (bytes)": "bytes_per_connection",
        "message from the socket to where it belongs, in bursts (us of CPU)": "to_ring_us",
        "and a worker's answer to it (us of CPU)": "receive_us",
        "the same, one message at a time (us of CPU)": "receive_single_us",
        "received and echoed (us of CPU)": "echo_us",
        "result to the socket (us of CPU)": "speak_us",
        "handshakes per second and core": "handshakes_per_core_second",
        "worst collection while they came (ms)": "worst_collection_ms",
    }
    rows: Rows = [
        [title, *(figures[name].get(key, "") for name in names)]
        for title, key in wanted.items()
        if key in figures["ours"]
    ]
    told = table([f"{document['connections']:,} connections, messages of 3,200 bytes", *names], rows)
    storm = document.get("storm")
    return f"{told}\n\n{_storm(storm)}" if isinstance(storm, dict) else told


def _storm(storm: Document) -> str:
    """Whatever was counted when everybody came at once."""
    rows: Rows = [
        [name.replace("_", " "), ("yes" if value else "NO") if isinstance(value, bool) else value]
        for name, value in storm.items()
        if not isinstance(value, dict)
    ]
    return table(["everybody connects at once", ""], rows)


def ring(document: Document) -> str:
    rows: dict[str, list[object]] = {}
    sizes = sorted({row["size_bytes"] for row in document["results"]})
    for row in document["results"]:
        rows.setdefault(row["transport"], []).append(float(row["cpu_us"]))
    return table(
        ["CPU per message, both sides (us)", *(f"{size:,} B" for size in sizes)],
        [[name, *cells] for name, cells in rows.items()],
    )


def sessions(document: Document) -> str:
    rows: Rows = [[name, float(value)] for name, value in document["figures"].items()]
    if "largest" in document:
        rows.append(["most callers with nothing dropped and p99 under 60 ms", document["largest"]])
    return table([f"{document['sessions']:,} listeners, one loop, one worker", ""], rows)


def turn(document: Document) -> str:
    rows: Rows = [
        [name, *(float(row[rank]) for rank in ("p50", "p95", "p99"))]
        for name, row in document["milliseconds"].items()
    ]
    return table(["end of turn to answer (ms)", "p50", "p95", "p99"], rows)


def batching(document: Document) -> str:
    rows: Rows = []
    for model, rates in document["designs"].items():
        for name, rate in rates.items():
            rows.append([f"{model}: {name}", float(rate), float(rate / rates["one by one"])])
    designs = table(
        [f"the same work, {document['processes']} processes", "items/s", "times one by one"], rows
    )
    gained: Rows = [
        [f"{model}, {dtype}", *(float(gains[batch]) for batch in ("8", "32"))]
        for model, dtypes in document["gains"].items()
        for dtype, gains in dtypes.items()
        if {"8", "32"} <= gains.keys()
    ]
    return f"{designs}\n\n{table(['times as much in one thread', 'batch 8', 'batch 32'], gained)}"


def serving(document: Document) -> str:
    limit = float(document["bare_audio_s_per_cpu_s"])
    rows: Rows = [["the bare model, in batches", limit, "100%", "", "", "", ""]]
    rows += [
        [
            f"{row['sessions']} sessions, {row['side']}",
            float(row["audio_s_per_cpu_s"]),
            f"{row['audio_s_per_cpu_s'] / limit:.0%}",
            _pair((row["p50_ms"], row["p99_ms"])),
            f"{row['answered']:.0%}",
            row["told"],
            float(row["memory_mib"]),
        ]
        for row in document["rows"]
    ]
    columns = ["one model, served", "audio s per CPU s", "of the bare model", "p50 / p99 (ms)", "answered"]
    return "\n\n".join(
        [table([*columns, "told that it is busy", "memory (MiB)"], rows), *_overloaded(document)]
    )


def _overloaded(document: Document) -> list[str]:
    """At twice what one worker carries; nothing where that was not measured."""
    rows: Rows = [
        [
            f"{row['sessions']} sessions, {row['side']}",
            f"{row['answered']:.0%}",
            _pair((row["p50_ms"], row["p99_ms"])),
            row["told"],
            float(row["told_at_p99_ms"]) if row["told"] else "-",
            float(row["untold_s"]),
        ]
        for row in document.get("overloaded", ())
    ]
    columns = [
        "twice what one worker carries",
        "answered",
        "p50 / p99 (ms)",
        "told",
        "told when late by (p99, ms)",
    ]
    return [table([*columns, "behind, untold (s, all sessions)"], rows)] if rows else []


def overload(document: Document) -> str:
    rows: Rows = [
        [
            f"{row['load']}, {side}",
            row["offered"],
            float(row["talkers"]),
            row["refusals"],
            float(row["goodput"]),
            f"{row['in_time']:.0%}",
            _pair(row["final_ms"]),
            _pair(row["signal_ms"]),
            float(row["silence_s"]),
            "-" if row["unaccounted_ms"] is None else float(round(row["unaccounted_ms"], 3)),
        ]
        for side, key in (("ours", "voiceserver"), ("the usual design", "naive"))
        for row in document[key]
    ]
    columns = [
        f"load, of the capacity ({document['capacity']} talkers)",
        "callers",
        "let in",
        "503s",
        "heard in time",
    ]
    columns += ["part of their speech", "final p50 / p99 (ms)", "told p50 / p99 (ms)", "silence (s)"]
    return table([*columns, "unaccounted (ms)"], rows)


def recovery(document: Document) -> str:
    parts = ("detected", "signalled", "respawned", "delayed")
    rows: Rows = [
        [
            _fault(name),
            *(_pair(fault["ms"].get(part)) for part in parts),
            fault["lost_words"],
            fault["doubled_words"],
        ]
        for name, fault in document["faults"].items()
    ]
    columns = [f"{document['rounds']} rounds each; p50 / p99, ms", "known", "callers told", "new worker"]
    return table([*columns, "answer late by", "words lost", "said twice"], rows)


def _fault(name: str) -> str:
    stage, _, kind = name.partition(" ")
    return f"{stage} worker {'killed' if kind == 'SIGKILL' else 'hung' if kind == 'SIGSTOP' else kind}"


def soak(document: Document) -> str:
    ping = " / ".join(number(document["ping_ms"][rank]) for rank in ("p50", "p99", "p99.9"))
    rows: Rows = [
        ["connections held, lost", f"{document['held']:,}, {document['lost']:,}"],
        ["talkers among them, turns answered", f"{document['talkers']:,}, {document['replies']:,.0f}"],
        ["ping to pong p50 / p99 / p99.9 (ms)", ping],
        ["end of turn to reply audio p50 / p99 (ms)", _pair(document.get("first_audio_ms"))],
        ["told that the worker was killed", int(document.get("worker_lost_told", 0))],
        ["server memory per idle connection (bytes)", document["bytes_per_connection"] or "not measured"],
        ["server memory in all (MiB), workers apart", document["server_memory_bytes"] / 2**20],
        ["loop lag p99 at most (ms)", float(document["loop_lag_p99_ms"])],
        [
            "silence (s), audio unaccounted for (ms)",
            f"{document['silence_s']:g}, {document['unaccounted_ms']:g}",
        ],
    ]
    return table([f"{document['connections']:,} connections for {document['seconds'] / 60:g} min", ""], rows)


# ---------------------------------------------------------------------------------------------------- the headlines


def headlines(find: Find) -> str:
    """The figures of README, each beside its alternative; "" without any result."""
    rows: Rows = [[*row] for row in _headlines(find)]
    return table(["", "measured", "instead"], rows) if rows else ""


def _headlines(find: Find) -> Iterator[tuple[str, str, str]]:
    found = find("ring")
    if found is not None:
        cost = {row["transport"]: row["cpu_us"] for row in found["results"] if row["size_bytes"] == 640}
        yield (
            "20 ms of audio to a worker process, CPU of both sides",
            f"{number(cost['slot ring'])} us",
            f"`run_in_executor`: {number(cost['run_in_executor, process pool'])} us"
            if "run_in_executor, process pool" in cost
            else "",
        )
    found = find("connection")
    if found is not None:
        ours, peer = found["figures"]["ours"], found["figures"].get("websockets", {})
        for title, key, unit in (
            ("memory of an idle connection, session ready to talk", "bytes_per_connection", "bytes"),
            ("100 ms of audio, from the socket into a worker's ring", "to_ring_us", "us of CPU"),
        ):
            if key not in ours:
                continue
            where = " to a coroutine" if key == "to_ring_us" else ""
            other = f"`websockets` asyncio{where}: {number(float(peer[key]))} {unit}" if key in peer else ""
            yield title, f"{number(float(ours[key]))} {unit}", other
    found = find("turn")
    row = found and found["milliseconds"].get("decision to first audio (client)")
    if row:
        yield (
            "from the decision that a turn is over to the first audio of its answer, p50 / p99",
            f"{_pair(row)} ms",
            "",
        )
    found = find("sessions")
    if found is not None:
        loop = found["figures"]["server loop (% of a core)"]
        told = found["figures"]["end of turn told, p99 (ms)"]
        yield (
            f"{found['sessions']:,} callers listened to in real time",
            f"loop {number(float(loop))}% of a core, end of turn announced in {number(float(told))} ms (p99)",
            "",
        )
    found = find("overload")
    if found is not None:
        yield from _beyond_capacity(found)
    found = find("soak")
    if found is not None:
        yield (
            f"{found['connections']:,} connections for {found['seconds'] / 60:g} minutes",
            f"{found['lost']:,} lost, ping p99 {number(float(found['ping_ms']['p99']))} ms,"
            f" server {number(found['server_memory_bytes'] / 2**20)} MiB in {found['server_processes']} processes",
            "",
        )
    found = find("recovery")
    if found is not None:
        worst = max(
            fault["ms"]["delayed"]["p99"] for fault in found["faults"].values() if "delayed" in fault["ms"]
        )
        lost = sum(fault["lost_words"] + fault["doubled_words"] for fault in found["faults"].values())
        yield (
            "a worker dies or hangs",
            f"answer late by {number(worst / 1000)} s at most, {lost} words lost or doubled",
            "",
        )


def _beyond_capacity(document: Document) -> Iterator[tuple[str, str, str]]:
    def share(rows: list[Document]) -> str:
        best, last = max(row["goodput"] for row in rows), rows[-1]["goodput"]
        return f"{last / best:.0%} of its best goodput" if best else "nothing"

    steps = [row for row in document["voiceserver"] if "storm" not in row["load"]]
    theirs = [row for row in document["naive"] if "storm" not in row["load"]]
    yield (
        f"{steps[-1]['load'].replace('x', ' times')} the callers that it can carry",
        f"{share(steps)}, {number(float(steps[-1]['silence_s']))} s of silence",
        f"process pool: {share(theirs)}, {number(float(theirs[-1]['silence_s']))} s" if theirs else "",
    )


TABLES: Final[dict[str, Callable[[Document], str]]] = {
    "connection": connection,
    "ring": ring,
    "sessions": sessions,
    "turn": turn,
    "batching": batching,
    "serving": serving,
    "overload": overload,
    "recovery": recovery,
    "soak": soak,
}
