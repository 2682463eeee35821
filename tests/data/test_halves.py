"""Both halves of what DATA means, as one source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny_runs import draw_images
from unmask.data.halves import open_halves
from unmask.data.sources import labelled, open_source


def test_a_folder_that_is_parted_by_a_hash(tmp_path: Path) -> None:
    halves = open_halves(str(draw_images(tmp_path, 40)))
    train, test = labelled(tmp_path)
    assert (halves.training, halves.testing, halves.apart) == (len(train), len(test), False)
    names = [halves.images.path(place) for place in range(len(halves.images))]
    assert names == [half.path(place) for half in (train, test) for place in range(len(half))]
    assert sorted(names) == sorted(halves.pretraining.path(place) for place in range(40))
    last = len(names) - 1
    assert halves.images.read(last) == test.read(len(test) - 1)
    assert [(name, first + second) for name, first, second in halves.class_counts] == [("cold", 20), ("warm", 20)]
    assert (halves.refusal, halves.captions.images, halves.captions.texts) == ("", 40, 40)


def test_folders_that_are_parted_already(tmp_path: Path) -> None:
    draw_images(tmp_path / "train", 12)
    draw_images(tmp_path / "val", 4)
    halves = open_halves(str(tmp_path))
    assert (len(halves.pretraining), halves.training, halves.testing, halves.apart) == (12, 12, 4, True)
    assert halves.class_counts == (("cold", 6, 2), ("warm", 6, 2))


def test_classes_of_one_half_only_are_told(tmp_path: Path) -> None:
    draw_images(tmp_path / "train", 8)
    draw_images(tmp_path / "val", 8, classes=("cold", "odd"))
    halves = open_halves(str(tmp_path))
    assert "has not the same classes for training and testing: odd is only in one of them" in halves.refusal
    assert halves.class_counts == (("cold", 4, 4), ("odd", 0, 4), ("warm", 4, 0))


def test_without_labels_and_with_a_single_image(tmp_path: Path) -> None:
    halves = open_halves(str(draw_images(tmp_path / "flat", 30, classes=("",))))
    assert halves.class_counts == ()
    assert "have no labels" in halves.refusal
    assert halves.training + halves.testing == 30
    assert halves.testing > 0
    (tmp_path / "one").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "a.png")
    halves = open_halves(str(tmp_path / "one"))
    assert (len(halves.images), halves.training, halves.testing, halves.apart) == (1, 1, 0, False)


def test_captions_that_cannot_be_used_are_a_sentence(tmp_path: Path) -> None:
    draw_images(tmp_path, 6)
    (tmp_path / "captions.csv").write_text("image,caption\ncold/000.png,a picture\n")
    told = open_halves(str(tmp_path)).captions
    assert told.images == 0
    assert told.trouble.startswith("5 of the 6 images of")


def test_what_cannot_be_opened_is_refused() -> None:
    with pytest.raises(ValueError, match="gone does not exist"):
        open_halves("gone")


def test_the_halves_of_fashion_mnist_are_arrays() -> None:
    halves = open_halves("builtin:fashion-mnist")
    test = open_source("builtin:fashion-mnist", split="test")
    assert (halves.training, halves.testing, halves.apart) == (len(halves.pretraining), len(test), True)
    first = halves.images.read(halves.training)
    assert isinstance(first, np.ndarray)
    assert np.array_equal(first, test.read(0))
