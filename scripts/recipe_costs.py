"""Count what each recipe costs, and write it into the recipe's docstring.

    python scripts/recipe_costs.py                   prints the costs of all
    python scripts/recipe_costs.py RECIPE ... --write    also replaces the line "Cost: ..." in these recipes

The floating-point operations of one training step (forward, backward, target) are counted by torch on two images, and
multiplied by the images of ImageNet-1k and the epochs. Hours are at RATE, which is an assumption until it is measured.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from make_docs import completed, noise_batch
from torch.utils.flop_counter import FlopCounterMode

from unmask.config import RunConfig
from unmask.methods import find_method
from unmask.models.tokenizers.dvae import DVAEConfig
from unmask.recipes import RECIPES

IMAGES = 1_281_167
# 45 % of the 790 TFLOP/s of bfloat16 matrix products that an H200 reaches.
RATE = 0.45 * 790e12
FOLDER = Path(__file__).resolve().parents[1] / "src" / "unmask" / "recipes"


def operations(config: RunConfig, folder: Path) -> float:
    """Floating-point operations of one training step, by image."""
    method: Any = find_method(config.method)(completed(config.settings, DVAEConfig(), folder))
    views = method.make_views(noise_batch(method, 2))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.stack(list(method.losses(views).values())).sum().backward()
    return counter.get_total_flops() / 2


def main() -> None:
    """Count all, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the lines in the recipes")
    parser.add_argument("recipes", nargs="*", default=[name for name in RECIPES if name != "demo"])
    arguments = parser.parse_args()
    counted: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.recipes:
            config = RECIPES[name]()
            key = (config.method, config.settings.encoder.name)
            if key not in counted:
                counted[key] = operations(config, Path(folder))
            hours = counted[key] * IMAGES * config.training.epochs / RATE / 3600
            line = (
                f"Cost: about {float(f'{hours:.2g}'):,g} GPU-hours ({counted[key] / 1e9:.0f} GFLOP an image, counted; "
                "not measured, see scripts/recipe_costs.py)."
            )
            print(f"{name:32} {line}", flush=True)  # noqa: T201
            if arguments.write:
                write(name, line)


def write(name: str, line: str) -> None:
    """Replace the cost in the docstring of recipe `name`."""
    for file in FOLDER.glob("*.py"):
        text = file.read_text()
        found = re.search(rf'def {name}\(\) -> RunConfig:\n    """.*?"""', text, re.DOTALL)
        if found:
            changed = re.sub(r"Cost: [^\n]*(\n    [^\n]+)*?\.(?=\n)", lambda _: line, found[0], count=1)
            file.write_text(text[: found.start()] + changed + text[found.end() :])
            return
    raise SystemExit(f"{name} is nowhere in {FOLDER}")


if __name__ == "__main__":
    main()
