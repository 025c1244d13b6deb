"""What the demo leaves a newcomer with."""

from __future__ import annotations

import io
import shlex

from rich.console import Console

from voiceserver_clients import demo


def test_the_last_section_can_be_pasted_into_a_shell() -> None:
    output = io.StringIO()
    demo._print_how_to(Console(file=output, width=60))
    lines = [line for line in output.getvalue().splitlines() if line.startswith("  ")]
    assert len(lines) == len(demo.how_to())
    assert len({line.index("  # ") for line in lines}) == 1
    for line, (command, _) in zip(lines, demo.how_to(), strict=True):
        assert shlex.split(line, comments=True) == shlex.split(command)
