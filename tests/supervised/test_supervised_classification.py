"""Labelled images in, as many as the budget allows, scores and pictures of the classifier that is worth keeping out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiny_classifiers import BARE, tiny_pretrained
from tiny_runs import draw_images
from tiny_supervised import supervised
from unmask.data.multilabel import open_multilabel
from unmask.data.sources import ArraySource, labelled
from unmask.supervised.classification import (
    ClassificationSubject,
    classification_halves,
    targets_of,
    within_budget,
)
from unmask.supervised.config import LabelBudget
from unmask.training.trainer import TrainingConfig


def source_of(labels: list[int]) -> ArraySource:
    """Images of 4 x 4 pixels of which each is a number, with labels."""
    pixels_NHWC = np.arange(len(labels), dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    classes = tuple("abcdefgh"[: max(labels) + 1])
    return ArraySource("drawn", pixels_NHWC, labels=np.array(labels), classes=classes)


LABELS = st.lists(st.integers(1, 9), min_size=2, max_size=6).map(
    lambda counts: [label for label, count in enumerate(counts) for _ in range(count)]
)


@settings(max_examples=60, deadline=None)
@given(LABELS, st.floats(0.01, 1), st.integers(0, 10))
def test_a_share_is_of_every_class_alike(labels: list[int], share: float, seed: int) -> None:
    source = source_of(labels)
    few = within_budget(source, LabelBudget(share=share), seed)
    again = within_budget(source, LabelBudget(share=share), seed)
    numbers = [int(np.asarray(few.read(index)).flat[0]) for index in range(len(few))]
    assert numbers == [int(np.asarray(again.read(index)).flat[0]) for index in range(len(again))]
    assert len(set(numbers)) == len(numbers)
    assert few.labels is not None
    assert few.labels.tolist() == [labels[number] for number in numbers]
    assert few.classes == source.classes
    for label in set(labels):
        whole = labels.count(label)
        assert abs(int((few.labels == label).sum()) - share * whole) <= 0.5 or (few.labels == label).sum() == 1


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(1, 6), st.integers(0, 10))
def test_shots_are_of_every_class(labels: list[int], shots: int, seed: int) -> None:
    source = source_of(labels)
    smallest = min(labels.count(label) for label in set(labels))
    if smallest < shots:
        sentence = f"^{shots} images of every class are asked for, but the smallest class has {smallest}$"
        with pytest.raises(ValueError, match=sentence):
            within_budget(source, LabelBudget(shots=shots), seed)
        return
    few = within_budget(source, LabelBudget(shots=shots), seed)
    assert few.labels is not None
    assert np.bincount(few.labels).tolist() == [shots] * len(set(labels))


def test_another_seed_takes_other_labels_and_no_budget_takes_all() -> None:
    source = source_of([0] * 30 + [1] * 30)
    drawn = {
        tuple(np.asarray(few.read(index)).flat[0] for index in range(len(few)))
        for few in (within_budget(source, LabelBudget(shots=3), seed) for seed in range(8))
    }
    assert len(drawn) == 8
    assert within_budget(source, LabelBudget(), 0) is source


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = draw_images(tmp_path_factory.mktemp("several"), 12, classes=("",))
    rows = [
        f"{number:03d}.png,{'red' if number % 2 else 'blue;cool'},{'test' if number > 7 else 'train'}"
        for number in range(12)
    ]
    (folder / "Labels.CSV").write_text("\n".join(["image,labels,split", *rows]))
    return folder / "Labels.CSV"


def test_a_csv_has_several_classes_an_image(csv: Path, tmp_path: Path) -> None:
    train, test = classification_halves(str(csv))
    assert train.classes == test.classes == ("blue", "cool", "red")
    targets = targets_of(train)
    assert targets is not None
    assert torch.equal(targets, torch.from_numpy(open_multilabel(csv)[0].targets_NK))
    with pytest.raises(ValueError, match=r"^a budget of labels is for images with one class each, not for several$"):
        within_budget(train, LabelBudget(shots=1), 0)
    data = draw_images(tmp_path / "data", 20)
    train, test = classification_halves(str(data))
    assert targets_of(train) is None
    assert len(train) == len(labelled(data)[0])


def subject_on(data: Path, **changes: Any) -> ClassificationSubject:
    settings = replace(BARE, **changes)
    return ClassificationSubject(supervised(data, Path("anything"), settings), tiny_pretrained())


def test_batches_hold_what_the_task_wants(csv: Path, tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data", 24)
    subject = subject_on(data, randaugment="rand-m9-n4-p1", image_height=40, crop_scale=(1.0, 1.0))
    training = TrainingConfig(batch_size=4, parts=2, workers=0, seed=3)
    batches = list(subject.batches(2, 7, range(1), training, torch.device("cpu")))
    assert [tuple(batch.crops[0].shape) for batch in batches] == [(2, 1, 3, 40, 32)] * 5
    train = labelled(data)[0]
    assert train.labels is not None
    for batch in batches:
        assert batch.labels is not None
        assert batch.labels.tolist() == train.labels[batch.indices.numpy()].tolist()
    # The same steps again, from another beginning; without RandAugment they look different.
    later = list(subject.batches(4, 7, range(1), training, torch.device("cpu")))
    for one, other in zip(batches[2:], later, strict=True):
        assert torch.equal(one.crops[0], other.crops[0])
        assert one.seed == other.seed
    plain = subject_on(data, image_height=40, crop_scale=(1.0, 1.0))
    bare = list(plain.batches(2, 7, range(1), training, torch.device("cpu")))
    assert all(torch.equal(one.indices, other.indices) for one, other in zip(batches, bare, strict=True))
    assert not any(torch.equal(one.crops[0], other.crops[0]) for one, other in zip(batches, bare, strict=True))

    several = ClassificationSubject(supervised(csv, Path("anything")), tiny_pretrained())
    (batch,) = several.batches(0, 1, range(1), training, torch.device("cpu"))
    targets = targets_of(several.train)
    assert targets is not None
    assert torch.equal(several.task.make_views(batch).targets, targets[batch.indices])


@pytest.mark.parametrize("several", [False, True])
def test_a_score_is_of_the_averaged_weights_and_leaves_the_mode(several: bool, csv: Path, tmp_path: Path) -> None:
    data = csv if several else draw_images(tmp_path / "data", 24)
    subject = subject_on(data, average=0.9, drop_path=0.5)
    task = subject.task.train()
    assert task.average is not None
    with torch.no_grad():
        task.average.head.weight.zero_()
        task.average.head.bias.copy_(torch.arange(len(task.classes)))
    before = [module.training for module in task.modules()]
    score = subject.score(0).as_dict()
    assert [module.training for module in task.modules()] == before
    assert subject.score(0).as_dict() == score
    if several:
        # All images score alike, so the precision of each class is its share.
        shares = targets_of(subject.test)
        assert shares is not None
        assert score["ap"] == pytest.approx((100 * shares.mean(dim=0)).tolist())
    else:
        assert subject.test.labels is not None
        assert score["top1"] == pytest.approx(100 * float((subject.test.labels == 1).mean()))
    task.eval()
    subject.score(0)
    assert not task.training


@pytest.mark.parametrize("several", [False, True])
def test_logits_that_are_not_finite_are_a_sentence(several: bool, csv: Path, tmp_path: Path) -> None:
    subject = subject_on(csv if several else draw_images(tmp_path / "data", 24))
    subject.task.classifier.head.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"^the classifier gives NaN or infinite logits; "):
        subject.score(0)


@pytest.mark.parametrize("several", [False, True])
def test_pictures_show_what_the_classifier_says(several: bool, csv: Path, tmp_path: Path) -> None:
    if several:
        data = csv
    else:
        data = tmp_path / "data"
        draw_images(data / "train", 8)
        draw_images(data / "val", 40)
        for path in sorted((data / "val" / "cold").iterdir())[4:]:
            path.unlink()
        (data / "val" / "cold" / "000 bad.png").write_text("no image")
    subject = subject_on(data, pooling="class")
    subject.task.train()
    with torch.no_grad():
        subject.task.classifier.head.weight.zero_()
        subject.task.classifier.head.bias.copy_(torch.eye(len(subject.task.classes))[1])
    (figure,) = subject.figures()
    assert subject.task.training
    cells = [cell for row in figure.sheets[""].rows for cell in row]
    known = subject.task.classes[1]
    assert all((cell.mark == "right") == (cell.label == known) for cell in cells)
    if several:
        assert len(cells) == 4
        assert {cell.label for cell in cells} == {known, f"{known}, not red"}
        return
    # Spread over the set, without the file that cannot be read.
    assert subject.test.labels is not None
    shown = [index for index in (torch.arange(12) * 25 // 12).tolist() if "bad" not in subject.test.path(index)]
    assert len(shown) == 11
    expected = [known if subject.test.labels[index] == 1 else f"{known}, not cold" for index in shown]
    assert len(cells) >= 6
    assert [cell.label for cell in cells] == expected[: len(cells)]
    assert len(set(expected[: len(cells)])) == 2


@pytest.mark.parametrize(("side", "usual"), [(32, 1.0), (72, 224 / 256)])
def test_the_share_of_a_test_image_that_is_seen(side: int, usual: float, tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data", 24, side=96)

    def seen(crop: float | None) -> Tensor:
        subject = subject_on(data, test_crop=crop, image_height=side, image_width=side)
        return torch.cat([images for images, _ in subject._test_images(subject.test, 0)])

    assert torch.equal(seen(None), seen(usual))
    assert not torch.equal(seen(usual), seen(0.5))
