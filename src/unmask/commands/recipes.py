"""`unmask recipes`: the ready-made configurations."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from unmask.commands.parse import parse
from unmask.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """List the recipes."""


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask recipes`."""
    parse(Recipes, arguments, command="recipes")
    console = Console(soft_wrap=True)
    for name, recipe in RECIPES.items():
        told = escape(inspect.getdoc(recipe) or "")
        console.print(f"[bold]{name}[/bold]\n{told}\n", highlight=False)
    return 0
