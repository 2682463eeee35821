"""Test images with what a classifier says of them, as a sheet of pictures.

Shape legend: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from unmask.report.false_colour import Chosen, FalseColour
from unmask.report.pixels import shown
from unmask.report.sheet import Cell, Mark, Sheet
from unmask.report.text import percent

COLUMNS = 6


def prediction_sheet(
    images_BCHW: Float[Tensor, "B C H W"],
    logits_BK: Float[Tensor, "B K"],
    truth_BK: Float[Tensor, "B K"],
    classes: tuple[str, ...],
    chosen: Chosen = None,
) -> Sheet:
    """Images in rows of six, each with the class that scores best, right where the image has that class.

    `truth_BK` holds 1 for each class that an image has. Pictures are floats in [0, 1]; `chosen`: their
    channels to show.
    """
    colours = FalseColour.of(images_BCHW, chosen)
    best_B = logits_BK.argmax(dim=1)
    cells = []
    for image_CHW, best, truth_K in zip(colours(images_BCHW), best_B.tolist(), truth_BK, strict=True):
        right = bool(truth_K[best])
        mark: Mark = "right" if right else "wrong"
        names = ", ".join(classes[place] for place in truth_K.nonzero().flatten().tolist()) or "nothing"
        label = classes[best] if right else f"{classes[best]}, not {names}"
        cells.append(
            Cell(image=shown(image_CHW), alt=f"an image of {names}, called {classes[best]}", label=label, mark=mark)
        )
    # A last row that is not full is left out: sheets have as many cells in every row.
    cells = cells[: max(len(cells) // COLUMNS * COLUMNS, min(len(cells), COLUMNS))]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    columns = min(COLUMNS, len(cells))
    found = sum(cell.mark == "right" for cell in cells)
    return Sheet(
        headers=("",) * columns,
        rows=tuple(tuple(row) for row in rows),
        caption=colours.captioned(
            "Some test images, spread over the set, with the class that the classifier finds most likely; where it is "
            "wrong, what the image shows."
        ),
        note=f"{percent(100 * found / max(len(cells), 1))} of these are right.",
    )
