"""README's figures and charts, written from the stored results and from nothing else.

``python -m benchmarks.report_tables [--check]`` draws ``results/*.svg`` and rewrites the block of README between its two marks.
``--check`` changes nothing and fails when README would change. A result that is not there leaves its part out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.report import RESULTS
from benchmarks.svg import bars, lines, number

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN: Final = "<!-- benchmarks: begin (python -m benchmarks.report_tables) -->"
END: Final = "<!-- benchmarks: end -->"

Document = dict[str, Any]


class Results:
    """The stored results by name."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder
        self._documents = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}

    def find(self, *names: str) -> Document | None:
        """The first of ``names`` that is there."""
        return next((self._documents[name] for name in names if name in self._documents), None)


# --------------------------------------------------------------------------------------------------------- charts


def charts(results: Results) -> Iterator[tuple[str, str]]:
    """(name, SVG) of every chart that the results carry."""
    connection = results.find("connection")
    if connection is not None:
        figures = connection["figures"]
        yield (
            "memory-per-connection",
            _of_sides(
                "Memory per idle connection", figures, "bytes_per_connection", "bytes of server memory"
            ),
        )
        yield (
            "cost-per-message",
            _of_sides("A message of 3,200 bytes received", figures, "receive_us", "microseconds of CPU"),
        )
    ring = results.find("ring")
    if ring is not None:
        rows = {row["transport"]: row["cpu_us"] for row in ring["results"] if row["size_bytes"] == 640}
        ordered = {"slot ring": rows.pop("slot ring"), **dict(sorted(rows.items(), key=lambda row: row[1]))}
        yield "ring", bars("20 ms of audio to another process", ordered, "microseconds of CPU", is_log=True)
    batching = results.find("batching")
    if batching is not None:
        series = {
            f"{model} {dtype}": [(row["batch"], row["per_s"]) for row in rows]
            for model, dtypes in batching["sizes"].items()
            for dtype, rows in dtypes.items()
        }
        yield "batching", lines("What a batch gives", series, "batch size", "items a second", is_log=True)
    overload = results.find("overload")
    if overload is not None:
        yield "goodput", lines("Goodput against offered load", _goodput(overload), "calls offered", _GOODPUT)
    latencies = dict(_latencies(results))
    if latencies:
        yield (
            "latency",
            lines("Latency, from half of all to the slowest hundredth", latencies, "percentile", "ms"),
        )


_GOODPUT: Final = "seconds of speech per second whose words came in time"


def _of_sides(title: str, figures: Document, key: str, unit: str) -> str:
    found = {name: side[key] for name, side in figures.items() if key in side}
    return bars(title, {"ours": found.pop("ours"), **found}, unit)


def _goodput(overload: Document) -> dict[str, list[tuple[float, float]]]:
    names = {"voiceserver": "voiceserver", "naive": "the usual design"}
    return {
        title: [(row["offered"], row["goodput"]) for row in overload[key] if "storm" not in row["load"]]
        for key, title in names.items()
        if overload.get(key)
    }


def _latencies(results: Results) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    turn = results.find("turn")
    if turn is not None:
        row = turn["milliseconds"].get("decision to first audio (client)")
        if row is not None:
            yield "turn to audio", [(50, row["p50"]), (95, row["p95"]), (99, row["p99"])]
    soak = results.find("soak", "soak-short")
    if soak is not None:
        ms = soak["ping_ms"]
        yield "soak: ping", [(50, ms["p50"]), (99, ms["p99"]), (99.9, ms["p99.9"])]


# ---------------------------------------------------------------------------------------------------------- tables


