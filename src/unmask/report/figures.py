"""What a run's encoder sees and does, as sheets of pictures.

Shape legend: B images, C channels, H x W pixels, N patches in a grid of rows x columns, Q queries an image, A
attention heads. Images are floats in [0, 1]; masks are True where a patch is hidden; patches
count row by row. All images of a sheet are shown by one `FalseColour`, which the first of them decide; `chosen` names
their channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import Doc

from unmask.report.false_colour import Chosen, FalseColour
from unmask.report.pixels import Colour, Grid, Picture, encoded, enlarged, heat, outlined, shown, to_picture
from unmask.report.sheet import Cell, Sheet
from unmask.report.text import percent

HIDDEN_GREY = 0.5
# Okabe and Ito's colours, the ones that differ for every kind of colour vision; one a query.
QUERY_COLOURS: tuple[Colour, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 178, 130),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
)
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class PositionScore:
    """How often a hidden patch finds its own position among all patches of its image."""

    share: Annotated[float, Doc("Share of hidden patches whose most similar target patch is their own.")]
    chance: Annotated[float, Doc("The same share for blind guessing, 1 / N.")]
    patches: Annotated[int, Doc("Number of hidden patches looked at.")]


def _hidden_pixels(mask_BN: Bool[Tensor, "B N"], grid: Grid, height: int, width: int) -> Bool[Tensor, "B 1 H W"]:
    rows, columns = grid
    if rows * columns != mask_BN.shape[1]:
        raise ValueError(f"a mask over {mask_BN.shape[1]} patches does not fit a grid of {rows} x {columns}")
    mask_B1hw = mask_BN.reshape(-1, 1, rows, columns).float()
    return F.interpolate(mask_B1hw, size=(height, width), mode="nearest").bool()


def masked_image(
    images_BCHW: Float[Tensor, "B C H W"], mask_BN: Bool[Tensor, "B N"], grid: Grid
) -> Float[Tensor, "B C H W"]:
    """The images with every hidden patch in mid grey.

    Raises:
        ValueError: the grid does not have N patches.
    """
    hidden_B1HW = _hidden_pixels(mask_BN, grid, images_BCHW.shape[2], images_BCHW.shape[3])
    return torch.where(hidden_B1HW, HIDDEN_GREY, images_BCHW)


def pasted_image(
    images_BCHW: Float[Tensor, "B C H W"],
    reconstruction_BCHW: Float[Tensor, "B C H W"],
    mask_BN: Bool[Tensor, "B N"],
    grid: Grid,
) -> Float[Tensor, "B C H W"]:
    """The images with only their hidden patches taken from the reconstruction.

    Raises:
        ValueError: the grid does not have N patches.
    """
    hidden_B1HW = _hidden_pixels(mask_BN, grid, images_BCHW.shape[2], images_BCHW.shape[3])
    return torch.where(hidden_B1HW, reconstruction_BCHW, images_BCHW)


def reconstruction_sheet(
    images_BCHW: Float[Tensor, "B C H W"],
    reconstruction_BCHW: Float[Tensor, "B C H W"],
    mask_BN: Bool[Tensor, "B N"],
    grid: Grid,
    *,
    chosen: Chosen = None,
) -> Sheet:
    """One row an image: original, masked, reconstructed, and the reconstruction pasted into what was visible.

    The reconstruction is in the images' own range; where a method predicts patches normalised by their own
    mean and deviation, undo that first.
    """
    colours = FalseColour.of(images_BCHW, chosen)
    # Before hidden patches are greyed, as a stretch would make that grey another one.
    images_BCHW, reconstruction_BCHW = colours(images_BCHW), colours(reconstruction_BCHW)
    columns = {
        "original": images_BCHW,
        "masked": masked_image(images_BCHW, mask_BN, grid),
        "reconstructed": reconstruction_BCHW,
        "pasted in": pasted_image(images_BCHW, reconstruction_BCHW, mask_BN, grid),
    }
    rows = tuple(
        tuple(Cell(image=shown(images[b]), alt=f"image {b + 1}, {name}") for name, images in columns.items())
        for b in range(len(images_BCHW))
    )
    caption = (
        "From left to right: the image; what the encoder was given, with the hidden patches in grey; what "
        "the decoder made of it; and the same with the visible patches put back. Only the hidden patches "
        "count: shapes and colours that continue across their borders show that the encoder understood the "
        "visible part. Blur is normal."
    )
    note = f"{percent(100 * mask_BN.float().mean().item())} of the patches were hidden."
    return Sheet(headers=tuple(columns), rows=rows, caption=colours.captioned(caption), note=note)


def position_score(probability_BNN: Float[Tensor, "B N N"], mask_BN: Bool[Tensor, "B N"]) -> PositionScore:
    """How often the most probable target patch (last axis) is the hidden patch itself (middle axis).

    Raises:
        ValueError: no patch is hidden.
    """
    own_N = torch.arange(mask_BN.shape[1], device=mask_BN.device)
    right_BN = probability_BNN.argmax(dim=-1) == own_N
    patches = int(mask_BN.sum())
    if patches == 0:
        raise ValueError("no patch is hidden, so none can be looked for")
    return PositionScore(share=int(right_BN[mask_BN].sum()) / patches, chance=1 / mask_BN.shape[1], patches=patches)


def pick_queries(
    images_BCHW: Float[Tensor, "B C H W"], mask_BN: Bool[Tensor, "B N"], grid: Grid, queries: int
) -> Int[Tensor, "B Q"]:
    """For each image `queries` hidden patches, spread over the half of them that has more detail.

    Flat patches (a plain background) look all the same, and a map of their similarities shows nothing.

    Raises:
        ValueError: an image has fewer than `queries` hidden patches.
    """
    if int(mask_BN.sum(dim=1).min()) < queries:
        raise ValueError(f"{queries} queries an image were asked for, but an image has fewer hidden patches")
    mean_B1hw = F.adaptive_avg_pool2d(images_BCHW.float().mean(dim=1, keepdim=True), grid)
    square_B1hw = F.adaptive_avg_pool2d(images_BCHW.float().mean(dim=1, keepdim=True) ** 2, grid)
    detail_BN = (square_B1hw - mean_B1hw**2).flatten(1)
    # The middle of each of `queries` equal stretches: distinct because there are at least `queries` patches.
    middle_Q = torch.arange(queries) + 0.5
    picks: list[Tensor] = []
    for detail_N, mask_N in zip(detail_BN.cpu(), mask_BN.cpu(), strict=True):
        hidden_M = mask_N.nonzero().flatten()
        kept = max(queries, len(hidden_M) // 2)
        detailed = hidden_M[detail_N[hidden_M].topk(kept).indices].sort().values
        picks.append(detailed[(middle_Q * kept / queries).long()])
    return torch.stack(picks)


def similarity_sheet(
    online_BCHW: Float[Tensor, "B C H W"],
    target_BCHW: Float[Tensor, "B C H W"],
    mask_BN: Bool[Tensor, "B N"],
    probability_BNN: Float[Tensor, "B N N"],
    queries_BQ: Int[Tensor, "B Q"],
    grid: Grid,
    *,
    chosen: Chosen = None,
) -> Sheet:
    """One row an image: masked view, target view, then for each query patch where its feature was found.

    Args:
        online_BCHW: the view the online encoder saw, unmasked.
        target_BCHW: the view the target encoder saw.
        mask_BN: what was hidden from the online encoder.
        probability_BNN: [b, i, j] is the probability (softmax over j) that the online feature of patch i
            belongs to target patch j; only rows of hidden patches are read.
        queries_BQ: the patches to show, hidden ones; at most six an image (see `pick_queries`).
        grid: rows and columns of patches.
        chosen: the channels to show.
    """
    queries = queries_BQ.shape[1]
    if queries > len(QUERY_COLOURS):
        raise ValueError(f"at most {len(QUERY_COLOURS)} queries an image can be told apart, not {queries}")
    colours = FalseColour.of(online_BCHW, chosen)
    target_BCHW = colours(target_BCHW)
    masked_BCHW = masked_image(colours(online_BCHW), mask_BN, grid)
    rows: list[tuple[Cell, ...]] = []
    for b in range(len(online_BCHW)):
        masked = enlarged(to_picture(masked_BCHW[b]))
        target = enlarged(to_picture(target_BCHW[b]))
        found: list[Cell] = []
        for query, colour in zip(queries_BQ[b].tolist(), QUERY_COLOURS, strict=False):
            masked = outlined(masked, query, grid, colour)
            found.append(_similarity_cell(target, probability_BNN[b, query], query, grid, colour))
        first = Cell(image=encoded(masked, exact=True), alt=f"image {b + 1} masked, {queries} patches framed")
        rows.append((first, Cell(image=shown(target_BCHW[b]), alt=f"image {b + 1}, target view"), *found))
    score = position_score(probability_BNN, mask_BN)
    caption = (
        "Each coloured frame on the masked view is a hidden patch. The map of the same colour shows where "
        "the encoder looks for it in the target view: bright means similar, and the frame is where it should "
        "be found. A good map has its brightest patch inside the frame; a white frame marks the patch that "
        "was brighter. The number is the probability given to the true place. Queries are spread over the "
        "patches with more detail."
    )
    note = (
        f"{percent(100 * score.share)} of {score.patches} hidden patches find their own place "
        f"among {mask_BN.shape[1]} (blind guessing: {percent(100 * score.chance)})."
    )
    headers = ("masked view", "target view", *(f"query {q + 1}" for q in range(queries)))
    return Sheet(headers=headers, rows=tuple(rows), caption=colours.captioned(caption), note=note)


def _similarity_cell(
    target: Picture, probability_N: Float[Tensor, " N"], query: int, grid: Grid, colour: Colour
) -> Cell:
    best = int(probability_N.argmax())
    picture = heat(target, probability_N, grid)
    if best != query:
        picture = outlined(picture, best, grid, WHITE)
    picture = outlined(picture, query, grid, colour)
    chance = percent(100 * float(probability_N[query]))
    right = best == query
    where = "its own place" if right else f"row {best // grid[1] + 1}, column {best % grid[1] + 1}"
    alt = (
        f"similarity map of the patch in row {query // grid[1] + 1}, column {query % grid[1] + 1}: "
        f"highest at {where}; probability of its own place {chance}"
    )
    return Cell(image=encoded(picture, exact=True), alt=alt, label=chance, mark="right" if right else "wrong")


def attention_sheet(
    images_BCHW: Float[Tensor, "B C H W"],
    attention_BAN: Float[Tensor, "B A N"],
    grid: Grid,
    *,
    heads: int = 4,
    chosen: Chosen = None,
) -> Sheet:
    """One row an image: the image, its class token's attention as the mean of heads, then `heads` heads.

    Args:
        images_BCHW: what the encoder saw.
        attention_BAN: attention from the class token to each patch (the class token's own share left out).
        grid: rows and columns of patches.
        heads: how many single heads to show, spread evenly over the A there are.
        chosen: the channels to show.
    """
    present = attention_BAN.shape[1]
    middle = (torch.arange(min(heads, present)) + 0.5) * present / max(1, min(heads, present))
    maps = {"mean of heads": attention_BAN.mean(dim=1)}
    maps |= {f"head {head + 1}": attention_BAN[:, head] for head in middle.long().tolist()}
    rows: list[tuple[Cell, ...]] = []
    colours = FalseColour.of(images_BCHW, chosen)
    for b, image_CHW in enumerate(colours(images_BCHW)):
        picture = enlarged(to_picture(image_CHW))
        cells = [Cell(image=shown(image_CHW), alt=f"image {b + 1}")]
        for name, map_BN in maps.items():
            overlay = encoded(heat(picture, map_BN[b], grid), exact=True)
            cells.append(Cell(image=overlay, alt=f"attention on image {b + 1}, {name}"))
        rows.append(tuple(cells))
    caption = (
        "Where the class token of the last block looks: bright patches count most for the description of the "
        "whole image, and each map is scaled to its own brightest patch. Maps that follow the object rather "
        "than the background, with heads that look at different parts, are a good sign; the same even map "
        "everywhere is not."
    )
    return Sheet(headers=("image", *maps), rows=tuple(rows), caption=colours.captioned(caption))
