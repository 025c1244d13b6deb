"""From stored results to ratios, charts and README: nothing invented, nothing lost, regressions found."""

from __future__ import annotations

import functools
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import run
from benchmarks.report import markdown, tables
from benchmarks.report.compare import Change, changes, compare, read_ratios, report, summarise
from benchmarks.report.ratios import floors_of, ratios_of
from benchmarks.report.svg import bars, lines, nines
from benchmarks.report.tables import Results, blocks, charts, marks, render, with_blocks
from benchmarks.ring import Cost, median_of
from benchmarks.run import PLAN

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


def load_row(load: str, offered: int, goodput: float, **changes: object) -> dict[str, object]:
    """As ``benchmarks.overload`` stores it."""
    row = {
        "load": load,
        "offered": offered,
        "talkers": 6.0,
        "in_time": 0.98,
        "goodput": goodput,
        "waiting": 2,
    }
    row |= {
        "refusals": 41,
        "lost": 0,
        "settled_s": 0.4,
        "first_partial_ms": [310.0, 900.0],
        "final_ms": [420.5, 1200.0],
    }
    row |= {
        "signal_ms": [1.2, 3.4],
        "refusal_ms": [0.8, 2.1],
        "silence_s": 0.0,
        "busy_signals": 4,
        "dropped_ms": 0,
    }
    return {**row, "unaccounted_ms": 0.0, "lateness_p99_ms": 1.1, "generator_cpu": 0.1, **changes}


OVERLOAD: dict[str, Any] = {
    "benchmark": "overload",
    "machine": MACHINE,
    "capacity": 6,
    "seconds": 8.0,
    "voiceserver": [
        load_row("1x", 10, 4.2),
        load_row("10x", 100, 4.0),
        load_row("10x storm", 100, 4.1),
    ],
    "naive": [
        load_row("1x", 10, 4.0, unaccounted_ms=None),
        load_row("10x", 100, 0.0, final_ms=None, signal_ms=None, silence_s=88.5, unaccounted_ms=None),
    ],
}
CONNECTION: dict[str, Any] = {
    "benchmark": "connection",
    "machine": MACHINE,
    "connections": 15_000,
    "burst": 64,
    "storm": {"callers": 20_000, "in": 10_000, "hanging": 0, "is_well_after": True, "answered_p99_s": 1.25},
    "figures": {
        "websockets": {
            "bytes_per_connection": 48_700,
            "receive_us": 26.0,
            "handshakes_per_core_second": 3_676.0,
        },
        "ours": {
            "bytes_per_connection": 2_400,
            "receive_us": 5.5,
            "speak_us": 9.5,
            "handshakes_per_core_second": 12_000.0,
            "turns": {"receive_us": [5.4, 5.5, 5.9]},
        },
    },
    "ratios": {
        "websockets": {"bytes_per_connection": 20.3, "receive_us": 4.7, "handshakes_per_core_second": 0.31}
    },
}
SERVING: dict[str, Any] = {
    "benchmark": "serving",
    "machine": MACHINE,
    "bare_audio_s_per_cpu_s": 1_000.0,
    "rows": [
        {
            "side": side,
            "sessions": count,
            "audio_s_per_cpu_s": rate,
            "p50_ms": 16.2,
            "p99_ms": 25.2,
            "answered": 1.002,
            "told": told,
            "memory_mib": 314.6,
            "lateness_p99_ms": 2.6,
        }
        for side, count, rate, told in (
            ("ours", 250, 800.0, 0),
            ("mosec", 250, 400.0, 0),
            ("ours", 400, 810.0, 7),
        )
    ],
    "overloaded": [
        {
            "side": side,
            "sessions": 230,
            "p50_ms": 55.5,
            "p99_ms": 1_146.0,
            "answered": 0.55,
            "told": told,
            "told_at_p99_ms": 260.0,
            "untold_s": untold,
        }
        for side, told, untold in (("ours", 230, 0.0), ("mosec", 0, 1_434.0))
    ],
}
SPREAD = {"count": 16.0, "mean": 20.0, "min": 8.0, "p50": 14.5, "p95": 35.0, "p99": 39.2, "max": 39.2}
RECOVERY: dict[str, Any] = {
    "benchmark": "recovery",
    "machine": MACHINE,
    "rounds": 8,
    "callers": 2,
    "faults": {
        "stt SIGKILL": {
            "ms": {
                "detected": SPREAD,
                "signalled": SPREAD,
                "respawned": SPREAD,
                "delayed": {**SPREAD, "p99": 1_400.0},
            },
            "lost_words": 0,
            "doubled_words": 0,
        },
        "reply SIGSTOP": {
            "ms": {"detected": SPREAD, "respawned": SPREAD},
            "lost_words": 0,
            "doubled_words": 0,
        },
    },
}
SESSIONS: dict[str, Any] = {
    "benchmark": "sessions",
    "machine": MACHINE,
    "sessions": 1_000,
    "seconds": 15.0,
    "largest": 1_400,
    "figures": {
        "server loop (% of a core)": 22.5,
        "end of turn told, p50 (ms)": 5.4,
        "end of turn told, p99 (ms)": 31.0,
    },
}
TURN: dict[str, Any] = {
    "benchmark": "turn",
    "machine": MACHINE,
    "milliseconds": {
        "final transcript": SPREAD,
        "decision to first audio (client)": {**SPREAD, "p50": 3.0, "p99": 7.7},
    },
}
SOAK: dict[str, Any] = {
    "benchmark": "soak",
    "machine": MACHINE,
    "connections": 50_000,
    "talkers": 500,
    "seconds": 600.0,
    "server_processes": 4,
    "held": 50_000,
    "lost": 0,
    "ping_ms": {"p50": 1.0, "p99": 8.0, "p99.9": 14.0},
    "first_audio_ms": {"p50": 12.0, "p99": 40.0},
    "replies": 9_000.0,
    "bytes_per_connection": 2_450,
    "server_memory_bytes": 350 * 2**20,
    "loop_lag_p99_ms": 5.0,
    "silence_s": 0.0,
    "unaccounted_ms": 0.0,
    "worker_lost_told": 125,
}
ALL = (RING, BATCHING, OVERLOAD, CONNECTION, SERVING, RECOVERY, SESSIONS, TURN, SOAK)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for document in ALL:
        (tmp_path / f"{document['benchmark']}.json").write_text(json.dumps(document))
    return tmp_path


