"""`unmask methods`: the table of methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from unmask.commands.parse import parse
from unmask.interop.authors import AUTHORS
from unmask.methods import METHODS


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List the methods."""


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask methods`."""
    parse(Methods, arguments, command="methods")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("name", "family", "paper", "online input", "target", "objective", "proof"):
        table.add_column(header, overflow="fold")
    for name, method in METHODS.items():
        info = method.info
        proof = "golden vectors (unmask verify)" if name in AUTHORS else "formulas"
        row = (
            info.family,
            f"{info.paper} ({info.year})",
            info.online_input,
            info.target,
            info.objective,
            proof,
        )
        table.add_row(f"[bold]{name}[/bold]", *row)
    Console().print(table)
    return 0
