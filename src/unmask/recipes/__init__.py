"""Ready-made configurations: one function a recipe, whose docstring tells command, cost and expected result."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from unmask.config import RunConfig
from unmask.recipes.demo import demo

RECIPES: dict[str, Callable[[], RunConfig]] = {"demo": demo}


def find_recipe(name: str) -> Callable[[], RunConfig]:
    """The recipe called `name`; an unknown one is refused with the nearest known name."""
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(RECIPES)}"
    raise ValueError(f"unknown recipe {name!r}; {hint}")