def test_ratios_are_to_the_peer_and_more_is_better() -> None:
    assert ratios_of(RING) == {
        "640 B, mp.Pipe: CPU against ours": 6.0,
        "640 B, memcpy (limit): CPU against ours": 0.0667,
    }
    assert ratios_of(BATCHING)["gru: hybrid against one by one"] == 15.0
    # A peer that achieves nothing is nothing to divide by.
    assert ratios_of(OVERLOAD) == {"goodput at 1x against the usual design": 1.05}
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


def test_the_best_round_now_is_held_against_the_worst_then(tmp_path: Path) -> None:
    ring = json.loads(json.dumps(RING))
    rounds = ([1.0, 2.0, 1.5], [0.1, 0.1, 0.1], [8.0, 8.0, 15.0])
    for row, cpu_us in zip(ring["results"], rounds, strict=True):
        row["cpu_us_of_rounds"] = cpu_us
    pipe, memcpy = "640 B, mp.Pipe: CPU against ours", "640 B, memcpy (limit): CPU against ours"
    assert ratios_of(ring) == {pipe: 10.0, memcpy: 0.1}
    assert floors_of(ring) == {pipe: 4.0, memcpy: 0.05}
    assert floors_of(BATCHING) == {}
    path = tmp_path / "ring.json"
    path.write_text(json.dumps(ring))
    assert read_ratios(path)["ring"][pipe] == 10.0
    assert read_ratios(path, lowest=True)["ring"][pipe] == 4.0
    summary = {
        "benchmark": "summary",
        "ratios": summarise(tmp_path),
        "floors": summarise(tmp_path, lowest=True),
    }
    path.write_text(json.dumps(summary))
    assert read_ratios(path)["ring"][pipe] == 10.0
    assert read_ratios(path, lowest=True)["ring"][pipe] == 4.0


def test_the_median_of_the_rounds_is_shown() -> None:
    assert median_of([Cost(10.0, 12.0), Cost(27.0, 9.0), Cost(11.0, 30.0)]) == Cost(11.0, 12.0)