def table(columns: list[str], rows: list[list[object]]) -> str:
    """Markdown, figures as a person reads them."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" + " ---: |" * (len(columns) - 1)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return number(float(value)) if isinstance(value, float) else f"{value:,}"
    return str(value)


def _connection(document: Document) -> str:
    figures = document["figures"]
    names = ["ours", *(name for name in figures if name != "ours")]
    wanted = {
        "memory per idle connection (bytes)": "bytes_per_connection",
        "message received (us of CPU)": "receive_us",
        "result to the socket (us of CPU)": "speak_us",
        "handshakes per second and core": "handshakes_per_core_second",
    }
    rows: list[list[object]] = [
        [title, *(figures[name].get(key, "") for name in names)]
        for title, key in wanted.items()
        if key in figures["ours"]
    ]
    return table([f"{document['connections']:,} connections", *names], rows)


def _ring(document: Document) -> str:
    rows: dict[str, list[object]] = {}
    sizes = sorted({row["size_bytes"] for row in document["results"]})
    for row in document["results"]:
        rows.setdefault(row["transport"], []).append(float(row["cpu_us"]))
    return table(
        ["CPU per message, both sides (us)", *(f"{size:,} B" for size in sizes)],
        [[name, *cells] for name, cells in rows.items()],
    )


def _sessions(document: Document) -> str:
    figures = document["figures"]
    rows: list[list[object]] = [[name, float(value)] for name, value in figures.items()]
    if "largest" in document:
        rows.append(["most callers with nothing dropped and p99 under 60 ms", document["largest"]])
    return table([f"{document['sessions']:,} listeners, one loop, one worker", ""], rows)


def _turn(document: Document) -> str:
    rows: list[list[object]] = [
        [name, *(float(row[rank]) for rank in ("p50", "p95", "p99"))]
        for name, row in document["milliseconds"].items()
    ]
    return table(["end of turn to answer (ms)", "p50", "p95", "p99"], rows)


def _batching(document: Document) -> str:
    rows: list[list[object]] = []
    for model, rates in document["designs"].items():
        for name, rate in rates.items():
            rows.append([f"{model}: {name}", float(rate), float(rate / rates["one by one"])])
    return table([f"the same work, {document['processes']} processes", "items/s", "times one by one"], rows)


def _serving(document: Document) -> str:
    rows: list[list[object]] = [
        [
            f"{row['side']}, {row['sessions']} sessions",
            *(float(row[key]) for key in ("audio_s_per_cpu_s", "p50_ms", "p99_ms", "memory_mib")),
        ]
        for row in document["rows"]
    ]
    return table(["one model, served", "audio s per CPU s", "p50 (ms)", "p99 (ms)", "memory (MiB)"], rows)


def _soak(document: Document) -> str:
    ping = " / ".join(number(document["ping_ms"][rank]) for rank in ("p50", "p99", "p99.9"))
    rows: list[list[object]] = [
        ["connections held, lost", f"{document['held']:,}, {document['lost']:,}"],
        ["talkers among them, turns answered", f"{document['talkers']:,}, {document['replies']:,.0f}"],
        ["ping to pong p50 / p99 / p99.9 (ms)", ping],
        ["server memory per connection (bytes)", document["bytes_per_connection"]],
        ["server memory in all (MiB), workers apart", document["server_memory_bytes"] / 2**20],
        ["loop lag p99 at most (ms)", float(document["loop_lag_p99_ms"])],
        [
            "silence (s), audio unaccounted for (ms)",
            f"{document['silence_s']:g}, {document['unaccounted_ms']:g}",
        ],
    ]
    return table([f"{document['connections']:,} connections for {document['seconds'] / 60:g} min", ""], rows)


_TABLES: Final = (
    (("connection",), "What a connection costs", _connection, ("memory-per-connection", "cost-per-message")),
    (("ring",), "What it costs to reach a worker", _ring, ("ring",)),
    (("sessions",), "Listeners in real time", _sessions, ()),
    (("turn",), "How long a caller waits", _turn, ("latency",)),
    (("batching",), "Batching", _batching, ("batching",)),
    (("serving",), "Serving one's own model", _serving, ()),
    (("overload",), "Beyond capacity", None, ("goodput",)),
    (("soak", "soak-short"), "Soak", _soak, ()),
)


def block(results: Results) -> str:
    """What stands between the marks."""
    drawn = {name for name, _ in charts(results)}
    parts = []
    machine: Document = {}
    for names, title, make, images in _TABLES:
        document = results.find(*names)
        if document is None:
            continue
        machine = document["machine"]
        parts.append(f"### {title}")
        if make is not None:
            parts.append(make(document))
        parts += [f"![{title}](benchmarks/results/{image}.svg)" for image in images if image in drawn]
    if machine:
        where = f"Measured on {machine['cores']} cores of {machine['cpu_model']}, Python {machine['python']}."
        parts.insert(0, f"{where} The files are in [benchmarks/results](benchmarks/results).")
    return "\n\n".join([BEGIN, *parts, END])


def render(results: Results | None = None, readme: Path = README) -> list[Path]:
    """Write charts and README's block; the files written."""
    results = results or Results()
    written = []
    for name, drawing in charts(results):
        path = results.folder / f"{name}.svg"
        path.write_text(drawing)
        written.append(path)
    text = readme.read_text()
    told = with_block(text, block(results))
    if told != text:
        readme.write_text(told)
        written.append(readme)
    return written


def with_block(text: str, told: str) -> str:
    """``text`` with ``told`` in the place of its block; unchanged where it has none."""
    begin, end = text.find(BEGIN), text.find(END)
    return text if begin < 0 or end < begin else text[:begin] + told + text[end + len(END) :]


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Only look whether README is as the files say.")
    ] = False,
) -> None:
    """Render README's figures."""
    if check:
        text = README.read_text()
        if BEGIN not in text or with_block(text, block(Results())) != text:
            print("README's figures are not those of benchmarks/results: python -m benchmarks.report_tables")
            raise typer.Exit(1)
        return
    for path in render():
        print(f"rendered {path}")


if __name__ == "__main__":
    typer.run(main)
