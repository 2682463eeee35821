"""How well things are found in test images: average precision of boxes and outlines, as COCO counts it.

A box (or an outline) is right where it overlaps with a thing of its class that no better one has taken; precision is
averaged over recall, over ten overlaps (IoU .5 to .95), and over classes. Matching and counting are faster_coco_eval's.
Sizes are those of the outlines in pixels (of the boxes, where the data has no outlines); COCO's own files count the
area of the polygons, which differs by a little and matters only to things of nearly 32 or 96 pixels a side.

Shape legend: K things, T overlaps, R recalls, C classes, A areas, M limits on the number of detections.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as rle
from faster_coco_eval.faster_eval_api_cpp import COCOevalAccumulate
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Doc

from unmask.data.annotated import DetectionSource, Things
from unmask.data.detection import DetectionTestLoader, Fit
from unmask.data.pixel_range import in_range
from unmask.evaluation.metrics import RESAMPLES
from unmask.tasks.detection import Detections
from unmask.tasks.detection_file import FinishedDetector

_FEWEST_RESAMPLES = 200
_PAIRS = 2 * 10**7
"""Pairs of an image and a class that a bootstrap may look at; two million a second."""


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """COCO's figures for boxes or for outlines, in percent; None where the test set holds no such thing."""

    ap: Annotated[float, Doc("Mean over overlaps of .5 to .95 and over classes: COCO's AP.")]
    ap50: Annotated[float, Doc("AP where an overlap of .5 is enough.")]
    ap75: Annotated[float, Doc("AP where the overlap must be .75.")]
    ap_small: Annotated[float | None, Doc("AP of things of less than 32 x 32 pixels.")]
    ap_medium: Annotated[float | None, Doc("AP of things between.")]
    ap_large: Annotated[float | None, Doc("AP of things of more than 96 x 96 pixels.")]
    ar: Annotated[float, Doc("Share of the things that are found by at most 100 detections an image, averaged alike.")]
    classes: Annotated[tuple[float | None, ...], Doc("AP of each class.")]
    interval: Annotated[
        tuple[float, float] | None,
        Doc("95 % bootstrap interval of `ap` for drawing other test images, not for training again; None: too many."),
    ]


