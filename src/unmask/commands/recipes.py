"""`unmask recipes`: the ready-made configurations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from unmask.commands.parse import parse
from unmask.recipes import RECIPES
from unmask.recipes.finetuning import FINETUNING


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """List the recipes: of pre-training, then of fine-tuning."""


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask recipes`."""
    parse(Recipes, arguments, command="recipes")
    console = Console(soft_wrap=True)
    for name, recipe in RECIPES.items():
        _tell(name, recipe, console)
    console.print("Fine-tuning, by `unmask evaluate finetune RUN DATA --recipe NAME`:\n", highlight=False)
    for name, fine_tuning in FINETUNING.items():
        _tell(name, fine_tuning, console)
    return 0


def _tell(name: str, recipe: Callable[[], object], console: Console) -> None:
    told = escape(inspect.getdoc(recipe) or "")
    console.print(f"[bold]{name}[/bold]\n{told}\n", highlight=False)
