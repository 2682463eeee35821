"""Epochs, batch and rate of a supervised run where the user says nothing: by the data."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from unmask.defaults import default_batch
from unmask.optimisation import OptimizerConfig
from unmask.tasks.classification import ClassifierConfig

STEPS_WANTED = 2000
VIEWS_FOR_FULL_AUGMENTATION = 1_000_000
LIGHT: dict[str, Any] = {
    "mixup": 0.0,
    "cutmix": 0.0,
    "randaugment": None,
    "erasing": 0.0,
    "crop_scale": (0.4, 1.0),
}
"""The augmentation of short runs."""
FEWEST_EPOCHS, MOST_EPOCHS = 30, 400


def supervised_batch(samples: int, accelerated: bool) -> int:
    """As in pre-training, but even, because mixup pairs images, and no larger than the data."""
    batch = default_batch(samples, accelerated)
    return batch if batch == 1 or batch % 2 == 0 else batch - 1


def supervised_epochs(samples: int, batch: int) -> float:
    """Epochs that come to about 2000 steps: few for large data, many for a hundred labels."""
    steps = max(1, samples // max(1, batch))  # a batch that makes no sense is refused in its place
    return float(min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(STEPS_WANTED / steps))))


def scaled_rate(optimizer: OptimizerConfig, usual_batch: int, batch: int) -> OptimizerConfig:
    """The optimizer with an absolute rate for another batch: by the square root, as suits Adam.

    Recipes scale the rate in proportion, among batches of thousands; from there down to batches of 32 it would come out
    so small that short runs learn nothing. [Malladi et al. 2022 derive the square root for Adam]
    """
    peak = optimizer.peak(usual_batch) * math.sqrt(batch / usual_batch)
    return replace(optimizer, lr=peak, lr_batch=None)


def augmentation_for(
    settings: ClassifierConfig, usual: ClassifierConfig, views: float, asked: Collection[str] = ()
) -> ClassifierConfig:
    """Settings with larger crops and without mixup, cutmix, RandAugment and erasing, where fewer than a million images
    are seen in all.

    The recipes are made for a hundred million. On 1 % of Fashion-MNIST they cost a fine-tuned encoder 12 points of
    accuracy (docs/evaluation.md). What differs from the `usual` settings is the user's own wish and stays, as do fields
    that are `asked` for by name, whatever their value.
    """
    if views >= VIEWS_FOR_FULL_AUGMENTATION:
        return settings
    ours, theirs = vars(settings), vars(usual)
    changes = {name: value for name, value in LIGHT.items() if name not in asked and ours[name] == theirs[name]}
    return replace(settings, **changes)
