"""Classification runs: labelled images in, a classifier and its accuracy out.

Shape legend: B images, N train images, M test images, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.data.batch import Batch
from unmask.data.loader import CropLoader, EvalLoader
from unmask.data.multilabel import MultiLabelSource, open_multilabel
from unmask.data.pixel_range import in_range
from unmask.data.sources import Source, labelled
from unmask.data.statistics import first_readable
from unmask.evaluation.classifier import check_logits, evenly, judge, matched_labels
from unmask.evaluation.fewshot import label_share, n_shot
from unmask.evaluation.multilabel import MultiLabelScore, score_multilabel
from unmask.models.pretrained import PretrainedEncoder
from unmask.report.false_colour import Chosen
from unmask.report.parts import Figure
from unmask.report.prediction_sheet import prediction_sheet
from unmask.supervised.config import LabelBudget, SupervisedConfig
from unmask.supervised.subject import Result, Subject
from unmask.tasks.classification import ClassificationTask, ClassifierConfig
from unmask.tasks.classifier_file import classifier_file, finished
from unmask.training.trainer import TrainingConfig

SCORED_AT_ONCE = 128
SHOWN = 12


class ClassificationSubject(Subject[Batch]):
    """A classifier on labelled images, one class an image, or several where the data are a CSV."""

    file_name = "classifier.safetensors"

    def __init__(self, config: SupervisedConfig, start: PretrainedEncoder) -> None:
        assert isinstance(config.settings, ClassifierConfig)
        self.train, self.test = (in_range(half, start.pixel_range) for half in classification_halves(config.data))
        self.train = within_budget(self.train, config.budget, config.training.seed)
        assert self.train.classes is not None
        self.task = ClassificationTask(start, config.settings, self.train.classes, targets_NK=targets_of(self.train))
        part = config.training.part_size
        if config.settings.mixes and part % 2:
            raise ValueError(
                f"mixup pairs images, and {part} cannot all be paired: choose an even batch (and even parts of it), or "
                "switch mixing off by --task.mixup 0 --task.cutmix 0"
            )
        if config.settings.norm == "batch" and part < 2:
            raise ValueError("batch norm before the head needs batches (and parts of them) of 2 images or more")
        # An encoder of other channels, or a half that nobody can read, must not be found after the training.
        for half in (self.train, self.test):
            first_readable(half, channels=len(self.task.mean))
        self.trainee = self.task
        # Images of other channels than the encoder takes are refused before anything is written.
        first_readable(self.train, channels=len(start.mean))

    @property
    def samples(self) -> int:
        return len(self.train)

    def batches(self, first: int, last: int, mine: range, training: TrainingConfig, device: torch.device) -> CropLoader:
        return CropLoader(
            self.train,
            self.task.crops,
            batch_size=training.part_size,
            parts=training.parts,
            mine=mine,
            total_steps=last,
            start_step=first,
            seed=training.seed,
            workers=training.workers,
            channels=len(self.task.mean),
            pin_memory=device.type == "cuda",
            max_bad_share=training.max_bad_share,
            retouch=self.task.retouch,
        )

    def score(self, workers: int) -> Result:
        training = self.task.training
        self.task.eval()
        classifier = finished(self.task)
        try:
            if self.task.several:
                return self._score_several(workers)
            labels_M = matched_labels(self.task.classes, self.test)
            every_K = torch.arange(len(self.task.classes))
            return judge(classifier, self.test, labels_M, every_K, batch_size=SCORED_AT_ONCE, workers=workers).score
        finally:
            self.task.train(training)

    def _score_several(self, workers: int) -> MultiLabelScore:
        classifier = finished(self.task)
        logits, indices = [], []
        for images_BCHW, indices_B in self._test_images(self.test, workers):
            logits_BK = classifier(images_BCHW)
            check_logits(logits_BK)
            logits.append(logits_BK)
            indices.append(indices_B)
        targets_MK = targets_of(self.test)
        assert targets_MK is not None
        return score_multilabel(torch.cat(logits).sigmoid(), targets_MK[torch.cat(indices)])

    def _test_images(self, source: Source, workers: int) -> EvalLoader:
        height, width = self.task.classifier.encoder.image_size
        return EvalLoader(
            source,
            height=height,
            width=width,
            channels=len(self.task.mean),
            batch_size=SCORED_AT_ONCE,
            workers=workers,
            crop_ratio=self.task.config.test_crop,
        )

    def file(self, facts: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
        return classifier_file(self.task, facts)

    def figures(self, chosen: Chosen = None) -> list[Figure]:
        spread = evenly(len(self.test), SHOWN)
        shown = self.test.subset(spread.numpy())
        training = self.task.training
        self.task.eval()
        batches = list(self._test_images(shown, 0))
        images_BCHW = torch.cat([images for images, _ in batches])
        logits_BK = finished(self.task)(images_BCHW)
        self.task.train(training)
        kept = spread[torch.cat([indices for _, indices in batches])]
        sheet = prediction_sheet(images_BCHW.float() / 255, logits_BK, self._truth(kept), self.task.classes, chosen)
        return [Figure(title="Test images and what the classifier says", sheets={"": sheet})]

    def _truth(self, indices_B: Tensor) -> Tensor:
        """For each of these test images which classes it has, 0 or 1."""
        targets_MK = targets_of(self.test)
        if targets_MK is not None:
            return targets_MK[indices_B]
        labels_M = matched_labels(self.task.classes, self.test)
        return torch.nn.functional.one_hot(labels_M[indices_B], len(self.task.classes)).float()


def classification_halves(data: str) -> tuple[Source, Source]:
    """Train and test images with their classes: as `labelled`, or as `open_multilabel` for a CSV."""
    if data.lower().endswith(".csv"):
        return open_multilabel(data)
    return labelled(data)


def targets_of(source: Source) -> Tensor | None:
    """Which classes each image of a multi-label source has, 0 or 1; None for other sources."""
    return torch.from_numpy(source.targets_NK) if isinstance(source, MultiLabelSource) else None


def within_budget(source: Source, budget: LabelBudget, seed: int) -> Source:
    """As many of the labelled images as the budget allows, the same ones for the same seed."""
    if budget.share is None and budget.shots is None:
        return source
    if source.labels is None:
        raise ValueError("a budget of labels is for images with one class each, not for several")
    labels_N = torch.from_numpy(source.labels)
    if budget.share is not None:
        chosen = label_share(labels_N, budget.share, seed)
    else:
        assert budget.shots is not None
        chosen = n_shot(labels_N, budget.shots, seed)
    return source.subset(chosen.numpy())
