"""The photos that tests learn from fit their annotation, and stay small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy.ndimage import label

DATA = Path(__file__).parents[1] / "data_files"
TREES, COINS = DATA / "trees", DATA / "coins"
HALVES = ("train", "val")


def test_they_are_small_and_say_where_they_are_from() -> None:
    assert sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file()) < 200_000
    for folder in (TREES, COINS):
        assert len((folder / "NOTICE.md").read_text(encoding="utf8")) > 200


@pytest.mark.parametrize(("half", "width", "things"), [("train", 240, 36), ("val", 160, 25)])
def test_boxes_of_trees_lie_in_their_images(
    half: str, width: int, things: int, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = COCO(str(TREES / half / "annotations.json"))
    capsys.readouterr()
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["tree"]
    assert sorted(image["file_name"] for image in coco.imgs.values()) == ["lower.jpg", "upper.jpg"]
    assert sorted(file.name for file in (TREES / half).glob("*.jpg")) == ["lower.jpg", "upper.jpg"]
    assert len(coco.anns) == things
    for image in coco.imgs.values():
        with Image.open(TREES / half / image["file_name"]) as opened:
            assert opened.mode == "RGB"
            assert opened.size == (image["width"], image["height"]) == (width, 200)
        boxes = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(boxes) >= 10
        for thing in boxes:
            left, top, box_width, box_height = thing["bbox"]
            assert thing["category_id"] in coco.cats
            assert thing["iscrowd"] == 0
            assert thing["area"] == box_width * box_height
            assert min(box_width, box_height) >= 10
            assert 0 <= left < left + box_width <= width
            assert 0 <= top < top + box_height <= 200


def test_the_numbers_of_things_are_unique() -> None:
    for half in HALVES:
        content = json.loads((TREES / half / "annotations.json").read_text(encoding="utf8"))
        for part in ("images", "annotations", "categories"):
            numbers = [entry["id"] for entry in content[part]]
            assert len(numbers) == len(set(numbers)) > 0


def test_trees_are_greener_than_what_is_between_them() -> None:
    """Boxes that were shifted, or belonged to the other image, would not be."""
    for half in HALVES:
        content = json.loads((TREES / half / "annotations.json").read_text(encoding="utf8"))
        for image in content["images"]:
            with Image.open(TREES / half / image["file_name"]) as opened:
                pixels_HWC = np.asarray(opened).astype(int)
            green_HW = 2 * pixels_HWC[..., 1] - pixels_HWC[..., 0] - pixels_HWC[..., 2]
            inside_HW = np.zeros(green_HW.shape, dtype=np.bool_)
            for thing in content["annotations"]:
                if thing["image_id"] == image["id"]:
                    left, top, width, height = thing["bbox"]
                    inside_HW[top : top + height, left : left + width] = True
            assert green_HW[inside_HW].mean() > 1.4 * green_HW[~inside_HW].mean()


def test_masks_of_coins_fit_their_images() -> None:
    assert (COINS / "classes.txt").read_text(encoding="utf8").split("\n") == ["background", "coin", ""]
    for half in HALVES:
        images, masks = sorted((COINS / half / "images").iterdir()), sorted((COINS / half / "masks").iterdir())
        assert [file.name for file in images] == ["lower.jpg", "upper.jpg"]
        assert [file.name for file in masks] == ["lower.png", "upper.png"]
        for image, mask in zip(images, masks, strict=True):
            with Image.open(image) as opened, Image.open(mask) as classes:
                assert opened.mode == classes.mode == "L"
                assert opened.size == classes.size
                pixels_HW, mask_HW = np.asarray(opened).astype(float), np.asarray(classes)
            assert np.unique(mask_HW).tolist() == [0, 1]
            # The light fades from top to bottom, so rows are compared with themselves.
            mixed = [row for row in range(len(mask_HW)) if 0.2 < mask_HW[row].mean() < 0.8]
            lighter = [pixels_HW[r][mask_HW[r] == 1].mean() > pixels_HW[r][mask_HW[r] == 0].mean() for r in mixed]
            assert np.mean(lighter) > 0.95


def test_put_together_again_they_are_the_museum_s_photo_with_all_its_coins() -> None:
    coins = pytest.importorskip("skimage.data").coins

    def whole(kind: str, ending: str) -> np.ndarray:
        return np.block(
            [
                [np.asarray(Image.open(COINS / half / kind / f"{part}.{ending}")) for half in HALVES]
                for part in ("upper", "lower")
            ]
        )

    difference_HW = whole("images", "jpg").astype(int) - coins()
    assert np.abs(difference_HW).mean() < 4
    mask_HW = whole("masks", "png")
    outlines_HW, count = label(mask_HW)
    assert count == 24
    areas = np.bincount(outlines_HW.ravel())[1:]
    assert areas.min() > 1000
    assert areas.max() < 3200
