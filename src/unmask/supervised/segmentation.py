"""Segmentation runs: images with masks in, a segmenter and its mean IoU out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.data.loader import StepLoader
from unmask.data.pixel_range import in_range
from unmask.data.segmentation import segmentation_halves
from unmask.data.segmentation_crops import SegmentationBatch, SegmentationSample, segmentation_loader
from unmask.data.statistics import first_readable
from unmask.evaluation.classifier import evenly
from unmask.evaluation.segmentation import SegmentedImage, evaluate_segmentation
from unmask.models.pretrained import PretrainedEncoder
from unmask.report.false_colour import Chosen
from unmask.report.parts import Figure
from unmask.report.segmentation_sheet import segmentation_sheet
from unmask.supervised.config import SupervisedConfig
from unmask.supervised.subject import Result, Subject
from unmask.tasks.segmentation import SegmentationConfig, SegmentationTask
from unmask.tasks.segmentation_file import finished_segmenter, segmenter_file
from unmask.training.trainer import TrainingConfig

SHOWN = 8


class SegmentationSubject(Subject[SegmentationBatch]):
    """A segmenter on images with masks."""

    file_name = "segmenter.safetensors"

    def __init__(self, config: SupervisedConfig, start: PretrainedEncoder) -> None:
        assert isinstance(config.settings, SegmentationConfig)
        self.train, self.test = (in_range(half, start.pixel_range) for half in segmentation_halves(config.data))
        if config.training.part_size < 2:
            raise ValueError("a segmenter is trained on batches (or their parts) of 2 images or more")
        self.task = SegmentationTask(start, config.settings, self.train.classes)
        self.trainee = self.task
        # Images of other channels than the encoder takes are refused before anything is written.
        first_readable(self.train, channels=len(start.mean))

    @property
    def samples(self) -> int:
        return len(self.train)

    def batches(
        self, first: int, last: int, mine: range, training: TrainingConfig, device: torch.device
    ) -> StepLoader[SegmentationSample, SegmentationBatch]:
        return segmentation_loader(
            self.train,
            self.task.crop,
            self.task.config.crops,
            mean=self.task.mean,
            first=first,
            last=last,
            batch_size=training.part_size,
            parts=training.parts,
            mine=mine,
            seed=training.seed,
            workers=training.workers,
            pin_memory=device.type == "cuda",
            max_bad_share=training.max_bad_share,
        )

    def score(self, workers: int) -> Result:
        return evaluate_segmentation(finished_segmenter(self.task), self.test, workers=workers)

    def file(self, facts: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
        return segmenter_file(finished_segmenter(self.task), facts)

    def figures(self, chosen: Chosen = None) -> list[Figure]:
        seen: list[SegmentedImage] = []
        some = self.test.some(evenly(len(self.test), SHOWN).numpy())
        evaluate_segmentation(finished_segmenter(self.task), some, workers=0, watch=seen.append)
        sheet = segmentation_sheet(seen, self.task.classes, chosen)
        return [Figure(title="Test images and their pixels' classes", sheets={"": sheet})]
