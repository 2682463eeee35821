"""The sheet shows what is marked and what was found where it is, and counts it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from unmask.data.annotated import Things
from unmask.data.detection import Fit
from unmask.evaluation.detection import ScannedImage
from unmask.report.detection_sheet import CROWD, PALETTE, SHOWN_FROM, detection_sheet, matches
from unmask.tasks.detection import Detections

CLASSES = ("cat", "dog")


def scanned(*, outlines: bool = True, **changes: Any) -> ScannedImage:
    """A grey image of 100 x 200 pixels, shown at half its size on a canvas of 64 x 128."""
    image = torch.full((3, 64, 128), 128, dtype=torch.uint8)
    image[:, 50:] = 0
    image[:, :, 100:] = 0
    boxes = np.array([[20, 20, 60, 70], [100, 30, 150, 90], [160, 0, 200, 40]], dtype=np.float32)
    masks = np.zeros((3, 100, 200), dtype=np.bool_)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = True
    things = Things(
        boxes_K4=boxes,
        labels_K=np.array([0, 1, 1]),
        masks_KHW=masks if outlines else None,
        crowd_K=np.array([False, False, True]),
    )
    found = Detections(
        boxes_K4=torch.tensor([[22.0, 20, 60, 70], [20, 22, 58, 70], [105, 30, 150, 90], [10, 80, 30, 99]]),
        labels_K=torch.tensor([0, 0, 0, 1]),
        scores_K=torch.tensor([0.97, 0.9, 0.6, 0.3]),
        shapes_KMM=torch.ones(4, 28, 28) if outlines else None,
        height=100,
        width=200,
    )
    fit = Fit(height=100, width=200, shown_height=50, shown_width=100)
    return ScannedImage(index=0, image=image, fit=fit, things=things, found=found)


def pixels(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def test_both_pictures_say_what_is_in_them() -> None:
    sheet = detection_sheet([scanned(), scanned(outlines=False)], CLASSES)
    assert sheet.headers == ("Marked", "Found")
    assert [[cell.label for cell in row] for row in sheet.rows] == [["1 cat, 1 dog, 1 crowd of dog", "3 cat"]] * 2
    assert sheet.rows[0][0].alt == "an image with 1 cat, 1 dog, 1 crowd of dog marked"
    assert sheet.rows[0][1].alt == "the same image with 3 cat found"
    # The second cat is found twice, and the dog was called a cat.
    assert sheet.note.startswith("2 of the 4 things in these images were found")
    assert "4 of the 6 boxes found are on nothing that is marked" in sheet.note
    assert "50.0" in sheet.caption


@pytest.mark.parametrize("outlines", [True, False])
def test_frames_and_outlines_are_where_the_things_are(outlines: bool) -> None:
    sheet = detection_sheet([scanned(outlines=outlines)], CLASSES)
    marked, found = (pixels(cell.image) for cell in sheet.rows[0])
    # Enlarged twofold from the canvas, so one pixel of the original is one of the picture; without what is padded.
    assert marked.shape == found.shape == (100, 200, 3)
    for picture, edge, colour in (
        (marked, (45, 20), PALETTE[0]),
        (marked, (60, 100), PALETTE[1]),
        (marked, (20, 199), CROWD),
        (found, (60, 105), PALETTE[0]),
    ):
        assert tuple(picture[edge]) == colour
    inside = marked[45, 40]
    expected = np.round(0.6 * 128 + 0.4 * np.array(PALETTE[0])) if outlines else np.array([128, 128, 128])
    np.testing.assert_array_equal(inside, expected)
    assert tuple(marked[85, 40]) == (128, 128, 128)
    assert tuple(found[92, 20]) == (128, 128, 128), "what is less sure is not drawn"


def test_an_image_with_nothing_in_it_is_shown_plain() -> None:
    item = scanned()
    nothing = Things(
        boxes_K4=np.zeros((0, 4), dtype=np.float32),
        labels_K=np.zeros(0, dtype=np.int64),
        masks_KHW=None,
        crowd_K=np.zeros(0, dtype=np.bool_),
    )
    found = Detections(
        boxes_K4=torch.zeros(0, 4),
        labels_K=torch.zeros(0, dtype=torch.int64),
        scores_K=torch.zeros(0),
        shapes_KMM=None,
        height=100,
        width=200,
    )
    sheet = detection_sheet([ScannedImage(0, item.image, item.fit, nothing, found)], CLASSES)
    for cell in sheet.rows[0]:
        assert cell.label == "nothing"
        assert (pixels(cell.image) == 128).all()
    assert sheet.note.startswith("0 of the 0 things")


def test_a_thing_is_found_once_and_only_by_its_class() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    labels = torch.tensor([0, 1])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [21, 0, 30, 10]])
    assert matches(boxes, torch.tensor([0, 0, 0, 1]), truth, labels) == 2
    assert matches(boxes, torch.tensor([0, 0, 0, 0]), truth, labels) == 1
    assert matches(boxes[:0], torch.tensor([], dtype=torch.int64), truth, labels) == 0
    assert matches(boxes, torch.tensor([0, 0, 0, 1]), truth[:0], labels[:0]) == 0
    assert matches(torch.tensor([[0.0, 0, 10, 4.9]]), torch.tensor([0]), truth, labels) == 0
    assert SHOWN_FROM == 0.5
