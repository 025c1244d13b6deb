"""The figures and charts of README and docs, written from the stored results and from nothing else.

``python -m benchmarks.report.tables [--check]`` draws ``docs/charts/*.svg`` and rewrites three documents between their marks:
README has the block ``headlines``, ``docs/server-behaviour.md`` has ``recovery``, ``docs/benchmarks.md`` has ``headlines`` and
``benchmarks``. ``--check`` changes nothing and fails when a document would change. A missing result leaves its part out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.report import markdown
from benchmarks.report.results import RESULTS
from benchmarks.report.svg import bars, lines, nines

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENTS: Final = (ROOT / "README.md", ROOT / "docs/server-behaviour.md", ROOT / "docs/benchmarks.md")
CHARTS: Final = ROOT / "docs/charts"
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
        drawing = lines(
            "What a batch gives",
            series,
            "batch size",
            "items a second",
            x_scale=math.log10,
            y_scale=math.log10,
        )
        yield "batching", drawing
    overload = results.find("overload")
    if overload is not None:
        title = "Goodput against offered load"
        yield (
            "goodput",
            lines(title, _goodput(overload), "callers, by magnitude", _GOODPUT, x_scale=math.log10),
        )
    serving = results.find("serving")
    if serving is not None:
        yield "serving", _serving(serving)
    latencies = dict(_latencies(results))
    if latencies:
        title = "Latency, from half of all to the slowest few"
        drawing = lines(title, latencies, "percentile", "ms, by magnitude", x_scale=nines, y_scale=math.log10)
        yield "latency", drawing


_GOODPUT: Final = "callers let in, times the part of their speech whose words came in time"


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


def _serving(serving: Document) -> str:
    """At the number of sessions that most sides were measured with."""
    counts = [row["sessions"] for row in serving["rows"]]
    most = max(counts, key=lambda count: (counts.count(count), count == _SERVED))
    rows = {row["side"]: row["audio_s_per_cpu_s"] for row in serving["rows"] if row["sessions"] == most}
    ours = {"ours": rows.pop("ours")} if "ours" in rows else {}
    limit = {"the bare model": serving["bare_audio_s_per_cpu_s"]}
    return bars(f"One model for {most} callers", {**ours, **limit, **rows}, "audio seconds per CPU second")


_SERVED: Final = 250


def _latencies(results: Results) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    turn = results.find("turn")
    if turn is not None:
        for name, title in (
            ("final transcript", "turn: transcript"),
            ("decision to first audio (client)", "turn: first audio"),
        ):
            if name in turn["milliseconds"]:
                yield title, _points(turn["milliseconds"][name])
    sessions = results.find("sessions")
    if sessions is not None:
        figures = sessions["figures"]
        ranks = {f"p{rank}": figures[f"end of turn told, p{rank} (ms)"] for rank in (50, 99)}
        yield f"{sessions['sessions']:,} listeners: turn", _points(ranks)
    soak = results.find("soak", "soak-short")
    if soak is not None:
        yield f"{soak['connections']:,} held: ping", _points(soak["ping_ms"])


def _points(row: Document) -> list[tuple[float, float]]:
    """(percentile, ms), as far as a chart by magnitude can show them."""
    found = (
        (float(name[1:]), float(ms)) for name, ms in row.items() if name[:1] == "p" and name[1:2].isdigit()
    )
    return sorted((rank, ms) for rank, ms in found if ms > 0)


# ---------------------------------------------------------------------------------------------------------- blocks

# What stands where: (results, the first that is there; title; charts).
_PARTS: Final[tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...]] = (
    (("connection",), "What a connection costs", ("memory-per-connection", "cost-per-message")),
    (("ring",), "What it costs to reach a worker", ("ring",)),
    (("sessions",), "Listeners in real time", ()),
    (("sessions-openai",), "The same, over OpenAI Realtime", ()),
    (("turn",), "How long a caller waits", ("latency",)),
    (("turn-openai",), "Turns over OpenAI Realtime, and native ones between them", ()),
    (("turn-ahead",), "Answers of a language model, asked for at the end of the turn and ahead of it", ()),
    (("batching",), "Batching", ("batching",)),
    (("serving",), "Serving one's own model", ("serving",)),
    (("overload",), "Beyond capacity", ("goodput",)),
    (("soak", "soak-short"), "Soak", ()),
)


def blocks(results: Results) -> dict[str, str]:
    """What stands between the marks of each name."""
    recovery = results.find("recovery")
    return {
        "headlines": markdown.headlines(results.find),
        "recovery": markdown.recovery(recovery) if recovery is not None else "",
        "benchmarks": "\n\n".join(_details(results)),
    }


def _details(results: Results) -> Iterator[str]:
    drawn = {name for name, _ in charts(results)}
    found = [
        (document, title, images)
        for names, title, images in _PARTS
        if (document := results.find(*names)) is not None
    ]
    machines = {_machine(document["machine"]) for document, _, _ in found}
    if machines:
        where = "; ".join(sorted(machines))
        yield f"Measured on {where}. The files are in `benchmarks/results`."
    for document, title, images in found:
        yield f"### {title}"
        yield markdown.TABLES[document["benchmark"].partition("-")[0]](document)
        yield from (f"![{title}](charts/{name}.svg)" for name in images if name in drawn)


def _machine(machine: Document) -> str:
    return f"{machine['cores']} cores of {machine['cpu_model']}, Python {machine['python']}"


def marks(name: str) -> tuple[str, str]:
    """What begins and what ends the block ``name``."""
    return f"<!-- {name}: begin (python -m benchmarks.report.tables) -->", f"<!-- {name}: end -->"


def render(
    results: Results | None = None, documents: Sequence[Path] = DOCUMENTS, drawings: Path = CHARTS
) -> list[Path]:
    """Write the charts and the blocks of ``documents``. Returns the files written."""
    results = results or Results()
    written = []
    for name, drawing in charts(results):
        path = drawings / f"{name}.svg"
        path.write_text(drawing)
        written.append(path)
    found = blocks(results)
    for document in documents:
        text = document.read_text()
        current = with_blocks(text, found)
        if current != text:
            document.write_text(current)
            written.append(document)
    return written


def with_blocks(text: str, told: dict[str, str]) -> str:
    """``text`` with each block in its place; a block without marks in it is left out."""
    for name, body in told.items():
        begin, end = marks(name)
        at, stop = text.find(begin), text.find(end)
        if 0 <= at < stop:
            text = (
                text[:at] + "\n\n".join(part for part in (begin, body, end) if part) + text[stop + len(end) :]
            )
    return text


def stale(documents: Sequence[Path] = DOCUMENTS) -> list[Path]:
    """The documents whose figures are not those of the stored results."""
    found = blocks(Results())
    return [path for path in documents if with_blocks(text := path.read_text(), found) != text]


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Only look whether the documents are as the files say.")
    ] = False,
) -> None:
    """Render the figures of README and docs."""
    if check:
        found = [path.name for path in stale()]
        if found:
            print(
                f"{', '.join(found)}: not the figures of benchmarks/results: python -m benchmarks.report.tables"
            )
            raise typer.Exit(1)
        return
    for path in render():
        print(f"rendered {path}")


if __name__ == "__main__":
    typer.run(main)
