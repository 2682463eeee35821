"""Average precision is pycocotools', for boxes and outlines, with crowds, sizes and empty images."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from coin_things import CoinParts
from tiny_detectors import TINY_DETECTION, tiny_detection
from unmask.data.annotated import Things
from unmask.evaluation.detection import (
    AveragePrecision,
    DetectionScore,
    DetectionTally,
    ScannedImage,
    evaluate_detection,
)
from unmask.tasks.detection import Detections
from unmask.tasks.detection_file import finished_detector

CLASSES = ("cat", "dog", "bird")
SIDE = 130


def random_image(generator: np.random.Generator, crowd: float) -> tuple[Things, Detections]:
    """Things of all three sizes and answers near them, beside them, and in classes that are wrong."""
    count, extra = int(generator.integers(0, 5)), int(generator.integers(0, 4))
    corners = generator.uniform(0, SIDE - 1, (count, 2))
    sizes = generator.choice([8.0, 30.0, 50.0, 110.0], (count, 2)) * generator.uniform(0.5, 1.2, (count, 2))
    boxes = np.concatenate([corners, np.minimum(corners + sizes, SIDE)], axis=1)
    labels = generator.integers(0, len(CLASSES), count)
    masks = np.zeros((count, SIDE, SIDE), dtype=np.bool_)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
        mask &= generator.random((SIDE, SIDE)) < 0.9
    things = Things(
        boxes_K4=boxes.astype(np.float32),
        labels_K=labels,
        masks_KHW=masks,
        crowd_K=generator.random(count) < crowd,
    )
    repeated = (
        generator.integers(0, count, int(generator.integers(0, 2 * count))) if count else np.zeros(0, dtype=np.int64)
    )
    near = boxes[repeated] + generator.normal(0, 4, (len(repeated), 4))
    beside = generator.uniform(0, SIDE / 2, (extra, 4)) + np.array([0, 0, SIDE / 2, SIDE / 2])
    guessed = np.concatenate([near, beside]).clip(0, SIDE)
    guessed[:, 2:] = np.maximum(guessed[:, 2:], guessed[:, :2] + 1)
    named = np.concatenate([labels[repeated], generator.integers(0, len(CLASSES), extra)])
    wrong = generator.random(len(named)) < 0.2
    named[wrong] = generator.integers(0, len(CLASSES), wrong.sum())
    # Few different scores, so that some are equal.
    scores = generator.integers(1, 20, len(named)) / 20
    order = np.argsort(-scores, kind="stable")
    found = Detections(
        boxes_K4=torch.tensor(guessed[order], dtype=torch.float32).reshape(-1, 4),
        labels_K=torch.tensor(named[order], dtype=torch.int64),
        scores_K=torch.tensor(scores[order], dtype=torch.float32),
        shapes_KMM=torch.from_numpy(generator.random((len(named), 28, 28), dtype=np.float32)) + 0.3,
        height=SIDE,
        width=SIDE,
    )
    return things, found


def run_lengths(mask: NDArray[np.bool_]) -> Any:
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))


def theirs(images: list[tuple[Things, Detections]], kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """pycocotools' twelve figures, and its AP of each class, -1 where there is none."""
    truth: dict[str, Any] = {
        "images": [{"id": n, "height": SIDE, "width": SIDE} for n in range(len(images))],
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES)],
        "annotations": [],
    }
    answers = []
    for n, (things, found) in enumerate(images):
        assert things.masks_KHW is not None
        for k, box in enumerate(things.boxes_K4.astype(np.float64)):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": n,
                    "category_id": int(things.labels_K[k]),
                    "bbox": [*box[:2], *(box[2:] - box[:2])],
                    "area": float(things.masks_KHW[k].sum()),
                    "iscrowd": int(things.crowd_K[k]),
                    "segmentation": run_lengths(things.masks_KHW[k]),
                }
            )
        for k, mask in enumerate(found.masks()):
            box = found.boxes_K4[k].double().numpy()
            answer = {"image_id": n, "category_id": int(found.labels_K[k]), "score": float(found.scores_K[k])}
            extent = {"bbox": [*box[:2], *(box[2:] - box[:2])]}
            answers.append(answer | (extent if kind == "bbox" else {"segmentation": run_lengths(mask.numpy())}))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(answers), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    classes = []
    for n in range(len(CLASSES)):
        values = evaluator.eval["precision"][:, :, n, 0, -1]
        classes.append(values[values > -1].mean() if (values > -1).any() else -1)
    return np.array(evaluator.stats), np.array(classes)


