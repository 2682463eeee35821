"""`unmask evaluate segment RUN DATA`: UperNet on the encoder, a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.text import Text
from typing_extensions import Doc

from unmask.commands.evaluate.shared import plain_table
from unmask.commands.evaluate.training import (
    PREFIX,
    Plan,
    Trained,
    TrainedOptions,
    finish,
    with_size,
)
from unmask.commands.parse import parse
from unmask.tasks.segmentation import SegmentationConfig

USUAL_BATCH = 16
CLASSES_SHOWN = 30


@dataclass(frozen=True, kw_only=True)
class Segment(TrainedOptions):
    """Train UperNet on the encoder and score it: mean IoU, pixel accuracy, each class. DATA is laid out as ADE20K
    (images/, annotations/), or train/ and val/ with images/ and masks/ of index PNGs; builtin:scenes."""

    settings: Annotated[SegmentationConfig, PREFIX, Doc("Knobs of the segmenter and its training.")] = (
        SegmentationConfig()
    )


def run(protocol: str, arguments: Sequence[str]) -> int:
    """The exit code of `unmask evaluate segment`."""
    default = Segment(run=tyro.MISSING, data=tyro.MISSING)
    command = parse(Segment, arguments, command="evaluate segment", default=default)
    plan = Plan(protocol="segment", settings=with_size(command.settings, command), usual_batch=USUAL_BATCH)
    return finish(command, plan, print_classes)


def print_classes(run: Trained, console: Console) -> None:
    """Pixel accuracy, and the table of classes, the worst first."""
    score = run.score
    console.print(
        f"pixels right {score['pixel_accuracy']:.1f} %, mean of classes {score['mean_accuracy']:.1f} %",
        highlight=False,
    )
    table = plain_table("class", "IoU %", "accuracy %", "pixels")
    known = sorted((row for row in score["classes"] if row["iou"] is not None), key=lambda row: float(row["iou"]))
    for row in known[:CLASSES_SHOWN]:
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.1f}"
        table.add_row(Text(str(row["name"])), f"{row['iou']:.1f}", accuracy, f"{row['pixels']:,}")
    console.print(table)
