"""The report of ``voiceserver doctor``: tables for people, JSON for programs, and an exit code for scripts.

0: nothing is too low. 1: something is; each with its fix. 2: the configuration is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from voiceserver.doctor import engines, machine
from voiceserver.doctor.engines import Carries, Step, Trouble

if TYPE_CHECKING:
    from rich.console import Console

    from voiceserver.config.schema import Config
    from voiceserver.doctor.machine import Finding


def run(config: Config, *, calibrates: bool, as_json: bool, budget_s: float) -> int:
    """Print the report; the exit code."""
    findings = machine.inspect(config)
    gpus = machine.gpus()
    measured: list[Step | Trouble] = []
    if calibrates:
        if not as_json:
            print("measuring the engines, each in a process of its own ...", file=sys.stderr)
        measured = list(engines.measure(config, budget_s))
    steps = [one for one in measured if isinstance(one, Step)]
    troubles = [one for one in measured if isinstance(one, Trouble)]
    carries = engines.carries(config, steps, machine.cores(), machine.connections_carried(config))
    if as_json:
        print(json.dumps(_to_json(findings, gpus, steps, troubles, carries), indent=2))
    else:
        _show(findings, gpus, steps, troubles, carries)
    return 1 if troubles or any(finding.is_low for finding in findings) else 0


def _to_json(
    findings: list[Finding], gpus: list[str], steps: list[Step], troubles: list[Trouble], carries: Carries
) -> dict[str, Any]:
    return {
        "machine": {"cpu": machine.cpu_model(), "gpus": gpus},
        "findings": [{**dataclasses.asdict(finding), "is_low": finding.is_low} for finding in findings],
        "engines": [dataclasses.asdict(step) for step in steps],
        "troubles": [dataclasses.asdict(trouble) for trouble in troubles],
        "carries": dataclasses.asdict(carries),
    }


def _show(
    findings: list[Finding], gpus: list[str], steps: list[Step], troubles: list[Trouble], carries: Carries
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=140)
    table = Table("", "", "", title="This machine", title_justify="left", show_header=False)
    table.add_row("CPU", machine.cpu_model(), "")
    table.add_row("GPU", "\n".join(gpus) or "none", "")
    for finding in findings:
        table.add_row(finding.name, finding.value, "[yellow]too low" if finding.is_low else "[green]ok")
    console.print(table)
    for finding in findings:
        if finding.is_low:
            console.print(f"[yellow]{escape(finding.warning)}", highlight=False)
            for line in (finding.fix, *(line for other in finding.instead for line in ("# or:", other))):
                console.print(f"    {escape(line)}", highlight=False, soft_wrap=True)
    for trouble in troubles:
        console.print(f"[red]{trouble.stage} ({trouble.engine}): {escape(trouble.message)}", highlight=False)
    if steps:
        _show_steps(console, steps)
    lines = [
        (carries.talkers, "callers who talk, with every stage behind them"),
        (
            carries.listeners,
            "callers who are listened to and silent, by the vad alone: the loop, which reads their audio, is not counted",
        ),
        (carries.connections, "connections"),
    ]
    console.print("This machine carries about", highlight=False)
    for count, what in lines:
        console.print(f"{'not measured' if count is None else f'{count:,}':>14}  {what}", highlight=False)


def _show_steps(console: Console, steps: list[Step]) -> None:
    from rich.table import Table

    table = Table(
        "stage",
        "engine",
        "dtype",
        title="Engines, one worker, one thread",
        title_justify="left",
        caption="times real time: seconds of speech that one worker gets done in a second",
        caption_justify="left",
    )
    for name in ("batch", "step (ms)", "times real time"):
        table.add_column(name, justify="right")
    for step in steps:
        speed = f"{1 / step.work:,.{0 if step.work < 0.1 else 1}f}" if step.work else ""
        table.add_row(
            step.stage,
            step.engine,
            step.dtype or "as configured",
            str(step.batch),
            f"{step.step_ms:.2f}",
            speed,
        )
    console.print(table)