def figures(ours: AveragePrecision) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """In pycocotools' order: AP, AP50, AP75, small, medium, large and AR at 100 detections."""
    values = [ours.ap, ours.ap50, ours.ap75, ours.ap_small, ours.ap_medium, ours.ap_large, ours.ar]
    both = ([-1 if value is None else value / 100 for value in part] for part in (values, ours.classes))
    first, second = (np.array(part) for part in both)
    return first, second


def scored(images: list[tuple[Things, Detections]], *, outlines: bool = True, **options: Any) -> DetectionScore:
    tally = DetectionTally(CLASSES, outlines=outlines)
    for things, found in images:
        tally.add(things, found)
    return tally.score(**options)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 8), crowd=st.sampled_from([0.0, 0.3]))
def test_it_is_pycocotools_on_random_detections(seed: int, count: int, crowd: float) -> None:
    generator = np.random.default_rng(seed)
    images = [random_image(generator, crowd) for _ in range(count)]
    things = sum(int((~things.crowd_K).sum()) for things, _ in images)
    if not things:
        with pytest.raises(ValueError, match=r"^no thing is marked in the test images, so there is nothing to find$"):
            scored(images)
        return
    score = scored(images, resamples=0)
    assert (score.n, score.things) == (count, things)
    if not any(len(found.scores_K) for _, found in images):
        return  # pycocotools cannot take an empty list
    assert score.masks is not None
    for kind, ours in (("bbox", score.boxes), ("segm", score.masks)):
        stats, classes = theirs(images, kind)
        found, found_classes = figures(ours)
        np.testing.assert_allclose(found, stats[[0, 1, 2, 3, 4, 5, 8]], rtol=0, atol=1e-9)
        np.testing.assert_allclose(found_classes, classes, rtol=0, atol=1e-9)
    assert (score.box_ap, score.mask_ap) == (score.boxes.ap, score.masks.ap)


def nothing_found(images: int = 1) -> Detections:
    return Detections(
        boxes_K4=torch.zeros(0, 4),
        labels_K=torch.zeros(0, dtype=torch.int64),
        scores_K=torch.zeros(0),
        shapes_KMM=torch.zeros(0, 28, 28),
        height=SIDE,
        width=SIDE,
    )


def test_without_any_detection_everything_is_zero() -> None:
    generator = np.random.default_rng(3)
    images = [(random_image(generator, 0.0)[0], nothing_found()) for _ in range(6)]
    score = scored(images)
    assert score.boxes.ap == score.boxes.ap50 == score.boxes.ar == 0
    assert score.masks is not None
    assert score.masks.ap == 0
    assert score.interval == (0, 0)


def test_perfect_boxes_have_100_percent() -> None:
    generator = np.random.default_rng(3)
    images = []
    for _ in range(6):
        things, _ = random_image(generator, 0.0)
        count = len(things.labels_K)
        found = replace(
            nothing_found(),
            boxes_K4=torch.from_numpy(things.boxes_K4),
            labels_K=torch.from_numpy(things.labels_K),
            scores_K=torch.linspace(1, 0.5, count),
            shapes_KMM=torch.ones(count, 28, 28),
        )
        images.append((things, found))
    assert scored(images).boxes.ap == pytest.approx(100)


