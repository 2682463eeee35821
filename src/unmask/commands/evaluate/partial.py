"""`unmask evaluate partial RUN DATA`: only the last blocks are trained; a curve over their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.evaluate.shared import plain_table, write_drawing
from unmask.commands.evaluate.trained import named_fields, recipe_for
from unmask.commands.evaluate.training import (
    NETWORKS,
    PREFIX,
    Plan,
    Trained,
    TrainedOptions,
    default_out,
    train_with_floor,
    with_size,
)
from unmask.commands.parse import parse
from unmask.errors import STOPPED
from unmask.models.pretrained import open_encoder
from unmask.report.charts import line_chart
from unmask.report.headline import headline
from unmask.supervised.config import LabelBudget
from unmask.tasks.classification import ClassifierConfig
from unmask.tasks.layer_decay import block_count

PROBE_BATCH = 64
"""Images of the batch that the linear probe's rate is for."""


@dataclass(frozen=True, kw_only=True)
class Partial(TrainedOptions):
    """Train only the last blocks with a classifier on top, for several numbers of blocks, and draw the curve (MAE's
    figure 9, CMAE's figure 5)."""

    blocks: Annotated[
        tuple[int, ...] | None, Doc("Numbers of last blocks to train. Default: 0, 1, 2, 4 and so on, and all.")
    ] = None
    budget: Annotated[LabelBudget, tyro.conf.arg(name="")] = LabelBudget()
    settings: Annotated[ClassifierConfig, PREFIX, Doc("Knobs of the classifier and its training.")]


def run(protocol: str, arguments: Sequence[str]) -> int:
    """The exit code of `unmask evaluate partial`."""
    _, recipe = recipe_for(arguments)
    default = Partial(run=tyro.MISSING, data=tyro.MISSING, settings=recipe.settings)
    command = parse(Partial, arguments, command="evaluate partial", default=default)
    console = Console(soft_wrap=True, stderr=command.json)
    depth = block_count(open_encoder(command.run).encoder)
    numbers = numbers_of_blocks(depth) if command.blocks is None else tuple(sorted(set(command.blocks)))
    if not numbers:
        raise ValueError("--blocks needs at least one number")
    if numbers[0] < 0 or numbers[-1] > depth:
        raise ValueError(f"--blocks must lie between 0 and the encoder's {depth} blocks, got {list(numbers)}")
    settings = with_size(command.settings, command)
    plan = Plan(
        protocol="partial",
        settings=settings,
        usual_batch=recipe.batch_size,
        budget=command.budget,
        fit_augmentation=recipe.settings,
        asked=named_fields(arguments),
    )
    folder = command.out or default_out(command, plan)
    curve: dict[int, list[Trained]] = {}
    for number in numbers:
        if number:
            one = replace(plan, settings=replace(settings, tuned_blocks=number))
        else:
            one = replace(plan, settings=linear_probe(settings), usual_batch=PROBE_BATCH)
        runs = train_with_floor(replace(command, out=folder / f"last-{number}"), one, console)
        if runs is None:
            return STOPPED
        curve[number] = runs
    drawing = draw(curve, folder, depth)
    if not command.json:
        _print(command, curve, console)
        console.print(f"curve: {drawing}", highlight=False, markup=False)
    return 0


def linear_probe(settings: ClassifierConfig) -> ClassifierConfig:
    """The settings where nothing but the head learns: batch norm before it and no weight decay, as MAE's linear probe,
    but with AdamW, whose rate needs no batch of thousands."""
    optimizer = replace(settings.optimizer, lr=1e-2, lr_batch=None, weight_decay=0.0, warmup_epochs=0.0)
    return replace(settings, tuned_blocks=0, norm="batch", head_std=0.01, drop_path=0.0, optimizer=optimizer)


def numbers_of_blocks(depth: int) -> tuple[int, ...]:
    """0, 1, 2, 4 and so on below the depth, and the depth itself."""
    powers = [0]
    power = 1
    while power < depth:
        powers.append(power)
        power *= 2
    return (*powers, depth)


def draw(curve: dict[int, list[Trained]], folder: Path, depth: int) -> Path:
    """Write the curve as `curve.svg` in `folder`; returns its path."""
    series: dict[str, list[tuple[float, float]]] = {}
    bands: dict[str, list[tuple[float, float, float]]] = {}
    for number, runs in curve.items():
        for run in runs:
            name, value, interval = headline(run.score)
            series.setdefault(NETWORKS[run.start], []).append((number, value))
            if interval is not None:
                bands.setdefault(NETWORKS[run.start], []).append((number, *interval))
    svg = line_chart(
        series,
        title=f"Accuracy by the number of blocks trained, of {depth}",
        x_label="last blocks trained",
        y_label=f"{name}, %",
        bands=bands,
    )
    path = folder / "curve.svg"
    write_drawing(svg, path)
    return path


def _print(command: Partial, curve: dict[int, list[Trained]], console: Console) -> None:
    first = next(iter(curve.values()))[0]
    name, _, _ = headline(first.score)
    console.print(
        f"partial of {command.run} on {command.data}: {first.score['n']} test images", highlight=False, markup=False
    )
    table = plain_table("blocks trained", "network", f"{name} %", "95 % interval")
    for number, runs in curve.items():
        for run in runs:
            _, value, interval = headline(run.score)
            within = "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"
            table.add_row(str(number), NETWORKS[run.start], f"{value:.1f}", within)
    console.print(table)
