"""From the name of a protocol to its task on its data."""

from __future__ import annotations

from typing import Any

from unmask.models.pretrained import PretrainedEncoder
from unmask.supervised.classification import ClassificationSubject, classification_halves, within_budget
from unmask.supervised.config import LabelBudget, Protocol, SupervisedConfig
from unmask.supervised.subject import Subject


def build(config: SupervisedConfig, start: PretrainedEncoder) -> Subject[Any]:
    """The task of `config` on the encoder `start`. ValueError where encoder and data do not fit."""
    return ClassificationSubject(config, start)


def train_size(protocol: Protocol, data: str, budget: LabelBudget, seed: int) -> int:
    """Number of train images that a run would have. ValueError where the data do not fit the protocol."""
    train, _ = classification_halves(data)
    return len(within_budget(train, budget, seed))