def brute_bootstrap(images: list[tuple[Things, Detections]], seed: int, resamples: int) -> NDArray[np.float64]:
    """AP of the boxes of resamples that are scored as data sets of their own."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = [images[n] for n in generator.integers(len(images), size=len(images))]
        if any((~things.crowd_K).any() for things, _ in drawn):
            found.append(scored(drawn, outlines=False, resamples=0).box_ap)
    return np.quantile(found, [0.025, 0.975])


def test_the_interval_is_that_of_scoring_every_resample_anew() -> None:
    generator = np.random.default_rng(1)
    images = [random_image(generator, 0.1) for _ in range(7)]
    score = scored(images, seed=5, resamples=200)
    assert score.interval is not None
    np.testing.assert_allclose(score.interval, brute_bootstrap(images, 5, 200), rtol=0, atol=1e-9)
    assert score.interval[0] <= score.box_ap <= score.interval[1]
    assert score.interval == score.boxes.interval
    assert scored(images, seed=6, resamples=200).interval != score.interval


def test_an_interval_that_would_take_minutes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [random_image(np.random.default_rng(1), 0.0)] * 3
    monkeypatch.setattr("unmask.evaluation.detection._PAIRS", 199 * 3 * len(CLASSES))
    assert scored(images).interval is None


def test_boxes_alone_are_scored_by_the_sizes_of_boxes() -> None:
    things = Things(
        boxes_K4=np.array([[0, 0, 30, 30]], dtype=np.float32),
        labels_K=np.array([1]),
        masks_KHW=None,
        crowd_K=np.array([False]),
    )
    found = replace(
        nothing_found(),
        boxes_K4=torch.tensor([[0.0, 0, 30, 24]]),
        labels_K=torch.tensor([1]),
        scores_K=torch.tensor([0.9]),
        shapes_KMM=None,
    )
    tally = DetectionTally(CLASSES, outlines=False)
    tally.add(things, found)
    score = tally.score()
    assert score.masks is None
    assert score.mask_ap is None
    # An overlap of .8: right at seven of ten limits.
    assert score.box_ap == pytest.approx(70)
    assert score.boxes.ap_small == pytest.approx(70)
    assert score.boxes.ap_medium is None
    assert score.boxes.classes == (None, pytest.approx(70), None)


def test_a_score_is_plain_json() -> None:
    generator = np.random.default_rng(0)
    values = json.loads(json.dumps(scored([random_image(generator, 0.0) for _ in range(4)]).as_dict()))
    assert {"box_ap", "mask_ap", "interval", "n", "things", "classes", "boxes", "masks", "bad_files"} == set(values)
    assert len(values["boxes"]["classes"]) == len(values["classes"]) == 3


def test_a_detector_is_judged_in_eval_mode_and_left_as_it_was() -> None:
    task = tiny_detection().train()
    coins = CoinParts((3, 4, 5))
    seen: list[ScannedImage] = []
    score = evaluate_detection(finished_detector(task), coins, batch_size=2, workers=0, watch=seen.append)
    assert task.detector.training
    assert (score.n, score.things) == (3, 12)
    assert [item.index for item in seen] == [0, 1, 2]
    for item in seen:
        assert item.image.shape == (1, 64, 80)
        assert (item.found.height, item.found.width) == (100, 128)
        assert item.found.boxes_K4[:, 2].max() <= 128
    again = evaluate_detection(finished_detector(task), coins, batch_size=3, workers=1)
    assert again.box_ap == pytest.approx(score.box_ap, abs=1e-6)
    plain = evaluate_detection(finished_detector(task), CoinParts((3, 4, 5), outlines=False), batch_size=3, workers=0)
    assert plain.masks is None
    assert plain.boxes.ap50 == pytest.approx(score.boxes.ap50, abs=1e-6)


def test_other_classes_are_refused() -> None:
    task = tiny_detection(TINY_DETECTION, classes=("cat", "dog", "bird", "cow", "pig", "hen"))
    told = r"^the detector knows the classes cat, dog, bird, cow, pig ..., but those of coins are coin$"
    with pytest.raises(ValueError, match=told):
        evaluate_detection(finished_detector(task), CoinParts(), batch_size=2, workers=0)
