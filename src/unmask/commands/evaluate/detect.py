"""`unmask evaluate detect RUN DATA`: Mask R-CNN on the encoder, things with boxes and outlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console
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
from unmask.tasks.detection import DetectionConfig

USUAL_BATCH = 64
FIGURES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}


@dataclass(frozen=True, kw_only=True)
class Detect(TrainedOptions):
    """Train Mask R-CNN with ViTDet's pyramid on the encoder and score it: box and mask AP as COCO has them. DATA is
    laid out as COCO, or has train/ and val/ with annotations.json each; builtin:scenes."""

    settings: Annotated[DetectionConfig, PREFIX, Doc("Knobs of the detector and its training.")] = DetectionConfig()


def run(protocol: str, arguments: Sequence[str]) -> int:
    """The exit code of `unmask evaluate detect`."""
    default = Detect(run=tyro.MISSING, data=tyro.MISSING)
    command = parse(Detect, arguments, command="evaluate detect", default=default)
    plan = Plan(protocol="detect", settings=with_size(command.settings, command), usual_batch=USUAL_BATCH)
    return finish(command, plan, print_precisions)


def print_precisions(run: Trained, console: Console) -> None:
    """Every average precision of boxes and outlines."""
    table = plain_table("", *FIGURES.values(), "AR")
    for what in ("boxes", "masks"):
        found: Mapping[str, Any] | None = run.score[what]
        if found is not None:
            cells = ("-" if found[key] is None else f"{found[key]:.1f}" for key in (*FIGURES, "ar"))
            table.add_row(what, *cells)
    console.print(table)
