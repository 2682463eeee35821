"""`unmask verify [DIR]`: do our methods compute what their authors' code computed?"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import Doc

from unmask.commands.parse import parse
from unmask.interop.golden import LOSS_TOLERANCE, NORM_TOLERANCE, Verdict, find_cases, verify

CHECKOUT_CASES = Path(__file__).parents[3] / "tests" / "golden"


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Replay golden cases in float64 and compare losses, gradients and final weights with the authors' numbers."""

    folder: Annotated[
        tyro.conf.Positional[Path | None],
        tyro.conf.arg(metavar="DIR"),
        Doc("Folder of cases (NAME.json with NAME.safetensors). Default: tests/golden of this checkout."),
    ] = None
    json: Annotated[bool, Doc("Print JSON instead of a table.")] = False


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask verify`: 0 when every case agrees, else 1."""
    command = parse(Verify, arguments, command="verify")
    if command.folder is None and not CHECKOUT_CASES.is_dir():
        raise ValueError("golden cases come with the source, not with the installed package; give their folder")
    cases = find_cases(command.folder or CHECKOUT_CASES)
    console = Console(stderr=True)
    verdicts = []
    for case in cases:
        if not command.json and console.is_terminal:
            console.print(Text(case.stem, "dim"), end="\r")
        verdicts.append(verify(case))
    if command.json:
        json.dump({"cases": [_row(verdict) for verdict in verdicts]}, sys.stdout, indent=2, allow_nan=False)
        sys.stdout.write("\n")
    else:
        Console(soft_wrap=True).print(_table(verdicts))
    return 0 if all(verdict.agrees for verdict in verdicts) else 1


def _row(verdict: Verdict) -> dict[str, object]:
    """A verdict as JSON has it: without infinity, which stands for a difference that is not a number."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in verdict.as_dict().items()
    }


def _table(verdicts: list[Verdict]) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        caption=f"largest relative differences; losses agree to {LOSS_TOLERANCE:g}, the rest to {NORM_TOLERANCE:g}",
        caption_justify="left",
    )
    for header in ("case", "method", "loss", "gradient", "final norm", "prediction", "verdict"):
        table.add_column(header)
    for verdict in verdicts:
        errors = (verdict.loss_error, verdict.grad_error, verdict.norm_error, verdict.prediction_error)
        shown = ["-" if error is None else f"{error:.1e}" for error in errors]
        word = Text("agrees", "green") if verdict.agrees else Text(verdict.reason, "red")
        # What stands in a case is its author's: no markup of ours.
        table.add_row(Text(verdict.case), Text(verdict.method), *shown, word)
    return table
