"""Detection runs: images with boxes (and outlines) in, a detector and its average precision out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.data.coco import detection_halves
from unmask.data.detection import DetectionBatch, DetectionSample, detection_loader
from unmask.data.loader import StepLoader
from unmask.data.pixel_range import in_range
from unmask.data.statistics import first_readable
from unmask.evaluation.classifier import evenly
from unmask.evaluation.detection import ScannedImage, evaluate_detection
from unmask.models.pretrained import PretrainedEncoder
from unmask.report.detection_sheet import detection_sheet
from unmask.report.false_colour import Chosen
from unmask.report.parts import Figure
from unmask.supervised.config import SupervisedConfig
from unmask.supervised.subject import Result, Subject
from unmask.tasks.detection import DetectionConfig, DetectionTask, warmed_up
from unmask.tasks.detection_file import detector_file, finished_detector
from unmask.training.trainer import TrainingConfig

SHOWN = 8
SCORED_AT_ONCE = 8


class DetectionSubject(Subject[DetectionBatch]):
    """A detector on images with boxes, and with outlines where all things have one."""

    file_name = "detector.safetensors"

    def __init__(self, config: SupervisedConfig, start: PretrainedEncoder) -> None:
        assert isinstance(config.settings, DetectionConfig)
        self.train, self.test = (in_range(half, start.pixel_range) for half in detection_halves(config.data))
        steps = max(1, len(self.train) // config.training.batch_size)
        settings = warmed_up(config.settings, steps)
        self.task = DetectionTask(start, settings, self.train.classes, outlines=self.train.has_masks)
        self.trainee = self.task
        # Images of other channels than the encoder takes are refused before anything is written.
        first_readable(self.train, channels=len(start.mean))

    @property
    def samples(self) -> int:
        return len(self.train)

    def batches(
        self, first: int, last: int, mine: range, training: TrainingConfig, device: torch.device
    ) -> StepLoader[DetectionSample, DetectionBatch]:
        return detection_loader(
            self.train,
            self.task.canvas,
            self.task.config.jitter,
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
        return evaluate_detection(finished_detector(self.task), self.test, batch_size=SCORED_AT_ONCE, workers=workers)

    def file(self, facts: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
        return detector_file(finished_detector(self.task), facts)

    def figures(self, chosen: Chosen = None) -> list[Figure]:
        seen: list[ScannedImage] = []
        some = self.test.some(evenly(len(self.test), SHOWN).numpy())
        evaluate_detection(finished_detector(self.task), some, batch_size=SCORED_AT_ONCE, workers=0, watch=seen.append)
        sheet = detection_sheet(seen, self.task.classes, chosen)
        return [Figure(title="Test images and what is found in them", sheets={"": sheet})]
