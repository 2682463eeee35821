"""The nearest images of some images, as a sheet of pictures.

Shape legend: B queries, K neighbours, C channels, H x W pixels. Images are floats in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from unmask.report.false_colour import Chosen, FalseColour
from unmask.report.pixels import shown
from unmask.report.sheet import Cell, Mark, Sheet


def neighbour_sheet(
    queries_BCHW: Float[Tensor, "B C H W"],
    neighbours_BKCHW: Float[Tensor, "B K C H W"],
    *,
    query_labels: Sequence[str] | None = None,
    neighbour_labels: Sequence[Sequence[str]] | None = None,
    chosen: Chosen = None,
) -> Sheet:
    """One row a query: the image, then its K nearest images, nearest first.

    With labels given, a neighbour is marked by whether it has its query's label, and the share that has is
    noted. All are shown as the queries are, `chosen` names the channels.

    Raises:
        ValueError: only one of the two kinds of labels is given, or their numbers do not fit the images.
    """
    B, K = neighbours_BKCHW.shape[:2]
    if (query_labels is None) != (neighbour_labels is None):
        raise ValueError("give labels for the queries and for their neighbours, or for neither")
    if query_labels is not None and neighbour_labels is not None:
        if len(query_labels) != B or [len(labels) for labels in neighbour_labels] != [K] * B:
            raise ValueError(f"{B} queries with {K} neighbours each need as many labels")
        pairs = [(query_labels[b], label) for b in range(B) for label in neighbour_labels[b]]
        same = sum(query == label for query, label in pairs)
        note = f"{same} of {len(pairs)} neighbours have their query's label."
    else:
        note = ""
    colours = FalseColour.of(queries_BCHW, chosen)
    queries_BCHW, neighbours_BKCHW = colours(queries_BCHW), colours(neighbours_BKCHW)
    rows: list[tuple[Cell, ...]] = []
    for b in range(B):
        label = query_labels[b] if query_labels is not None else ""
        cells = [Cell(image=shown(queries_BCHW[b]), alt=f"query {b + 1} {label}".strip(), label=label)]
        for k in range(K):
            name = neighbour_labels[b][k] if neighbour_labels is not None else ""
            mark: Mark = "none" if neighbour_labels is None else "right" if name == label else "wrong"
            alt = f"neighbour {k + 1} of query {b + 1} {name}".strip()
            cells.append(Cell(image=shown(neighbours_BKCHW[b, k]), alt=alt, label=name, mark=mark))
        rows.append(tuple(cells))
    caption = (
        "Each row starts with an image; the others are the images whose features are nearest to its own, "
        "nearest first. Rows of the same kind of thing show that the encoder groups by content; rows that "
        "only share a colour or an outline show that it does not yet."
    )
    if note:
        caption += " A tick marks a neighbour with the label of its query, a cross one with another."
    headers = ("image", *(f"{k + 1}" for k in range(K)))
    return Sheet(headers=headers, rows=tuple(rows), caption=colours.captioned(caption), note=note)
