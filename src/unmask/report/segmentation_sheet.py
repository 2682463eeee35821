"""What a segmenter sees, beside what is there: image, truth, prediction and errors in one row.

Shape legend: C channels, H x W pixels of the mask, h x w pixels of the picture, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from unmask.data.annotated import IGNORE
from unmask.evaluation.segmentation import SegmentedImage
from unmask.report.false_colour import Chosen, FalseColour
from unmask.report.pixels import Colour, Picture, encoded, enlarged, shown, to_picture
from unmask.report.sheet import Cell, Sheet
from unmask.report.text import percent
from unmask.views import to_float

# Okabe and Ito's colours and two dark ones of Tol's: apart for every kind of colour vision, as a test measures.
CLASS_COLOURS: dict[str, Colour] = {
    "sky blue": (86, 180, 233),
    "orange": (230, 159, 0),
    "green": (0, 158, 115),
    "yellow": (240, 228, 66),
    "blue": (0, 114, 178),
    "vermilion": (213, 94, 0),
    "pink": (204, 121, 167),
    "indigo": (51, 34, 136),
    "wine": (136, 34, 85),
}
REST = "light grey"
REST_COLOUR: Colour = (200, 200, 200)
IGNORED_COLOUR: Colour = (0, 0, 0)
ERROR_COLOUR: Colour = (255, 255, 255)
_DIMMED = 0.45


def segmentation_sheet(found: Sequence[SegmentedImage], classes: tuple[str, ...], chosen: Chosen = None) -> Sheet:
    """One row an image: the image, its true classes, the predicted ones, and where they differ.

    Nine classes have a colour each, those with most pixels in what is shown (true or predicted); any others share one.
    The caption names them. `chosen`: the images' channels to show. Raises ValueError when there is no image.
    """
    if not found:
        raise ValueError("there is no segmented image to show")
    palette, legend = _palette(found, classes)
    colours = FalseColour.of([to_float(item.image[None])[0] for item in found], chosen)
    rows = tuple(_row(number, item, palette, colours) for number, item in enumerate(found, start=1))
    right, counted = (sum(column) for column in zip(*(_right(item) for item in found), strict=True))
    caption = colours.captioned(
        "From left to right: the image; the class that every pixel has; the class that it was given; and in white the "
        f"pixels where the two differ. Colours: {legend}. Black pixels count neither as right nor as wrong. Errors "
        "along the borders of things are the last to go; whole things in white were taken for something else."
    )
    note = f"{percent(100 * right / max(1, counted))} of the pixels of these {len(found)} images are right."
    return Sheet(headers=("image", "truth", "prediction", "errors"), rows=rows, caption=caption, note=note)


def _row(
    number: int, item: SegmentedImage, palette: Int64[np.ndarray, "256 3"], colours: FalseColour
) -> tuple[Cell, ...]:
    image_CHW = colours(to_float(item.image[None])[0])
    picture = to_picture(image_CHW)
    size = picture.shape[0], picture.shape[1]
    truth_hw, predicted_hw = _resized(item.truth, size), _resized(item.predicted, size)
    right, counted = _right(item)
    label = f"{percent(100 * right / counted)} right" if counted else "nothing counts"
    pictures = {
        "truth": _coloured(truth_hw, palette),
        "prediction": _coloured(predicted_hw, palette),
        "errors": _errors(picture, truth_hw, predicted_hw),
    }
    drawn = tuple(
        Cell(
            image=encoded(enlarged(flat), exact=True),
            alt=f"image {number}, {name}",
            label=label if name == "errors" else "",
        )
        for name, flat in pictures.items()
    )
    return (Cell(image=shown(image_CHW), alt=f"image {number}"), *drawn)


def _palette(found: Sequence[SegmentedImage], classes: tuple[str, ...]) -> tuple[Int64[np.ndarray, "256 3"], str]:
    """The colour of each value of a mask, and in words which class has which."""
    masks = [mask_HW for item in found for mask_HW in (item.truth, item.predicted)]
    counts = sum(np.bincount(mask_HW.numpy().ravel(), minlength=IGNORE + 1)[: len(classes)] for mask_HW in masks)
    by_size = np.argsort(-np.asarray(counts), kind="stable")
    seen = [int(label) for label in by_size if np.asarray(counts)[label]]
    named, others = sorted(seen[: len(CLASS_COLOURS)]), seen[len(CLASS_COLOURS) :]
    palette = np.full((IGNORE + 1, 3), REST_COLOUR, dtype=np.int64)
    palette[IGNORE] = IGNORED_COLOUR
    words = []
    for label, (colour, value) in zip(named, CLASS_COLOURS.items(), strict=False):
        palette[label] = value
        words.append(f"{colour}: {classes[label]}")
    if others:
        words.append(f"{REST}: {classes[others[0]] if len(others) == 1 else f'{len(others)} other classes'}")
    return palette, "; ".join(words)


def _right(item: SegmentedImage) -> tuple[int, int]:
    """Pixels that are right, and pixels that count."""
    counted_HW = item.truth != IGNORE
    return int((item.truth == item.predicted)[counted_HW].sum()), int(counted_HW.sum())


def _resized(mask_HW: UInt8[Tensor, "H W"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    return F.interpolate(mask_HW[None, None], size=size, mode="nearest-exact")[0, 0].numpy()


def _coloured(mask_hw: UInt8[np.ndarray, "h w"], palette: Int64[np.ndarray, "256 3"]) -> Picture:
    return palette[mask_hw].astype(np.uint8)


def _errors(picture: Picture, truth_hw: UInt8[np.ndarray, "h w"], predicted_hw: UInt8[np.ndarray, "h w"]) -> Picture:
    """The picture in dim grey, wrong pixels bright, pixels that do not count black."""
    grey_hw1 = picture.astype(np.float32).mean(axis=2, keepdims=True)
    drawn: Picture = np.repeat((_DIMMED * grey_hw1).round().astype(np.uint8), 3, axis=2)
    drawn[truth_hw != predicted_hw] = ERROR_COLOUR
    drawn[truth_hw == IGNORE] = IGNORED_COLOUR
    return drawn
