"""`unmask methods`: the table of methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from unmask.commands.parse import parse
from unmask.interop.authors import AUTHORS
from unmask.methods import METHODS
from unmask.methods.measured import Measured, read_measured
from unmask.recipes import RECIPES

NOT_MEASURED = "not measured"
NO_RECIPE = "none; the defaults are the authors' settings"


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List the methods: what they see, predict and minimise, how they were proved, what a step costs."""


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask methods`."""
    parse(Methods, arguments, command="methods")
    console = Console(soft_wrap=True)
    measured = read_measured()
    for name, method in METHODS.items():
        info = method.info
        console.print(f"[bold]{name}[/bold]  {info.title}, {info.paper} ({info.year}); {info.family}", highlight=False)
        known = measured.get(name, Measured())
        for line in (
            info.idea,
            f"online: {info.online_input}; target: {info.target}; objective: {info.objective}",
            f"proof: {proof(name, known)}",
            f"step: {cost(known)}",
            f"recipe: {next(iter(recipes_of(name)), NO_RECIPE)}",
        ):
            console.print(f"    {escape(line)}", highlight=False)
    return 0


def proof(name: str, measured: Measured) -> str:
    """In words, how a method was compared with its authors' code, and how far the numbers were apart."""
    golden = measured.golden
    if golden is None:
        return f"{NOT_MEASURED} (unmask verify does)" if name in AUTHORS else "tested against its formulas"
    cases = f"{len(golden.cases)} golden case{'' if len(golden.cases) == 1 else 's'}"
    if golden.agreeing < len(golden.cases):
        cases = f"{golden.agreeing} of {cases}"
    largest = golden.largest_difference
    difference = "" if largest is None else f", largest difference {largest:.1e}"
    return f"agrees with its authors' code in {cases}{difference}"


def cost(measured: Measured) -> str:
    """In words, what a step costs by MAE's."""
    step = measured.step
    if step is None:
        return NOT_MEASURED
    return f"{step.relative:.2f} × MAE's ({step.encoder}, {step.batch_size} images, {step.device})"


def recipes_of(name: str) -> tuple[str, ...]:
    """Names of the recipes for a method."""
    return tuple(recipe for recipe, make in RECIPES.items() if make().method == name)
