"""A user's own methods whose losses are now and then no numbers: `--method benchmarks.faults.unsteady:Unsteady`."""

from __future__ import annotations

import math

import torch

from unmask.methods.mae import MAE
from unmask.trainee import Losses
from unmask.views import Views

STEPS = 40
"""Of the run, from which the methods know where they are."""
BROKEN = (5, 15, 25, 35)
"""Steps of `Unsteady` whose loss is NaN."""
POISONED = 13
"""Step of `Poisoned` from which on its weights are NaN."""


class Unsteady(MAE):
    """MAE with some steps whose loss is NaN."""

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        """MAE's losses, or NaN."""
        factor = math.nan if round(progress * STEPS) in BROKEN else 1.0
        return {name: loss * factor for name, loss in super().losses(views, progress).items()}


class Poisoned(MAE):
    """MAE with a step that spoils the weights: each loss after it is NaN, until the weights come back."""

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        """MAE's losses; once, weights that are NaN."""
        if round(progress * STEPS) == POISONED:
            with torch.no_grad():
                self.decoder.head.bias[0] = math.nan
        return super().losses(views, progress)
