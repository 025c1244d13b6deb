"""From stored results to ratios, charts and README: nothing invented, nothing lost, regressions found."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import Change, changes, read_ratios, report, summarise
from benchmarks.ratios import ratios_of
from benchmarks.report_tables import BEGIN, END, Results, block, charts, render, with_block
from benchmarks.svg import bars, lines

MACHINE = {"cores": 2, "cpu_model": "Abacus 9", "python": "3.11.7"}
RING: dict[str, Any] = {
    "benchmark": "ring",
    "machine": MACHINE,
    "results": [
        {"transport": "slot ring", "size_bytes": 640, "cpu_us": 1.5, "of_memcpy": 0.1},
        {"transport": "memcpy (limit)", "size_bytes": 640, "cpu_us": 0.1, "of_memcpy": 1.0},
        {"transport": "mp.Pipe", "size_bytes": 640, "cpu_us": 9.0, "of_memcpy": 0.01},
    ],
}
BATCHING: dict[str, Any] = {
    "benchmark": "batching",
    "machine": MACHINE,
    "processes": 2,
    "sizes": {"gru": {"float32": [{"batch": 1, "per_s": 100.0}, {"batch": 8, "per_s": 800.0}]}},
    "gains": {"gru": {"float32": {"1": 1.0, "8": 8.0, "32": 13.0}}},
    "designs": {"gru": {"one by one": 100.0, "batched": 800.0, "hybrid": 1500.0}},
}
OVERLOAD: dict[str, Any] = {
    "benchmark": "overload",
    "machine": MACHINE,
    "voiceserver": [
        {"load": "1x", "offered": 10, "goodput": 4.0},
        {"load": "10x", "offered": 100, "goodput": 4.2},
        {"load": "10x storm", "offered": 100, "goodput": 4.1},
    ],
    "naive": [
        {"load": "1x", "offered": 10, "goodput": 4.0},
        {"load": "10x", "offered": 100, "goodput": 0.0},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for document in (RING, BATCHING, OVERLOAD):
        (tmp_path / f"{document['benchmark']}.json").write_text(json.dumps(document))
    return tmp_path


def test_ratios_are_to_the_peer_and_more_is_better() -> None:
    assert ratios_of(RING) == {"640 B, mp.Pipe: CPU against ours": 6.0, "640 B: share of memcpy": 0.1}
    assert ratios_of(BATCHING)["gru: hybrid against one by one"] == 15.0
    # A peer that achieves nothing is nothing to divide by.
    assert ratios_of(OVERLOAD) == {"goodput at 1x against the usual design": 1.0}
    connection = {
        "benchmark": "connection",
        "ratios": {"websockets": {"receive_us": 4.0, "handshakes_per_core_second": 0.25}},
    }
    assert set(ratios_of(connection).values()) == {4.0}
    assert ratios_of({"benchmark": "turn"}) == {}


def test_a_fall_is_flagged_and_noise_is_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    then = summarise(folder)
    now = json.loads(json.dumps(then))
    now["batching"]["gru: hybrid against one by one"] = 9.0
    now["ring"]["640 B, mp.Pipe: CPU against ours"] = 5.5
    (worse,) = report(then, now, 0.2)
    assert worse == Change("batching", "gru: hybrid against one by one", 15.0, 9.0)
    assert "Worse than it was" in capsys.readouterr().out
    assert report(then, then, 0.0) == []


def test_what_only_one_of_them_has_is_not_compared(folder: Path) -> None:
    then = summarise(folder)
    assert changes(then, {"ring": then["ring"]}) == changes({"ring": then["ring"]}, then)
    with pytest.raises(ValueError, match="in common"):
        report(then, {}, 0.2)


def test_a_summary_and_a_single_result_can_be_compared_with(folder: Path) -> None:
    summary = folder / "old-summary.json"
    summary.write_text(json.dumps({"benchmark": "summary", "ratios": {"ring": {"x": 2.0}}}))
    assert read_ratios(summary) == {"ring": {"x": 2.0}}
    assert read_ratios(folder / "ring.json") == {"ring": ratios_of(RING)}
    (folder / "notes.txt").write_text("fast")
    with pytest.raises(ValueError, match="no result"):
        read_ratios(folder / "notes.txt")


def test_charts_are_drawings_that_hold_the_figures(folder: Path) -> None:
    drawn = dict(charts(Results(folder)))
    assert set(drawn) == {"ring", "batching", "goodput"}
    for drawing in drawn.values():
        assert ET.fromstring(drawing).tag.endswith("svg")
    assert "1.50" in drawn["ring"]
    assert "the usual design" in drawn["goodput"]


def test_bars_are_as_long_as_their_values() -> None:
    drawing = ET.fromstring(bars("T", {"ours": 10.0, "<theirs>": 40.0}, "us"))
    widths = [float(part.get("width", 0)) for part in drawing.iter() if part.tag.endswith("rect")]
    assert widths[1] == pytest.approx(4 * widths[0], abs=0.2)


def test_lines_rise_where_values_do() -> None:
    drawing = ET.fromstring(lines("T", {"a": [(1, 10), (2, 20), (4, 40)]}, "x", "y"))
    (path,) = [part.get("points", "") for part in drawing.iter() if part.tag.endswith("polyline")]
    heights = [float(point.split(",")[1]) for point in path.split()]
    assert heights == sorted(heights, reverse=True)


def test_readme_holds_what_the_files_say_and_keeps_its_own_words(folder: Path) -> None:
    readme = folder / "README.md"
    readme.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    written = render(Results(folder), readme)
    text = readme.read_text()
    assert readme in written
    assert text.startswith("before\n\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert "| gru: hybrid | 1,500 | 15.0 |" in text
    assert "Abacus 9" in text
    assert "![Beyond capacity](benchmarks/results/goodput.svg)" in text
    assert with_block(text, block(Results(folder))) == text
    assert with_block("no marks", "block") == "no marks"
