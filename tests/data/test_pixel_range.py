"""A range is measured from the data once, and travels with the source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.data.dataset import CenterCropDataset
from unmask.data.pixel_range import PixelRange, has_wide_images, in_range, measured_range
from unmask.data.sources import ArraySource, open_source
from unmask.data.statistics import first_readable, mean_and_std

GENERATOR = np.random.default_rng(0)


def wide(count: int = 6, channels: int = 2) -> list[np.ndarray]:
    """Images whose second channel has ten times the values of the first, and a few far outliers."""
    images = []
    for _ in range(count):
        image = GENERATOR.integers(100, 1100, (40, 50, channels)).astype(np.uint16)
        image[:, :, 1:] *= 10
        image[0, 0] = 65535
        images.append(image)
    return images


def test_the_range_is_that_of_the_data_without_its_outliers() -> None:
    found = measured_range(ArraySource("x", wide()), channels=2)
    assert found is not None
    assert found.low == pytest.approx((100, 1000), abs=15)
    assert found.high == pytest.approx((1100, 11_000), abs=150)
    assert str(found).startswith("10")


def test_8_bit_images_need_none_nor_do_mixed_ones() -> None:
    narrow = GENERATOR.integers(0, 256, (40, 50, 2)).astype(np.uint8)
    assert measured_range(ArraySource("x", [narrow]), channels=2) is None
    assert measured_range(ArraySource("x", [*wide(), narrow]), channels=2) is None
    assert not has_wide_images(ArraySource("x", [narrow]))
    assert has_wide_images(ArraySource("x", [narrow, *wide()]))


def test_images_that_do_not_fit_or_cannot_be_read_do_not_count(tmp_path: Path) -> None:
    for number, image in enumerate(wide(3)):
        np.save(tmp_path / f"{number}.npy", image)
    np.save(tmp_path / "other.npy", np.full((40, 50, 3), 60_000, dtype=np.uint16))
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    found = measured_range(open_source(tmp_path), channels=2)
    assert found is not None
    assert max(found.high) < 12_000


def test_grey_and_colour_images_share_one_range() -> None:
    grey, colours = wide(1, 1)[0], wide(1, 3)[0]
    found = measured_range(ArraySource("x", [grey, colours]), channels=3)
    assert found is not None
    assert len(found.low) == 1


def test_what_is_no_measurement_does_not_count() -> None:
    image = GENERATOR.random((40, 50)).astype(np.float32)
    image[:30] = np.nan
    found = measured_range(ArraySource("x", [image]), channels=1)
    assert found is not None
    assert 0 <= found.low[0] < 0.1 < 0.9 < found.high[0] <= 1
    empty = measured_range(ArraySource("x", [np.full((4, 4), np.nan)]), channels=1)
    flat = measured_range(ArraySource("x", [np.full((4, 4), 7.0)]), channels=1)
    assert (empty, flat) == (PixelRange(low=(0,), high=(1,)), PixelRange(low=(7,), high=(8,)))


def test_a_source_in_range_stays_what_it_is() -> None:
    images = [np.full((8, 8), value, dtype=np.float32) for value in (-3.0, 0.0, 3.0)]
    source = ArraySource("x", images, labels=[0, 1, 0], classes=("a", "b"))
    ranged = in_range(source, PixelRange(low=(-3,), high=(3,)))
    assert isinstance(ranged, ArraySource)
    assert source.pixel_range is None
    assert in_range(source, None) is source
    crops = CenterCropDataset(ranged.subset([2, 1, 0]), height=4, width=4, channels=1)
    assert [int(crops[place].crops[0].max()) for place in range(3)] == [255, 128, 0]
    assert first_readable(ranged, channels=1) == 0
    assert mean_and_std(ranged, channels=1)[0] == pytest.approx((0.5,), abs=0.01)
    with pytest.raises(ValueError, match=r"no readable image in x.*nothing says which of them are black and white"):
        first_readable(ArraySource("x", images[:1]), channels=1)


def test_8_bit_images_within_a_range_stay_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 77, dtype=np.uint8)).save(tmp_path / "a.png")
    source = in_range(open_source(tmp_path), PixelRange(low=(1000,), high=(2000,)))
    assert (source.open(0).decode(min_size=None, channels=1).pixels_HWC == 77).all()
