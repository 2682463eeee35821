"""What published recipes share: a method's own configuration on a standard encoder at 224 pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from unmask.config import RunConfig
from unmask.methods import find_method
from unmask.methods.base import MethodConfig
from unmask.training.trainer import TrainingConfig

S = TypeVar("S", bound=MethodConfig)

# Enough to keep one GPU fed; the rest of a cluster comes with its own.
WORKERS = 8


def settings_of(method: str, encoder: str) -> MethodConfig:
    """The authors' configuration of `method` with the encoder called `encoder`."""
    settings = find_method(method).Config()
    return replace(settings, encoder=replace(settings.encoder, name=encoder))


def with_optimizer(settings: S, *, lr: float | None = None, warmup_epochs: float | None = None) -> S:
    """The same configuration with another peak rate (by the method's own rule) or warm-up."""
    optimizer = settings.optimizer
    if lr is not None:
        optimizer = replace(optimizer, lr=lr)
    if warmup_epochs is not None:
        optimizer = replace(optimizer, warmup_epochs=warmup_epochs)
    return replace(settings, optimizer=optimizer)


def published(method: str, settings: MethodConfig, *, epochs: float, batch_size: int) -> RunConfig:
    """A run of `method`; the data is for the user to name."""
    training = TrainingConfig(
        epochs=epochs, batch_size=batch_size, workers=WORKERS, log_every=50, checkpoint_every=1000, keep_every=0
    )
    return RunConfig(data="", method=method, settings=settings, training=training)
