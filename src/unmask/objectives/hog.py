"""Histograms of oriented gradients, the features that MaskFeat predicts (Dalal and Triggs 2005, as MaskFeat uses them).

Shape legend: B images, C channels, H x W pixels, N patches (row-major), M hidden patches of the batch, K values of a
patch in the order (channel, bin, cell row, cell column).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def hog_width(patch: tuple[int, int], *, channels: int, cell: int, bins: int) -> int:
    """How many values K describe a patch of `patch` (height, width) pixels. ValueError where cells do not fill it."""
    if cell < 2 or patch[0] % cell or patch[1] % cell:
        raise ValueError(
            f"cells of {cell}x{cell} pixels, of at least 2x2, do not fill patches of {patch[0]}x{patch[1]} pixels"
        )
    return channels * bins * (patch[0] // cell) * (patch[1] // cell)


def hog(
    images_BCHW: Float[Tensor, "B C H W"],
    patch: tuple[int, int],
    mask_BN: Bool[Tensor, "B N"],
    *,
    cell: int,
    bins: int,
) -> Float[Tensor, "M K"]:
    """Histograms of the hidden patches, in the order (image, patch).

    Each channel has its own gradients; a pixel adds its gradient's length to the one bin of its direction, of `bins`
    equal parts of half a turn measured from the vertical axis, in its own cell of `cell` x `cell` pixels. No
    interpolation between bins or cells, no blocks, no window; each cell's histogram has unit length.
    """
    (ph, pw), (B, C, H, W) = patch, images_BCHW.shape

    def cells(values_BCHW: Tensor) -> Tensor:
        """[M, C, cell rows, cell columns, pixels of a cell]"""
        split = values_BCHW.view(B, C, H // ph, ph // cell, cell, W // pw, pw // cell, cell)
        return split.permute(0, 2, 5, 1, 3, 6, 4, 7).flatten(1, 2)[mask_BN].flatten(4)

    # Only hidden patches from here on: angles cost most.
    across, down = (cells(gradient_BCHW) for gradient_BCHW in sobel(images_BCHW))
    length = torch.hypot(across, down)
    which = (torch.atan2(across, down) / math.pi * bins).floor().remainder(bins)
    if length.is_cuda:
        # Adding by index comes out differently from run to run on a GPU; on a processor it is many times as fast.
        parts = [torch.where(which == index, length, 0).sum(dim=-1) for index in range(bins)]
        histogram = torch.stack(parts, dim=2)
    else:
        empty = length.new_zeros(*length.shape[:-1], bins)
        histogram = empty.scatter_add_(-1, which.long(), length).movedim(-1, 2)
    return F.normalize(histogram, dim=2, eps=1e-12).flatten(1)


def sobel(
    images_BCHW: Float[Tensor, "B C H W"],
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
    """Gradients to the left and upwards, weighted 1, 2, 1 across their direction; borders are reflected.

    So the one is nothing on the outer columns and the other on the outer rows. Differences are taken before sums: the
    bin of a direction hangs on such a gradient being exactly zero, and rounding would send half of them to another.
    """
    padded = F.pad(images_BCHW, (1, 1, 1, 1), mode="reflect")
    left, middle, right = padded[..., :-2], padded[..., 1:-1], padded[..., 2:]
    difference, total = left - right, left + 2 * middle + right
    across_BCHW = difference[..., :-2, :] + 2 * difference[..., 1:-1, :] + difference[..., 2:, :]
    return across_BCHW, total[..., :-2, :] - total[..., 2:, :]
