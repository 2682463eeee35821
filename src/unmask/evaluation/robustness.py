"""How a classifier stands images of another kind: the shifted ImageNets, and common corruptions (ImageNet-C).

Shape legend: N images, H x W pixels, C channels, J classes that count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
from jaxtyping import Int64
from timm.data import ImageNetInfo
from torch import Tensor
from typing_extensions import Doc

from unmask.data.corruption import CORRUPTIONS, SEVERITIES, Corruption, check_corruption, rehearse
from unmask.data.sources import Source, open_source
from unmask.evaluation.classifier import Classifier, Judgement, evenly, judge, matched_labels
from unmask.evaluation.metrics import Score

ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's error on ImageNet-C, averaged over the severities. [google-research/augmix, imagenet.py, where Hendrycks is
an author; the errors of each severity that others publish have these means]"""

CATEGORIES = ("noise", "blur", "weather", "digital")
"""Folders in which the corruptions of ImageNet-C lie as it is distributed."""


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig:
    """Which common corruptions a classifier must stand, on how many images."""

    corruptions: Annotated[
        tuple[str, ...], Doc("Names of the corruptions. [the fifteen of Hendrycks and Dietterich 2019]")
    ] = CORRUPTIONS
    severities: Annotated[tuple[int, ...], Doc("Severities of each corruption, from 1 to 5. [the paper's five]")] = (
        SEVERITIES
    )
    images: Annotated[
        int | None,
        Doc(
            "At most so many of your own test images, spread evenly over them; None for all. Stored ones are all read."
        ),
    ] = 500
    batch_size: Annotated[int, Doc("Images that the classifier sees at once.")] = 128
    seed: Annotated[int, Doc("Seed of what the corruptions draw: the same for every classifier.")] = 0

    def __post_init__(self) -> None:
        if not self.corruptions or not self.severities:
            raise ValueError("robustness needs at least one corruption and one severity")
        for name in self.corruptions:
            for severity in self.severities:
                check_corruption(name, severity)
        if self.batch_size < 1 or (self.images is not None and self.images < 1):
            raise ValueError(
                f"robustness needs at least one image and one image a batch, got {self.images} and {self.batch_size}"
            )


@dataclass(frozen=True)
class CorruptionScore:
    """The score on images with one corruption at one severity."""

    corruption: str
    severity: int
    score: Score

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"corruption": self.corruption, "severity": self.severity, **self.score.as_dict()}


@dataclass(frozen=True)
class RobustnessScore:
    """Accuracy without and with each corruption at each severity; everything in percent.

    `clean` is None where the set holds no clean images. `mce` is the mean corruption error of the paper, None where it
    is not defined (see `stored_robustness`).
    """

    clean: Score | None
    cells: tuple[CorruptionScore, ...]
    mce: float | None = None
    bad_files: tuple[str, ...] = ()

    @property
    def errors(self) -> dict[str, float]:
        """Error of each corruption, averaged over its severities: the paper's unnormalised corruption error."""
        return {
            name: fmean(100 - cell.score.top1 for cell in self.cells if cell.corruption == name)
            for name in dict.fromkeys(cell.corruption for cell in self.cells)
        }

    @property
    def mean(self) -> float:
        """Accuracy averaged over severities, then over corruptions."""
        return 100 - fmean(self.errors.values())

    @property
    def relative(self) -> float | None:
        """`mean` in percent of the clean accuracy: what is left of it. None without a clean accuracy above 0."""
        return 100 * self.mean / self.clean.top1 if self.clean is not None and self.clean.top1 > 0 else None

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """Severity and accuracy averaged over the corruptions, from severity 0, the clean images, on."""
        points = [] if self.clean is None else [(0, self.clean.top1)]
        for severity in sorted({cell.severity for cell in self.cells}):
            points.append((severity, fmean(cell.score.top1 for cell in self.cells if cell.severity == severity)))
        return tuple(points)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "clean": None if self.clean is None else self.clean.as_dict(),
            "mean": self.mean,
            "relative": self.relative,
            "mean_error": 100 - self.mean,
            "mce": self.mce,
            "errors": self.errors,
            "curve": [list(point) for point in self.curve],
            "cells": [cell.as_dict() for cell in self.cells],
            "bad_files": list(self.bad_files),
        }


def shifted(classifier: Classifier, source: Source, *, batch_size: int = 128, workers: int) -> Judgement:
    """Score on a set with other images of classes that the classifier knows: ImageNet-A, -R, -Sketch, -V2.

    Only the classes that the set has count: the logits of the others are left out, as the authors of ImageNet-A and -R
    do for their 200 of 1000 classes. Classes are matched as in `matched_labels`. Raises ValueError for a set with one
    class, no labels or a class that the classifier does not know.
    """
    labels_N, counting_J = _present(classifier, source)
    return judge(classifier, source, labels_N, counting_J, batch_size=batch_size, workers=workers)