def test_what_is_gone_is_flagged_and_what_is_new_is_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    then = summarise(folder)
    ring = {"ring": then["ring"]}
    assert all(change.factor == 1 for change in changes(ring, then))
    assert report(ring, then, 0.0) == []
    now = {"ring": {"640 B, memcpy (limit): CPU against ours": 0.0667}, "new": {"x": 1.0}}
    assert report(ring, now, 0.2) == [Change("ring", "640 B, mp.Pipe: CPU against ours", 6.0, None)]
    assert "gone" in capsys.readouterr().out
    with pytest.raises(ValueError, match="in common"):
        report(then, {}, 0.2)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("fast", "Expecting value"),
        ("[1]", "indices"),
        ('{"ratios": {}}', "'benchmark'"),
        ('{"benchmark": "summary"}', "'ratios'"),
        ('{"benchmark": "summary", "ratios": [1]}', "object"),
        ('{"benchmark": "summary", "ratios": {"ring": {"x": "2"}}}', "float"),
        ('{"benchmark": "ring"}', "'results'"),
        ('{"benchmark": "ring", "results": [7]}', "iterable"),
        ('{"benchmark": "connection", "ratios": [1]}', "items"),
        ('{"benchmark": "serving", "rows": [{"side": "mosec", "sessions": 1}]}', "StopIteration"),
        ('{"benchmark": ["ring"]}', "unhashable"),
    ],
)
def test_a_file_that_is_no_result_is_one_line_and_exit_code_2(
    words: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.json"
    path.write_text(words)
    with pytest.raises(typer.Exit) as left:
        compare(path, None, 0.2)
    assert left.value.exit_code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{path} is no result of a benchmark: ")
    assert reason in said
    assert said.count("\n") == 1


def test_the_result_of_one_benchmark_says_nothing_of_the_others(folder: Path, tmp_path: Path) -> None:
    summary = tmp_path / "old-summary.json"
    summary.write_text(json.dumps({"benchmark": "summary", "ratios": summarise(folder)}))
    compare(summary, folder / "ring.json", 0.2)


class TestRun:
    """``benchmarks.run --compare`` with benchmarks that are told what to find."""

    @pytest.fixture
    def runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What was run. A run of "ring" finds the next of ``FINDS``; one of "batching" fails."""
        ran: list[str] = []
        finds = iter((3.0, 9.0, 2.0))

        def measure(name: str, again: str = "") -> tuple[str, float, str]:
            ran.append(name + again)
            if name == "batching":
                return name, 0.0, "failed with 1"
            document = json.loads(json.dumps(RING))
            document["results"][2]["cpu_us"] = 1.5 * next(finds)
            (tmp_path / "ring.json").write_text(json.dumps(document))
            return name, 0.0, ""

        (tmp_path / "batching.json").write_text(json.dumps(BATCHING))
        monkeypatch.setattr(run, "_measure", measure)
        monkeypatch.setattr(run, "render", list)
        monkeypatch.setattr(run, "store", lambda name, payload: tmp_path / "stored.json")
        monkeypatch.setattr(run, "summarise", functools.partial(summarise, tmp_path))
        return ran

    def test_what_fell_is_measured_again_and_the_best_run_counts(self, runs: list[str]) -> None:
        then = {"ring": {"640 B, mp.Pipe: CPU against ours": 9.0}}
        assert run._run(["ring"], then, 0.2) == ([], [])
        assert runs == ["ring", "ring again"]

    def test_what_falls_each_time_is_worse(self, runs: list[str]) -> None:
        then = {"ring": {"640 B, mp.Pipe: CPU against ours": 12.0}}
        (worse,), failed = run._run(["ring"], then, 0.2)
        assert (worse.then, worse.now, failed) == (12.0, 9.0, [])
        assert runs == ["ring", "ring again", "ring again"]

    def test_what_is_gone_is_not_measured_again(self, runs: list[str]) -> None:
        then = {"ring": {"640 B, mp.Pipe: CPU against ours": 3.0, "640 B, carrier pigeon": 1.0}}
        (worse,), _ = run._run(["ring"], then, 0.2)
        assert worse.now is None
        assert runs == ["ring"]

    def test_what_failed_is_not_compared_with_its_own_past(
        self, runs: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        then = {"batching": ratios_of(BATCHING)}
        assert run._run(["batching"], then, 0.2) == ([], ["batching"])
        assert "ratios compared" not in capsys.readouterr().out


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
    expected = {
        "ring",
        "batching",
        "goodput",
        "memory-per-connection",
        "cost-per-message",
        "serving",
        "latency",
    }
    assert set(drawn) == expected
    for drawing in drawn.values():
        assert ET.fromstring(drawing).tag.endswith("svg")
    assert "1.50" in drawn["ring"]
    assert "the usual design" in drawn["goodput"]
    assert "48,700" in drawn["memory-per-connection"]
    assert ("800" in drawn["serving"], "810" in drawn["serving"]) == (True, False)  # of one number of callers


def test_bars_are_as_long_as_their_values() -> None:
    drawing = ET.fromstring(bars("T", {"ours": 10.0, "<theirs>": 40.0}, "us"))
    widths = [float(part.get("width", 0)) for part in drawing.iter() if part.tag.endswith("rect")]
    assert widths[1] == pytest.approx(4 * widths[0], abs=0.2)


def test_lines_rise_where_values_do() -> None:
    drawing = ET.fromstring(lines("T", {"a": [(1, 10), (2, 20), (4, 40)]}, "x", "y"))
    (path,) = [part.get("points", "") for part in drawing.iter() if part.tag.endswith("polyline")]
    heights = [float(point.split(",")[1]) for point in path.split()]
    assert heights == sorted(heights, reverse=True)


def test_percentiles_are_spread_by_their_nines() -> None:
    drawing = ET.fromstring(lines("T", {"a": [(90, 1), (99, 2), (99.9, 3)]}, "x", "y", x_scale=nines))
    (path,) = [part.get("points", "") for part in drawing.iter() if part.tag.endswith("polyline")]
    first, second, third = (float(point.split(",")[0]) for point in path.split())
    assert second - first == pytest.approx(third - second, abs=0.2)


def test_readme_holds_what_the_files_say_and_keeps_its_own_words(folder: Path) -> None:
    readme = folder / "README.md"
    names = ("headlines", "recovery", "benchmarks")
    parts = ["\n".join((marks(name)[0], "stale", marks(name)[1])) for name in names]
    readme.write_text("before\n\n" + "\n\nbetween\n\n".join(parts) + "\n\nafter\n")
    written = render(Results(folder), (readme,), folder)
    text = readme.read_text()
    assert readme in written
    assert text.startswith("before\n\n")
    assert text.endswith("\n\nafter\n")
    assert text.count("\n\nbetween\n\n") == 2
    assert "stale" not in text
    for row in (
        "| gru: hybrid | 1,500 | 15.0 |",
        "| gru, float32 | 8.00 | 13.0 |",
        "| 250 sessions, mosec | 400 | 40% | 16.2 / 25.2 | 100% | 0 | 315 |",
        "| 10x, the usual design | 100 | 6.00 | 41 | 0 | 98% | - | - | 88.5 | - |",
        "| stt worker killed | 14.5 / 39.2 | 14.5 / 39.2 | 14.5 / 39.2 | 14.5 / 1,400 | 0 | 0 |",
        "| reply worker hung | 14.5 / 39.2 | - | 14.5 / 39.2 | - | 0 | 0 |",
        "| connections held, lost | 50,000, 0 |",
        "| memory per idle connection (bytes) | 2,400 | 48,700 |",
        "| is well after | yes |",
        "| answered p99 s | 1.25 |",
        "| 10 times the callers that it can carry | 95% of its best goodput, 0 s of silence"
        " | process pool: 0% of its best goodput, 88.5 s |",
        "| a worker dies or hangs | answer late by 1.40 s at most, 0 words lost or doubled |  |",
        "![Beyond capacity](charts/goodput.svg)",
        "2 cores of Abacus 9",
    ):
        assert row in text, row
    assert with_blocks(text, blocks(Results(folder))) == text
    assert with_blocks("no marks", {"headlines": "x"}) == "no marks"


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    assert blocks(Results(tmp_path)) == {"headlines": "", "recovery": "", "benchmarks": ""}
    (tmp_path / "ring.json").write_text(json.dumps(RING))
    told = blocks(Results(tmp_path))
    assert "1.50 us" in told["headlines"]
    assert told["recovery"] == ""


def test_every_benchmark_of_a_run_is_told_and_what_is_stored_can_be_told() -> None:
    assert {name.partition("-")[0] for names, *_ in tables._PARTS for name in names} | {"recovery"} == set(
        PLAN
    )
    assert set(markdown.TABLES) == set(PLAN)
    for name, told in blocks(Results()).items():
        assert told or name == "recovery"
