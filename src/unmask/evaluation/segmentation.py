"""How well the pixels of test images are told apart: intersection over union, accuracies, and what chance leaves open.

Scores are taken at the original size of each mask, over all pixels of all images together; pixels of value `IGNORE`
count nowhere. Shape legend: N images, C channels, H x W pixels, K classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor
from typing_extensions import Doc

from unmask.data.annotated import IGNORE, SegmentationSource
from unmask.data.pixel_range import in_range
from unmask.data.segmentation_crops import SegmentationTestLoader
from unmask.evaluation.metrics import RESAMPLES
from unmask.tasks.segmentation_file import FinishedSegmenter, best_classes

_WEIGHTS_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How well one class was found; percentages, and numbers of pixels of all test images together."""

    name: Annotated[str, Doc("The class.")]
    iou: Annotated[float | None, Doc("Pixels that are it and were called it, by those of either kind; None: no such.")]
    accuracy: Annotated[float | None, Doc("Share of its pixels that were called it; None: the test set has none.")]
    pixels: Annotated[int, Doc("Pixels that are it.")]
    predicted: Annotated[int, Doc("Pixels that were called it.")]


@dataclass(frozen=True, kw_only=True)
class SegmentationScore:
    """How well the pixels of `n` test images were told apart; shares in percent.

    `mean_iou` and `mean_accuracy` are means over the classes of which the test set holds a pixel; `interval` is the
    95 % bootstrap interval of `mean_iou` for drawing other test images, not for training again. mmsegmentation leaves
    out only classes that are neither there nor predicted: one that is predicted alone counts as 0 there. Where the test
    set holds every class, as ADE20K's does, the means are equal.
    """

    mean_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    interval: tuple[float, float]
    n: int
    classes: tuple[ClassScore, ...]
    bad_files: tuple[str, ...] = ()
    """Names of the images that could not be used with their masks and are left out."""

    def as_dict(self) -> dict[str, Any]:
        """The score as JSON takes it: plain numbers, lists, and a dictionary for each class."""
        values = asdict(self)
        return values | {name: list(values[name]) for name in ("interval", "classes", "bad_files")}


@dataclass(frozen=True)
class SegmentedImage:
    """A test image, resized, and the classes of its pixels at the size of its mask: the true ones, those predicted."""

    index: int
    image: UInt8[Tensor, "C h w"]
    truth: UInt8[Tensor, "H W"]
    predicted: UInt8[Tensor, "H W"]


def confusion_matrix(
    truth_HW: UInt8[Tensor, "H W"], predicted_HW: UInt8[Tensor, "H W"], class_count: int
) -> Int64[np.ndarray, "K K"]:
    """How many pixels of each class (row) were called which (column); ignored ones are left out."""
    truth, predicted = truth_HW.numpy().ravel(), predicted_HW.numpy().ravel()
    counted = truth != IGNORE
    cells = truth[counted].astype(np.int64) * class_count + predicted[counted]
    return np.bincount(cells, minlength=class_count**2).reshape(class_count, class_count).astype(np.int64)


def class_counts(confusion_KK: Int64[np.ndarray, "K K"]) -> Int64[np.ndarray, "3 K"]:
    """Of each class: pixels that were right, pixels that are it, pixels that were called it. All scores follow."""
    return np.stack([confusion_KK.diagonal(), confusion_KK.sum(axis=1), confusion_KK.sum(axis=0)])


def score_segmentation(
    counts_N3K: Int64[np.ndarray, "N 3 K"],
    classes: tuple[str, ...],
    *,
    bad_files: tuple[str, ...] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> SegmentationScore:
    """The score of the `class_counts` of every image. ValueError when no pixel counts."""
    assert counts_N3K.shape[2] == len(classes)
    right_K, true_K, called_K = counts_N3K.sum(axis=0)
    if not true_K.any():
        raise ValueError("no pixel of the test masks counts, so there is nothing to score")
    union_K = true_K + called_K - right_K
    with np.errstate(invalid="ignore"):
        iou_K, accuracy_K = 100 * right_K / union_K, 100 * right_K / true_K
    present_K = true_K > 0
    scores = tuple(
        ClassScore(
            name=name,
            iou=float(iou_K[k]) if union_K[k] else None,
            accuracy=float(accuracy_K[k]) if present_K[k] else None,
            pixels=int(true_K[k]),
            predicted=int(called_K[k]),
        )
        for k, name in enumerate(classes)
    )
    return SegmentationScore(
        mean_iou=float(iou_K[present_K].mean()),
        pixel_accuracy=float(100 * right_K.sum() / true_K.sum()),
        mean_accuracy=float(accuracy_K[present_K].mean()),
        interval=_bootstrap(counts_N3K, seed, resamples),
        n=len(counts_N3K),
        classes=scores,
        bad_files=bad_files,
    )


def _bootstrap(counts_N3K: Int64[np.ndarray, "N 3 K"], seed: int, resamples: int) -> tuple[float, float]:
    """Percentile interval of the mean IoU of N images drawn anew, with repeats, from the N.

    A class of which a resample has no pixel is left out of its mean. Resamples without any pixel that counts do not
    count either.
    """
    N = len(counts_N3K)
    flat = counts_N3K.reshape(N, -1).astype(np.float64)
    generator = np.random.default_rng(seed)
    means = []
    at_once = max(1, _WEIGHTS_AT_ONCE // N)
    for first in range(0, resamples, at_once):
        weights_RN = generator.multinomial(N, np.full(N, 1 / N), size=min(at_once, resamples - first))
        right_RK, true_RK, called_RK = np.moveaxis((weights_RN @ flat).reshape(-1, *counts_N3K.shape[1:]), 1, 0)
        iou_RK = right_RK / np.maximum(true_RK + called_RK - right_RK, 1)
        present_RK = true_RK > 0
        some_R = present_RK.any(axis=1)
        # A class without a pixel has none that is right, so it adds nothing to the sum.
        means.append(iou_RK.sum(axis=1)[some_R] / present_RK.sum(axis=1)[some_R])
    low, high = np.quantile(100 * np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def evaluate_segmentation(
    found: FinishedSegmenter,
    source: SegmentationSource,
    *,
    workers: int,
    watch: Callable[[SegmentedImage], None] | None = None,
) -> SegmentationScore:
    """The score of a segmenter on the readable images of `source`, in eval mode; its own mode is as before after.

    Each image is resized to cover the crop, looked at as `found.mode` says, and its logits are resized to the size of
    its mask. `watch` sees every image with what was predicted (for a bar of progress, or pictures). Raises ValueError
    when the classes differ, no image can be used, or no pixel counts.
    """
    if source.classes != found.classes:
        raise ValueError(
            f"the segmenter knows the classes {_shown(found.classes)}, but those of {source.name} are "
            f"{_shown(source.classes)}"
        )
    images = SegmentationTestLoader(
        in_range(source, found.pixel_range), found.crop, channels=found.channels, workers=workers
    )
    counts = []
    training = found.segmenter.training
    found.segmenter.eval()
    try:
        for item in images:
            H, W = item.mask.shape
            predicted_HW = best_classes(found.logits(item.image), (H, W))
            counts.append(class_counts(confusion_matrix(item.mask, predicted_HW, len(source.classes))))
            if watch is not None:
                watch(SegmentedImage(item.index, item.image, item.mask, predicted_HW))
    finally:
        found.segmenter.train(training)
    return score_segmentation(np.stack(counts), source.classes, bad_files=tuple(images.bad_files))


def _shown(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:5]) + (" ..." if len(classes) > 5 else "")