def robustness(
    classifier: Classifier,
    source: Source,
    config: RobustnessConfig,
    *,
    workers: int,
    done: Sequence[CorruptionScore] = (),
    on_cell: Callable[[CorruptionScore], None] | None = None,
) -> RobustnessScore:
    """Score on the labelled images of `source`, clean and with the common corruptions, made while they are read.

    All classes of the classifier count. What is drawn is a function of the seed, the corruption, the severity and the
    place of the image among the chosen ones. `mce` is None: AlexNet's errors are those on ImageNet-C's own files.
    Cells in `done` are taken over, `on_cell` is called after each other one. Raises ValueError for a source that does
    not fit the classifier, for images of other than 1 or 3 channels, and where the extra `robustness` is not installed.
    """
    height, width = classifier.image_size
    rehearse(config.corruptions, channels=classifier.channels, height=height, width=width)
    chosen = source.subset(evenly(len(source), config.images).numpy())
    labels_N = matched_labels(classifier.classes, chosen)
    every_K = torch.arange(len(classifier.classes))

    def look(corruption: Corruption | None) -> Judgement:
        return judge(
            classifier,
            chosen,
            labels_N,
            every_K,
            batch_size=config.batch_size,
            workers=workers,
            retouch=corruption,
        )

    clean = look(None)
    asked = [(name, severity) for name in config.corruptions for severity in config.severities]
    cells = _cells(
        asked, lambda name, severity: look(Corruption(name, severity, config.seed)).score, done=done, on_cell=on_cell
    )
    return RobustnessScore(clean.score, cells, bad_files=clean.bad_files)


def stored_robustness(
    classifier: Classifier,
    folder: Path,
    config: RobustnessConfig,
    *,
    workers: int,
    clean: Source | None = None,
    done: Sequence[CorruptionScore] = (),
    on_cell: Callable[[CorruptionScore], None] | None = None,
) -> RobustnessScore:
    """Score on corrupted images in a folder laid out as ImageNet-C: corruption / severity / class / image, possibly
    below folders noise, blur, weather and digital.

    Those corruptions and severities of `config` that the folder has are read whole. The images count as cut out
    already, as ImageNet-C's are: no margin is cut off (as in the authors' test.py; AugMix's imagenet.py cuts one, so
    published figures differ in this). Only the classes present count. `mce` is defined where the classifier's classes
    are ImageNet's 1000 by their WordNet ids, all are present, and all fifteen corruptions are there at all five
    severities. `clean`: images without corruption, where there are any. `done`, `on_cell` as in `robustness`. Raises
    ValueError for a folder with nothing of that layout, and as `shifted` does.
    """
    folders = corruption_folders(folder)
    asked = [
        (name, severity) for name in config.corruptions for severity in config.severities if (name, severity) in folders
    ]
    if not asked:
        raise ValueError(
            f"{folder} is not laid out as ImageNet-C: it has none of the folders asked for, "
            f"like {config.corruptions[0]}/{config.severities[0]}/CLASS"
        )
    bad_files: dict[str, None] = {}

    def look(source: Source, crop_ratio: float | None = None) -> Score:
        labels_N, counting_J = _present(classifier, source)
        judgement = judge(
            classifier,
            source,
            labels_N,
            counting_J,
            batch_size=config.batch_size,
            workers=workers,
            crop_ratio=crop_ratio,
        )
        bad_files.update(dict.fromkeys(judgement.bad_files))
        return judgement.score

    clean_score = None if clean is None else look(clean)
    cells = _cells(
        asked,
        lambda name, severity: look(open_source(folders[name, severity]), crop_ratio=1.0),
        done=done,
        on_cell=on_cell,
    )
    score = RobustnessScore(clean_score, cells, bad_files=tuple(bad_files))
    if len(set(asked)) == len(ALEXNET_ERRORS) * len(SEVERITIES) and _is_imagenet(classifier, folders.values()):
        return replace(score, mce=mean_corruption_error(score.errors))
    return score


def corruption_folders(folder: Path) -> dict[tuple[str, int], Path]:
    """The folders of classes for each of the fifteen corruptions at each severity that lie in `folder`, or below its
    folders noise, blur, weather and digital."""
    found = {}
    for parent in (folder, *(folder / category for category in CATEGORIES)):
        for name in CORRUPTIONS:
            for severity in SEVERITIES:
                place = parent / name / str(severity)
                if place.is_dir():
                    found[name, severity] = place
    return found


def mean_corruption_error(errors: Mapping[str, float]) -> float:
    """mCE in percent from the error of each of the fifteen corruptions in percent, averaged over its severities.

    The mean of errors as shares of AlexNet's (Hendrycks and Dietterich 2019): 100 for AlexNet itself.
    """
    return fmean(errors[name] / alexnet for name, alexnet in ALEXNET_ERRORS.items())


def _is_imagenet(classifier: Classifier, folders: Iterable[Path]) -> bool:
    """Whether the classifier tells apart ImageNet's 1000 classes by their WordNet ids, and each folder has them all."""
    classes = set(ImageNetInfo("imagenet-1k").label_names())
    return set(classifier.classes) == classes and all(
        len(classes & {entry.name for entry in folder.iterdir()}) == len(classes) for folder in folders
    )


def _present(classifier: Classifier, source: Source) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " J"]]:
    """The class of each image, and the classes there are."""
    labels_N = matched_labels(classifier.classes, source)
    counting_J = labels_N.unique()
    if len(counting_J) < 2:
        raise ValueError(f"the images of {source.name} all have one class, so there is nothing to tell apart")
    return labels_N, counting_J


def _cells(
    asked: Sequence[tuple[str, int]],
    look: Callable[[str, int], Score],
    *,
    done: Sequence[CorruptionScore],
    on_cell: Callable[[CorruptionScore], None] | None,
) -> tuple[CorruptionScore, ...]:
    """The score of every cell asked for, in this order; those not in `done` are looked at."""
    known = {(cell.corruption, cell.severity): cell for cell in done}
    cells = []
    for name, severity in asked:
        cell = known.get((name, severity))
        if cell is None:
            cell = CorruptionScore(name, severity, look(name, severity))
            if on_cell is not None:
                on_cell(cell)
        cells.append(cell)
    return tuple(cells)
