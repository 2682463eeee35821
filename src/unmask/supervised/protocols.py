"""From the name of a protocol to its task on its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unmask.data.coco import detection_halves
from unmask.data.segmentation import segmentation_halves
from unmask.models.pretrained import PretrainedEncoder
from unmask.supervised.classification import ClassificationSubject, classification_halves, within_budget
from unmask.supervised.config import LabelBudget, Protocol, SupervisedConfig
from unmask.supervised.detection import DetectionSubject
from unmask.supervised.segmentation import SegmentationSubject
from unmask.supervised.subject import Subject

SUBJECTS: dict[Protocol, Callable[[SupervisedConfig, PretrainedEncoder], Subject[Any]]] = {
    "finetune": ClassificationSubject,
    "partial": ClassificationSubject,
    "attentive": ClassificationSubject,
    "certified": ClassificationSubject,
    "segment": SegmentationSubject,
    "detect": DetectionSubject,
}


def build(config: SupervisedConfig, start: PretrainedEncoder) -> Subject[Any]:
    """The task of `config` on the encoder `start`. ValueError where encoder and data do not fit."""
    return SUBJECTS[config.protocol](config, start)


def train_size(protocol: Protocol, data: str, budget: LabelBudget, seed: int) -> int:
    """Number of train images that a run would have. ValueError where the data do not fit the protocol."""
    if protocol == "segment":
        return len(segmentation_halves(data)[0])
    if protocol == "detect":
        return len(detection_halves(data)[0])
    train, _ = classification_halves(data)
    return len(within_budget(train, budget, seed))
