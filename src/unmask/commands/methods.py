"""`unmask methods`: the table of methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from unmask.commands.parse import parse
from unmask.interop.authors import AUTHORS
from unmask.methods import METHODS


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List the methods."""


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask methods`."""
    parse(Methods, arguments, command="methods")
    console = Console(soft_wrap=True)
    for name, method in METHODS.items():
        info = method.info
        proof = "agrees with its authors' code (unmask verify)" if name in AUTHORS else "tested against its formulas"
        console.print(f"[bold]{name}[/bold]  {info.title}, {info.paper} ({info.year}); {info.family}", highlight=False)
        for line in (
            info.idea,
            f"online: {info.online_input}; target: {info.target}; objective: {info.objective}",
            proof,
        ):
            console.print(f"    {line}", highlight=False)
    return 0
