"""What is measured of a source is right, repeatable, and not disturbed by bad files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.data.sources import ArraySource, open_source
from unmask.data.statistics import first_readable, mean_and_std, median_size


def test_mean_and_std_of_all_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 200, (20, 6, 7, 4), dtype=np.uint8)
    mean, std = mean_and_std(ArraySource("noise", images), channels=4)
    assert np.allclose(mean, images.mean((0, 1, 2)) / 255)
    assert np.allclose(std, images.std((0, 1, 2)) / 255)


def test_a_sample_is_enough_and_repeatable() -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 1), dtype=np.uint8)
    source = ArraySource("noise", images)
    found = [mean_and_std(source, channels=1, sample=100, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert abs(found[0][0][0] - 0.5) < 0.05


def test_images_of_one_colour_have_a_deviation_to_divide_by() -> None:
    _, std = mean_and_std(ArraySource("black", np.zeros((3, 4, 4, 1), np.uint8)), channels=1)
    assert std == (1 / 255,)


def test_median_size_comes_from_the_headers(tmp_path: Path) -> None:
    for name, size in (("a.png", (10, 20)), ("b.jpg", (30, 50)), ("c.webp", (40, 60))):
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "d.jpg").write_bytes(b"no image")
    cut = (tmp_path / "b.jpg").read_bytes()[:-20]
    (tmp_path / "b.jpg").write_bytes(cut)
    assert median_size(open_source(tmp_path)) == (50, 30)


def test_bad_files_do_not_count(photo_folder: Path) -> None:
    source = open_source(photo_folder)
    good = mean_and_std(source.subset(range(1, 12)), channels=3)
    (photo_folder / "cold" / "00.png").write_bytes(b"")
    assert np.allclose(mean_and_std(source, channels=3), good)
    assert first_readable(source) == 1


def test_nothing_readable_is_said(photo_folder: Path) -> None:
    for file in photo_folder.rglob("*.*"):
        file.write_bytes(b"")
    source = open_source(photo_folder)
    with pytest.raises(ValueError, match=r"no readable image in .*photos, for example .*11.jpg: the file is empty"):
        first_readable(source)
    with pytest.raises(ValueError, match="no readable image in"):
        median_size(source)
    with pytest.raises(ValueError, match="no readable image in"):
        mean_and_std(source, channels=3)


def test_the_wrong_number_of_channels_is_found_up_front() -> None:
    with pytest.raises(ValueError, match="it has 4 channels, and 3 are wanted"):
        first_readable(ArraySource("four", np.zeros((3, 4, 4, 4), np.uint8)))
