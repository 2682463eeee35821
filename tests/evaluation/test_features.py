"""Features come in the source's order with the right labels, and sets that cannot be compared are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unmask.data.sources import ArraySource
from unmask.evaluation.features import Features, comparable_labels, dense_labels, extract, pixel_extractor


def _source(n: int = 7, side: int = 16, *, labelled: bool = True) -> ArraySource:
    """Image i is filled with 10 i."""
    images = np.repeat(10 * np.arange(n, dtype=np.uint8), side * side * 3).reshape(n, side, side, 3)
    labels = np.arange(n) % 2 if labelled else None
    return ArraySource("grey", images, labels=labels, classes=("even", "odd") if labelled else None)


def _features(x: list[list[float]], labels: list[int], classes: tuple[str, ...] | None = None) -> Features:
    return Features(
        x_ND=torch.tensor(x), labels_N=torch.tensor(labels), indices_N=torch.arange(len(x)), classes=classes
    )


def test_extract_keeps_order_labels_and_positions() -> None:
    features = extract(pixel_extractor(2), _source(), height=16, width=16, channels=3, batch_size=3, workers=0)
    assert features.x_ND.shape == (7, 12)
    assert features.x_ND.dtype == torch.float32
    torch.testing.assert_close(features.x_ND[:, 0], 10 * torch.arange(7) / 255)
    assert features.labels_N is not None
    assert features.labels_N.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert features.indices_N.tolist() == list(range(7))
    assert features.classes == ("even", "odd")
    assert features.bad_files == ()


def test_extract_builds_no_graph() -> None:
    weight = torch.ones(3, requires_grad=True)

    def mean_colour(images_BCHW: Tensor) -> Tensor:
        return images_BCHW.float().mean(dim=(2, 3)) * weight

    features = extract(mean_colour, _source(), height=16, width=16, channels=3, batch_size=4, workers=0)
    assert not features.x_ND.requires_grad
    assert not features.x_ND.is_inference()


def test_extract_of_an_unlabelled_source_has_no_labels() -> None:
    source = _source(labelled=False)
    features = extract(pixel_extractor(1), source, height=16, width=16, channels=3, batch_size=4, workers=0)
    assert features.labels_N is None
    with pytest.raises(ValueError, match=r"^the train images have no labels; put each class in a folder of its own$"):
        comparable_labels(features, features)


def test_unreadable_images_are_left_out_and_named() -> None:
    class Partly(ArraySource):
        def read(self, index: int) -> np.ndarray:
            if index in (1, 4):
                raise OSError("cannot be read")
            return super().read(index)

    whole = _source()
    images = np.stack([whole.read(i) for i in range(7)])
    source = Partly("grey", images, labels=whole.labels, classes=whole.classes)
    features = extract(pixel_extractor(1), source, height=16, width=16, channels=3, batch_size=3, workers=0)
    assert features.indices_N.tolist() == [0, 2, 3, 5, 6]
    assert features.labels_N is not None
    assert features.labels_N.tolist() == [0, 0, 1, 1, 0]
    torch.testing.assert_close(features.x_ND[:, 0], 10 * features.indices_N / 255)
    assert len(features.bad_files) == 2


def test_pixel_extractor_is_exact_at_the_images_own_size() -> None:
    images_BCHW = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pixel_extractor(4)(images_BCHW), images_BCHW.flatten(1) / 255)


def test_dense_labels_number_the_classes_that_training_has() -> None:
    train_N, test_M, count = dense_labels(torch.tensor([40, -3, 40, 7]), torch.tensor([7, 40]))
    assert train_N.tolist() == [2, 0, 2, 1]
    assert test_M.tolist() == [1, 2]
    assert count == 3


def test_classes_of_two_folders_are_matched_by_name() -> None:
    train = _features([[0.0], [1.0], [2.0]], [0, 1, 2], ("ant", "bee", "cow"))
    test = _features([[0.0], [1.0]], [0, 1], ("bee", "cow"))
    _, test_M, count = comparable_labels(train, test)
    assert test_M.tolist() == [1, 2]
    assert count == 3


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (None, r"^no train image has these classes of the test set: 3, 9$"),
        (tuple("abcdefghij"), r"^no train image has these classes of the test set: d, j$"),
    ],
)
def test_a_test_class_that_training_never_saw_is_named(classes: tuple[str, ...] | None, sentence: str) -> None:
    train = _features([[0.0], [1.0]], [0, 1], classes)
    test = _features([[0.0], [1.0], [2.0]], [9, 3, 0], classes)
    with pytest.raises(ValueError, match=sentence):
        comparable_labels(train, test)


def test_a_class_known_by_name_only_to_the_test_folder_is_named() -> None:
    train = _features([[0.0], [1.0]], [0, 1], ("ant", "bee"))
    test = _features([[0.0], [1.0]], [0, 1], ("ant", "cow"))
    with pytest.raises(ValueError, match=r"^no train image has these classes of the test set: cow$"):
        comparable_labels(train, test)


def test_one_class_is_refused() -> None:
    train = _features([[0.0], [1.0]], [4, 4])
    with pytest.raises(ValueError, match=r"^the train images all have one class, so there is nothing to tell apart$"):
        comparable_labels(train, train)


def test_an_empty_test_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^there are no test images$"):
        dense_labels(torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    good = _features([[0.0, 1.0], [1.0, 0.0]], [0, 1])
    bad = _features([[0.0, value], [1.0, 0.0]], [0, 1])
    sentence = (
        r"^1 of 2 images have features with NaN or infinite values; "
        r"the encoder has diverged or overflows in its precision$"
    )
    for train, test in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match=sentence):
            comparable_labels(train, test)


def test_features_of_two_encoders_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^train and test features must come from one encoder, got 2 and 1 dimensions$"
    ):
        comparable_labels(_features([[0.0, 1.0], [1.0, 0.0]], [0, 1]), _features([[0.0]], [0]))
