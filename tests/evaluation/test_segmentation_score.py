"""Scores of pixels agree with scikit-learn and torchmetrics, their interval with a plain bootstrap."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score
from sklearn.metrics import confusion_matrix as sklearn_confusion
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from coin_tiles import CLASSES, CoinTiles
from unmask.data.annotated import IGNORE
from unmask.data.segmentation import open_segmentation
from unmask.evaluation import segmentation
from unmask.evaluation.segmentation import (
    SegmentedImage,
    class_counts,
    confusion_matrix,
    evaluate_segmentation,
    score_segmentation,
)
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import PretrainedEncoder
from unmask.tasks.segmentation import SegmentationConfig, SegmentationTask
from unmask.tasks.segmentation_file import FinishedSegmenter, finished_segmenter

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def random_pairs(images: int, classes: int, seed: int, ignored: float = 0.2) -> Pairs:
    """Masks of random sizes, and predictions that are right more often than not."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        shape = tuple(generator.integers(1, 9, 2))
        truth = generator.integers(0, classes, shape)
        predicted = np.where(generator.random(shape) < 0.6, truth, generator.integers(0, classes, shape))
        truth[generator.random(shape) < ignored] = IGNORE
        pairs.append((torch.from_numpy(truth.astype(np.uint8)), torch.from_numpy(predicted.astype(np.uint8))))
    return pairs


def counts_of(pairs: Pairs, classes: int) -> NDArray[np.int64]:
    return np.stack([class_counts(confusion_matrix(truth, predicted, classes)) for truth, predicted in pairs])


def pixels(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """All pixels of all images in one row: truth, prediction."""
    truth, predicted = (torch.cat([pair[part].flatten() for pair in pairs]).long() for part in (0, 1))
    return truth, predicted


def named(count: int) -> tuple[str, ...]:
    return tuple(f"class {k}" for k in range(count))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 9999))
def test_scores_agree_with_scikit_learn(images: int, classes: int, seed: int) -> None:
    pairs = random_pairs(images, classes, seed)
    truth, predicted = (row.numpy() for row in pixels(pairs))
    counted = truth != IGNORE
    truth, predicted = truth[counted], predicted[counted]
    if not len(truth):
        return
    score = score_segmentation(counts_of(pairs, classes), named(classes), resamples=3)
    labels = list(range(classes))
    confusion = sum(confusion_matrix(*pair, classes) for pair in pairs)
    assert np.array_equal(confusion, sklearn_confusion(truth, predicted, labels=labels))
    present = np.unique(truth)
    each = jaccard_score(truth, predicted, labels=labels, average=None, zero_division=0)
    assert score.mean_iou == pytest.approx(100 * each[present].mean())
    assert score.pixel_accuracy == pytest.approx(100 * accuracy_score(truth, predicted))
    with pytest.warns() if set(predicted) - set(truth) else nullcontext():
        assert score.mean_accuracy == pytest.approx(100 * balanced_accuracy_score(truth, predicted))
    for k, found in enumerate(score.classes):
        assert (found.pixels, found.predicted) == ((truth == k).sum(), (predicted == k).sum())
        if k in truth or k in predicted:
            assert found.iou == pytest.approx(100 * each[k])
        else:
            assert found.iou is None
        assert (found.accuracy is None) == (k not in truth)
    assert score.n == images


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 9999))
def test_scores_agree_with_torchmetrics(images: int, classes: int, seed: int) -> None:
    pairs = random_pairs(images, classes, seed)
    truth, predicted = pixels(pairs)
    present = truth[truth != IGNORE].unique()
    if not len(present):
        return
    score = score_segmentation(counts_of(pairs, classes), named(classes), resamples=3)
    jaccard = MulticlassJaccardIndex(classes, average="none", ignore_index=IGNORE)(predicted, truth)
    recall = MulticlassAccuracy(classes, average="none", ignore_index=IGNORE)(predicted, truth)
    micro = MulticlassAccuracy(classes, average="micro", ignore_index=IGNORE)(predicted, truth)
    assert score.mean_iou == pytest.approx(100 * float(jaccard[present].mean()), rel=1e-5)
    assert score.mean_accuracy == pytest.approx(100 * float(recall[present].mean()), rel=1e-5)
    assert score.pixel_accuracy == pytest.approx(100 * float(micro), rel=1e-5)


def test_a_class_that_only_is_predicted_is_in_the_table_but_in_no_mean() -> None:
    truth = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    predicted = torch.tensor([[0, 2, 1, 1]], dtype=torch.uint8)
    score = score_segmentation(counts_of([(truth, predicted)], 4), named(4))
    assert score.mean_iou == pytest.approx((50 + 100) / 2)
    assert [found.iou for found in score.classes] == [50, 100, 0, None]
    assert [found.accuracy for found in score.classes] == [50, 100, None, None]


