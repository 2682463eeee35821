"""Test images with what is marked in them, and beside it what a detector found, as a sheet of pictures.

Shape legend: K things.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import box_iou

from unmask.evaluation.detection import ScannedImage
from unmask.report.false_colour import Chosen, FalseColour
from unmask.report.pixels import Colour, Picture, encoded, enlarged, to_picture
from unmask.report.sheet import Cell, Sheet
from unmask.report.text import percent

SHOWN_FROM = 0.5
"""Least score of what is drawn; what is less sure counts in average precision, but would cover the picture."""
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Colours that the colour-blind can tell apart, one a class in turn. [Okabe and Ito, 2008]"""
CROWD: Colour = (190, 190, 190)
_DARK: Colour = (16, 16, 16)
_FILLED = 0.4  # how much of the colour covers what lies inside an outline
_LETTERS = 11  # height of the words, in pixels


def detection_sheet(scanned: Sequence[ScannedImage], classes: tuple[str, ...], chosen: Chosen = None) -> Sheet:
    """Two pictures of each image: the things marked in it, and those found with a score of a half or more.

    `chosen`: the images' channels to show. Raises ValueError when there is no image.
    """
    if not scanned:
        raise ValueError("there is no image to show what was found in it")
    colours = FalseColour.of([_shown(item) for item in scanned], chosen)
    rows, hits, marked, shown = [], 0, 0, 0
    for item in scanned:
        sure_K = item.found.scores_K >= SHOWN_FROM
        boxes_K4, labels_K = item.found.boxes_K4[sure_K], item.found.labels_K[sure_K]
        whole = ~torch.from_numpy(item.things.crowd_K)
        truth_boxes, truth_labels = torch.from_numpy(item.things.boxes_K4), torch.from_numpy(item.things.labels_K)
        hits += matches(boxes_K4, labels_K, truth_boxes[whole], truth_labels[whole])
        marked += int(whole.sum())
        shown += len(labels_K)
        rows.append((_marked_cell(item, classes, colours), _found_cell(item, classes, sure_K, colours)))
    return Sheet(
        headers=("Marked", "Found"),
        rows=tuple(rows),
        caption=colours.captioned(
            "Left what is marked in some test images, right what the detector found there with a score, written "
            f"beside the class, of {percent(100 * SHOWN_FROM)} or more. Each class has a colour of its own (in turn, "
            "where there are many); a grey frame is a crowd, which counts neither as found nor as missed."
        ),
        note=f"{hits} of the {marked} things in these images were found, by a box that overlaps by half or more (IoU); "
        f"{shown - hits} of the {shown} boxes found are on nothing that is marked, or on a thing that has one already.",
    )


def matches(
    boxes_K4: Float[Tensor, "K 4"],
    labels_K: Int64[Tensor, " K"],
    truth_boxes_J4: Float[Tensor, "J 4"],
    truth_labels_J: Int64[Tensor, " J"],
) -> int:
    """How many things are found: each box, surest first, takes the one of its class that it overlaps most and that is
    still free, where the overlap is at least a half."""
    overlap_KJ = box_iou(boxes_K4, truth_boxes_J4) * (labels_K[:, None] == truth_labels_J)
    found = 0
    for overlap_J in overlap_KJ:
        if len(overlap_J) and overlap_J.max() >= 0.5:
            overlap_KJ[:, overlap_J.argmax()] = 0
            found += 1
    return found


def _shown(item: ScannedImage) -> Float[Tensor, "C H W"]:
    """The image without the canvas around it, values in [0, 1]."""
    return item.image[:, : item.fit.shown_height, : item.fit.shown_width].float() / 255


def _marked_cell(item: ScannedImage, classes: tuple[str, ...], colours: FalseColour) -> Cell:
    things = item.things
    names = [classes[label] for label in things.labels_K.tolist()]
    captions = [f"crowd of {name}" if crowd else name for name, crowd in zip(names, things.crowd_K, strict=True)]
    paints = [
        CROWD if crowd else PALETTE[label % len(PALETTE)]
        for label, crowd in zip(things.labels_K.tolist(), things.crowd_K, strict=True)
    ]
    masks = [None] * len(names) if things.masks_KHW is None else list(things.masks_KHW)
    picture = _drawn(item, colours, things.boxes_K4, captions, paints, masks)
    words = _counted(captions)
    return Cell(image=encoded(picture, exact=True), alt=f"an image with {words} marked", label=words)


def _found_cell(item: ScannedImage, classes: tuple[str, ...], sure_K: Tensor, colours: FalseColour) -> Cell:
    found = item.found
    labels = found.labels_K[sure_K].tolist()
    names = [classes[label] for label in labels]
    # Not `percent`: the font has no no-break space.
    captions = [f"{name} {100 * score:.0f}" for name, score in zip(names, found.scores_K[sure_K].tolist(), strict=True)]
    masks: Iterable[NDArray[np.bool_] | None] = [None] * len(names)
    if found.shapes_KMM is not None:
        masks = [mask.numpy() for mask, sure in zip(found.masks(), sure_K.tolist(), strict=True) if sure]
    paints = [PALETTE[label % len(PALETTE)] for label in labels]
    picture = _drawn(item, colours, found.boxes_K4[sure_K].numpy(), captions, paints, masks)
    words = _counted(names)
    return Cell(image=encoded(picture, exact=True), alt=f"the same image with {words} found", label=words)


def _counted(names: Sequence[str]) -> str:
    """'3 coin, 1 tree', the most frequent first."""
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common()) or "nothing"


def _drawn(
    item: ScannedImage,
    colours: FalseColour,
    boxes_K4: NDArray[np.float32],
    captions: Sequence[str],
    paints: Sequence[Colour],
    masks: Iterable[NDArray[np.bool_] | None],
) -> Picture:
    """The image, as large as it is shown, under outlines, frames and words."""
    picture = np.array(enlarged(to_picture(colours(_shown(item)))))
    height, width = picture.shape[:2]
    for mask_HW, colour in zip(masks, paints, strict=True):
        if mask_HW is not None:
            inside_HW = np.asarray(Image.fromarray(mask_HW).resize((width, height), Image.Resampling.NEAREST))
            mixed = (1 - _FILLED) * picture[inside_HW] + _FILLED * np.array(colour)
            picture[inside_HW] = mixed.round().astype(np.uint8)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    scale = np.array([width / item.fit.width, height / item.fit.height] * 2)
    corners = [tuple(box) for box in (boxes_K4 * scale).round().astype(int).tolist()]
    for (left, top, right, bottom), colour in zip(corners, paints, strict=True):
        frame = (left, top, max(right - 1, left), max(bottom - 1, top))
        draw.rectangle((frame[0] - 1, frame[1] - 1, frame[2] + 1, frame[3] + 1), outline=_DARK, width=4)
        draw.rectangle(frame, outline=colour, width=2)
    font = ImageFont.load_default(_LETTERS)
    # Words last, so that no frame crosses them.
    for (left, top, _, _), caption, colour in zip(corners, captions, paints, strict=True):
        box = draw.textbbox((0, 0), caption, font=font)
        place = (min(max(left, 0), max(width - box[2] - 4, 0)), max(top - box[3] - 3, 0))
        draw.rectangle((*place, place[0] + box[2] + 4, place[1] + box[3] + 3), fill=_DARK)
        draw.text((place[0] + 2, place[1] + 1), caption, font=font, fill=colour)
    return np.asarray(image)