@dataclass(frozen=True, kw_only=True)
class DetectionScore:
    """How well the things in `n` test images were found. `interval` is that of `box_ap`, in percent as all figures."""

    box_ap: float
    mask_ap: float | None
    """None where the detector or the data has no outlines."""
    interval: tuple[float, float] | None
    n: int
    things: int
    """Things in these images that are no crowds."""
    classes: tuple[str, ...]
    boxes: AveragePrecision
    masks: AveragePrecision | None
    bad_files: tuple[str, ...] = ()
    """Names of the images that could not be used and are left out."""

    def as_dict(self) -> dict[str, Any]:
        """The score as JSON takes it: plain numbers, lists, and dictionaries for boxes and masks."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class ScannedImage:
    """A test image on its canvas, how it lies there, what is in it, and what was found."""

    index: int
    image: UInt8[Tensor, "C H W"]
    fit: Fit
    things: Things
    found: Detections


class DetectionTally:
    """What is in test images and what was found there, image by image, until it is scored.

    Outlines are kept as run lengths: as pixels, those of a few hundred images would fill the memory.
    """

    def __init__(self, classes: tuple[str, ...], *, outlines: bool) -> None:
        self.classes = classes
        self.outlines = outlines
        self._images: list[dict[str, Any]] = []
        self._things: list[dict[str, Any]] = []
        self._boxes: list[dict[str, Any]] = []
        self._masks: list[dict[str, Any]] = []

    def add(self, things: Things, found: Detections) -> None:
        """Count one more image."""
        number = len(self._images) + 1
        self._images.append({"id": number, "height": found.height, "width": found.width})
        masks = things.masks_KHW
        for place, (left, top, right, bottom) in enumerate(things.boxes_K4.tolist()):
            thing = {
                "id": len(self._things) + 1,
                "image_id": number,
                "category_id": int(things.labels_K[place]) + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top) if masks is None else float(masks[place].sum()),
                "iscrowd": int(things.crowd_K[place]),
            }
            if masks is not None:
                thing["segmentation"] = _run_lengths(masks[place])
            self._things.append(thing)
        answers = [
            {"image_id": number, "category_id": label + 1, "score": score}
            for label, score in zip(found.labels_K.tolist(), found.scores_K.tolist(), strict=True)
        ]
        for answer, (left, top, right, bottom) in zip(answers, found.boxes_K4.tolist(), strict=True):
            self._boxes.append(answer | {"bbox": [left, top, right - left, bottom - top]})
        if self.outlines:
            for answer, mask_HW in zip(answers, found.masks(), strict=True):
                self._masks.append(answer | {"segmentation": _run_lengths(mask_HW.numpy())})

    def score(self, *, bad_files: tuple[str, ...] = (), seed: int = 0, resamples: int = RESAMPLES) -> DetectionScore:
        """The score of all images. ValueError where nothing but crowds is marked in them.

        Intervals are percentile bootstraps over images, drawn by `seed`, and left out where images and classes are so
        many that they would take minutes.
        """
        counted = sum(not thing["iscrowd"] for thing in self._things)
        if not counted:
            raise ValueError("no thing is marked in the test images, so there is nothing to find")
        categories = [{"id": place + 1, "name": name} for place, name in enumerate(self.classes)]
        truth = COCO({"images": self._images, "annotations": self._things, "categories": categories})
        boxes = _average_precision(truth, self._boxes, "bbox", seed, resamples)
        masks = _average_precision(truth, self._masks, "segm", seed, resamples) if self.outlines else None
        return DetectionScore(
            box_ap=boxes.ap,
            mask_ap=None if masks is None else masks.ap,
            interval=boxes.interval,
            n=len(self._images),
            things=counted,
            classes=self.classes,
            boxes=boxes,
            masks=masks,
            bad_files=bad_files,
        )


def evaluate_detection(
    found: FinishedDetector,
    source: DetectionSource,
    *,
    batch_size: int,
    workers: int,
    watch: Callable[[ScannedImage], None] | None = None,
) -> DetectionScore:
    """The score of a detector on the readable images of `source`, in eval mode; its own mode is as before after.

    Each image is fitted into the canvas; boxes and outlines are put back into the original image. `watch` sees every
    image with what was found (for a bar of progress, or pictures). Raises ValueError when the classes differ, no image
    can be used, or nothing is marked in any.
    """
    if source.classes != found.classes:
        raise ValueError(
            f"the detector knows the classes {_shown(found.classes)}, but those of {source.name} are "
            f"{_shown(source.classes)}"
        )
    tally = DetectionTally(source.classes, outlines=found.detector.outlines and source.has_masks)
    images = DetectionTestLoader(
        in_range(source, found.pixel_range), found.canvas, mean=found.mean, batch_size=batch_size, workers=workers
    )
    training = found.detector.training
    found.detector.eval()
    try:
        for batch in images:
            answers = found.detect(batch.images, batch.fits)
            for place, (things, answer) in enumerate(zip(batch.things, answers, strict=True)):
                tally.add(things, answer)
                if watch is not None:
                    index, image_CHW = batch.indices[place], batch.images[place]
                    watch(ScannedImage(index, image_CHW, batch.fits[place], things, answer))
    finally:
        found.detector.train(training)
    return tally.score(bad_files=tuple(images.bad_files))


def _average_precision(
    truth: COCO, answers: list[dict[str, Any]], kind: str, seed: int, resamples: int
) -> AveragePrecision:
    evaluator = COCOeval_faster(truth, truth.loadRes(answers), kind, separate_eval=True)
    evaluator.evaluate()
    evaluator.accumulate()
    precision_TRCAM, recall_TCAM = evaluator.eval["precision"], evaluator.eval["recall"]
    overlaps = np.round(100 * evaluator.params.iouThrs)
    everything_TRC = precision_TRCAM[..., 0, -1]
    ap, ap50, ap75, ar = (
        _mean(values)
        for values in (
            everything_TRC,
            everything_TRC[overlaps == 50],
            everything_TRC[overlaps == 75],
            recall_TCAM[..., 0, -1],
        )
    )
    assert ap is not None
    assert ap50 is not None
    assert ap75 is not None
    assert ar is not None
    small, medium, large = (_mean(precision_TRCAM[..., area, -1]) for area in (1, 2, 3))
    return AveragePrecision(
        ap=ap,
        ap50=ap50,
        ap75=ap75,
        ap_small=small,
        ap_medium=medium,
        ap_large=large,
        ar=ar,
        classes=tuple(_mean(everything_TRC[:, :, place]) for place in range(everything_TRC.shape[2])),
        interval=_bootstrap(evaluator, seed, resamples),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    """Mean in percent of what is there: -1 stands for a class without a thing."""
    there = values[values > -1]
    return 100 * float(there.mean()) if there.size else None


def _bootstrap(evaluator: COCOeval_faster, seed: int, resamples: int) -> tuple[float, float] | None:
    """Percentile interval of AP over N images drawn anew, with repeats, from the N; None where that takes too long.

    How detections match is a matter of each image alone, so only counting is done anew. A class of which a resample
    has no thing is left out of its mean.
    """
    parameters = copy.deepcopy(evaluator.params)
    N, C, areas = len(parameters.imgIds), len(parameters.catIds), len(parameters.areaRng)
    resamples = min(resamples, _PAIRS // (N * C))
    if resamples < _FEWEST_RESAMPLES:
        return None
    # What the library found in each image: by class, area and image.
    matched = evaluator._evalImgs_cpp
    parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], parameters.areaRngLbl[:1]
    parameters.maxDets = parameters.maxDets[-1:]
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn = generator.integers(N, size=N).tolist()
        counted = COCOevalAccumulate(parameters, [matched[c * areas * N + image] for c in range(C) for image in drawn])
        mean = _mean(np.asarray(counted["precision"]))
        if mean is not None:
            means.append(mean)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _run_lengths(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    found: dict[str, Any] = rle.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return found


def _shown(classes: Sequence[str]) -> str:
    return ", ".join(classes[:5]) + (" ..." if len(classes) > 5 else "")
