"""The sheet shows every class in its colour and every error where it is, for every kind of colour vision."""

from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from coin_tiles import CLASSES, CoinTiles
from unmask.data.annotated import IGNORE
from unmask.evaluation.segmentation import SegmentedImage
from unmask.report.segmentation_sheet import (
    CLASS_COLOURS,
    ERROR_COLOUR,
    IGNORED_COLOUR,
    REST_COLOUR,
    segmentation_sheet,
)

# What dichromats see, in linear RGB. [Machado, Oliveira and Fernandes 2009, severity 1]
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def pixels(image: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def segmented(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], grey: int = 200) -> SegmentedImage:
    """An image of plain grey of the masks' size."""
    image = torch.full((3, *truth.shape), grey, dtype=torch.uint8)
    return SegmentedImage(0, image, torch.from_numpy(truth), torch.from_numpy(predicted))


@pytest.mark.parametrize("vision", VISION)
def test_colours_differ_for_every_kind_of_colour_vision(vision: str) -> None:
    from skimage.color import deltaE_ciede2000, rgb2lab

    colours = np.array([*CLASS_COLOURS.values(), REST_COLOUR, IGNORED_COLOUR]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISION[vision].T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
    # One is the least difference that is seen at all, with the colours side by side.
    assert min(deltaE_ciede2000(lab[a], lab[b]) for a, b in combinations(range(len(lab)), 2)) > 10


def test_every_pixel_has_the_colour_of_its_class_and_errors_are_bright() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, (48, 64), dtype=np.uint8)
    predicted = np.where(generator.random((48, 64)) < 0.7, truth, 2 - truth).astype(np.uint8)
    truth[:5] = IGNORE
    sheet = segmentation_sheet([segmented(truth, predicted)], ("sky", "sea", "land"))
    assert sheet.headers == ("image", "truth", "prediction", "errors")
    shown, true, called, errors = (pixels(cell.image) for cell in sheet.rows[0])
    assert shown.shape == true.shape == (144, 192, 3)
    palette = np.array(list(CLASS_COLOURS.values())[:3], dtype=np.uint8)
    large_truth, large_predicted = (mask.repeat(3, axis=0).repeat(3, axis=1) for mask in (truth, predicted))
    ignored = large_truth == IGNORE
    assert np.array_equal(true[~ignored], palette[large_truth[~ignored]])
    assert (true[ignored] == IGNORED_COLOUR).all()
    assert np.array_equal(called, palette[large_predicted])
    wrong = (large_truth != large_predicted) & ~ignored
    assert (errors[wrong] == ERROR_COLOUR).all()
    assert (errors[ignored] == IGNORED_COLOUR).all()
    assert (errors[~wrong & ~ignored] == 90).all()
    right = 100 * (truth == predicted)[5:].mean()
    assert sheet.rows[0][3].label == f"{right:.1f}\N{NO-BREAK SPACE}% right"
    assert sheet.note == f"{right:.1f}\N{NO-BREAK SPACE}% of the pixels of these 1 images are right."
    assert "Colours: sky blue: sky; orange: sea; green: land." in sheet.caption
    assert len({cell.alt for cell in sheet.rows[0]}) == 4


def test_only_classes_that_are_seen_have_a_colour_and_rare_ones_share_one() -> None:
    classes = tuple(f"c{k}" for k in range(20))
    # Class k has k pixels: 3 to 14 are seen, and the nine largest are 6 to 14.
    values = np.repeat(np.arange(3, 15), np.arange(3, 15)).astype(np.uint8)
    mask = np.resize(values, (6, 17))
    sheet = segmentation_sheet([segmented(mask, mask)], classes)
    assert "sky blue: c6; " in sheet.caption
    assert "wine: c14; light grey: 3 other classes." in sheet.caption
    drawn = pixels(sheet.rows[0][1].image)[:: 192 // 17 + 1, :: 192 // 17 + 1]
    assert (drawn[mask == 4] == REST_COLOUR).all()
    assert (drawn[mask == 14] == CLASS_COLOURS["wine"]).all()
    # Now class 5 has twelve pixels, and class 6 is the only one left over.
    one = np.where(mask < 5, 5, mask).astype(np.uint8)
    assert "light grey: c6." in segmentation_sheet([segmented(one, one)], classes).caption


def test_masks_of_another_size_than_the_picture_are_drawn_over_it() -> None:
    source = CoinTiles((0, 9))
    found = [
        SegmentedImage(
            index,
            torch.from_numpy(source.read(index)).expand(3, 64, 64)[:, ::2, ::2].contiguous(),
            torch.from_numpy(source.mask(index)),
            torch.zeros(64, 64, dtype=torch.uint8),
        )
        for index in range(2)
    ]
    sheet = segmentation_sheet(found, CLASSES)
    assert len(sheet.rows) == 2
    for row, item in zip(sheet.rows, found, strict=True):
        errors = pixels(row[3].image)
        share = (errors == ERROR_COLOUR).all(axis=2).mean()
        assert share == pytest.approx(float((item.truth == 1).float().mean()), abs=0.02)


def test_a_mask_where_nothing_counts_and_no_image_at_all() -> None:
    mask = np.full((8, 8), IGNORE, dtype=np.uint8)
    sheet = segmentation_sheet([segmented(mask, np.zeros_like(mask))], ("a", "b"))
    assert sheet.rows[0][3].label == "nothing counts"
    with pytest.raises(ValueError, match=r"^there is no segmented image to show$"):
        segmentation_sheet([], ("a", "b"))
