"""From what was measured to what bounds it, and one sentence of advice."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unmask.bench.data import DataMeasure
from unmask.bench.step import StepMeasure

WAITING = 0.1
"""Share of a step from which on waiting for data is what bounds it."""
FIXED_COST = 0.2
"""Share of optimizer and target from which on a larger batch is worth a word."""
VIEWS = 0.15
NEAR_THE_RATE = 0.6
"""Share of the matrix rate from which on there is little left to gain but by computing less."""
READING = 0.5
EVEN = 0.6
"""Share of what workers could give together below which they are in each other's way."""


@dataclass(frozen=True)
class Advice:
    """What bounds the speed, in a few words, and what to do about it, in one sentence."""

    bound: str
    sentence: str


def advise_step(step: StepMeasure, data: DataMeasure | None, *, processors: int) -> Advice:
    """What bounds a training step."""
    shares = {name: seconds / step.seconds for name, seconds in step.phases.items()}
    fixed = shares.get("optimizer", 0.0) + shares.get("target", 0.0)
    share = step.matrix_share
    if data is not None and shares.get("data", 0.0) > WAITING:
        return Advice("waiting for data", _about_data(step, data, processors))
    if fixed > FIXED_COST:
        return Advice(
            "optimizer and target",
            f"optimizer and target take {fixed:.0%} of a step, the same for any batch: a larger --batch-size makes an "
            f"image cheaper than with {step.batch_size} images",
        )
    if shares.get("views", 0.0) > VIEWS:
        return Advice(
            "making views",
            f"views take {shares['views']:.0%} of a step: fewer colour changes, or smaller images, make it faster",
        )
    if share is not None and share < NEAR_THE_RATE:
        return Advice(
            "small operations and memory, not matrix products",
            f"the step reaches {share:.0%} of the rate at which this device multiplies such matrices: {_fill(step)}",
        )
    reached = "" if share is None else f", at {share:.0%} of the rate at which this device multiplies such matrices"
    quicker = "" if step.device != "cpu" else ", or a GPU,"
    return Advice(
        "computing forward and backward",
        f"the step is bound by what the network computes{reached}: only a smaller encoder or image{quicker} is faster",
    )


def _about_data(step: StepMeasure, data: DataMeasure, processors: int) -> str:
    plural = "worker gives" if data.workers == 1 else "workers give"
    who = f"{data.workers} {plural}" if data.workers else "the training process alone gives"
    wanted = step.step_images_per_second
    said = (
        f"the loader is the bottleneck: {who} {data.images_per_second:.0f} images/s, the step could take {wanted:.0f}; "
    )
    if data.workers < processors and data.images_per_second < wanted:
        enough = math.ceil(max(1, data.workers) * wanted / data.images_per_second)
        return said + f"use --workers {min(processors, enough)}"
    if step.device == "cpu":
        return said + "workers and step share the same processors: smaller files or crops help both"
    return said + "use smaller files or crops, or a machine with more processors"


def _fill(step: StepMeasure) -> str:
    if step.device == "cpu":
        return f"a larger --batch-size than {step.batch_size}, or no other programs on the machine, may bring it closer"
    if step.precision == "float32":
        return "--precision bf16 uses the quicker units of the device"
    if not step.compiled:
        return "--compile joins small operations"
    return f"a larger --batch-size than {step.batch_size} fills it better"


def advise_data(data: DataMeasure, *, processors: int) -> Advice:
    """What bounds a loader."""
    one = sum(data.parts.values())
    shares = {name: seconds / one for name, seconds in data.parts.items()}
    alone = 1 / one
    busy = max(1, min(data.workers, processors))
    if data.workers < processors:
        return Advice(
            "the number of workers",
            f"{data.workers} of {processors} processors decode: --workers {processors} gives up to "
            f"{processors * alone:.0f} images/s",
        )
    if shares["read"] > READING:
        return Advice(
            "reading files",
            f"reading takes {shares['read']:.0%} of a worker's time: a faster disk, or one .tar of all files, helps",
        )
    if data.images_per_second < EVEN * busy * alone:
        return Advice(
            "handing batches over",
            f"{data.workers} workers give {data.images_per_second:.0f} images/s, though one alone makes {alone:.0f}: "
            "fewer workers, or no other programs on the machine, may give as much",
        )
    return Advice(
        "decoding and cropping",
        f"decoding and cropping take {shares['decode and crop']:.0%} of a worker's time: "
        "files stored at a smaller size are decoded faster",
    )