def test_ignored_pixels_count_nowhere() -> None:
    pairs = random_pairs(4, 3, seed=0)
    other = [(truth, torch.where(truth == IGNORE, 2 - predicted, predicted)) for truth, predicted in pairs]
    assert np.array_equal(counts_of(pairs, 3), counts_of(other, 3))
    nothing = torch.full((3, 3), IGNORE, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^no pixel of the test masks counts, so there is nothing to score$"):
        score_segmentation(counts_of([(nothing, torch.zeros_like(nothing))], 3), named(3))


def test_the_interval_is_that_of_a_plain_bootstrap_over_images() -> None:
    pairs = random_pairs(25, 3, seed=1)
    score = score_segmentation(counts_of(pairs, 3), named(3), resamples=4000)
    generator = np.random.default_rng(9)
    means = []
    for _ in range(600):
        truth, predicted = pixels([pairs[k] for k in generator.integers(0, 25, 25)])
        counted = truth != IGNORE
        present = truth[counted].unique().tolist()
        means.append(
            100 * jaccard_score(truth[counted], predicted[counted], labels=present, average="macro", zero_division=0)
        )
    assert score.interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.8)
    assert score.interval[0] < score.mean_iou < score.interval[1]


def test_resamples_in_parts_are_the_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counts_of(random_pairs(10, 3, seed=2), 3)
    whole = score_segmentation(counts, named(3)).interval
    assert score_segmentation(counts, named(3)).interval == whole
    assert score_segmentation(counts, named(3), seed=1).interval != whole
    monkeypatch.setattr(segmentation, "_WEIGHTS_AT_ONCE", 70)
    assert score_segmentation(counts, named(3)).interval == whole


def test_resamples_without_the_rare_class_or_any_pixel_do_not_break_the_interval() -> None:
    empty = torch.full((2, 2), IGNORE, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8)
    rare = torch.tensor([[0, 1]], dtype=torch.uint8), torch.tensor([[0, 0]], dtype=torch.uint8)
    low, high = score_segmentation(counts_of([empty, empty, rare], 2), named(2)).interval
    assert (low, high) == (25, 25)


@pytest.fixture(scope="module")
def found() -> FinishedSegmenter:
    """A segmenter with random weights on 32 x 32 windows."""
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit_tiny_patch16_224", image_height=32, image_width=32, patch_size=8, depth=1, width=24, heads=2
    )
    encoder = PretrainedEncoder(
        encoder=build_encoder(config, mask_token=False), mean=(0.4,) * 3, std=(0.3,) * 3, origin="test"
    )
    task = SegmentationTask(encoder, SegmentationConfig(), CLASSES)
    task.segmenter.classifier.weight.data.normal_()
    return finished_segmenter(task)


def test_an_evaluation_scores_every_pixel_at_its_own_size(found: FinishedSegmenter) -> None:
    source = CoinTiles((0, 3, 7))
    seen: list[SegmentedImage] = []
    found.segmenter.train()
    score = evaluate_segmentation(found, source, workers=0, watch=seen.append)
    assert found.segmenter.training
    found.segmenter.eval()
    assert [item.index for item in seen] == [0, 1, 2]
    assert all(item.image.shape == (3, 32, 32) for item in seen)
    for item in seen:
        assert np.array_equal(item.truth.numpy(), source.mask(item.index))
        tile = torch.from_numpy(source.read(item.index)).expand(3, -1, -1)
        assert torch.equal(item.predicted, found.predict([tile])[0])
    truth, predicted = pixels([(item.truth, item.predicted) for item in seen])
    assert len(truth) == 3 * 64 * 64
    counted = truth != IGNORE
    expected = 100 * jaccard_score(truth[counted], predicted[counted], average="macro")
    assert score.mean_iou == pytest.approx(expected)
    assert score.n == 3
    assert evaluate_segmentation(found, source, workers=2) == score


def test_a_score_is_plain_json(found: FinishedSegmenter) -> None:
    score = evaluate_segmentation(found, CoinTiles((0, 3)), workers=0)
    values = json.loads(json.dumps(score.as_dict()))
    assert values["interval"] == list(score.interval)
    assert values["n"] == 2
    assert [entry["name"] for entry in values["classes"]] == list(CLASSES)
    assert values["classes"][1]["iou"] == score.classes[1].iou
    assert values["bad_files"] == []


def test_bad_files_are_named_and_other_classes_refused(found: FinishedSegmenter, tmp_path: Path) -> None:
    for half in ("train", "val"):
        for number in range(3):
            for kind, values in (("images", np.full((40, 50), 90)), ("masks", np.eye(40, 50))):
                (tmp_path / half / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(tmp_path / half / kind / f"{number}.png")
    source = open_segmentation(tmp_path, "test")
    with pytest.raises(ValueError, match=r"^the segmenter knows the classes table, coin, but those of .* are 0, 1$"):
        evaluate_segmentation(found, source, workers=0)
    (tmp_path / "classes.txt").write_text("table\ncoin\n")
    source = open_segmentation(tmp_path, "test")
    (tmp_path / "val/images/1.png").write_bytes(b"broken")
    score = evaluate_segmentation(found, source, workers=0)
    assert score.n == 2
    assert score.bad_files == (str(tmp_path / "val/images/1.png"),)
