"""Histograms of oriented gradients, the features that MaskFeat predicts (Dalal and Triggs 2005, as MaskFeat uses them).

Shape legend: B images, C channels, H x W pixels, N patches (row-major), M hidden patches of the batch, K values of a
patch in the order (channel, bin, cell row, cell column).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def hog_width(patch: tuple[int, int], *, channels: int, cell: int, bins: int) -> int:
    """How many values K describe a patch of `patch` (height, width) pixels. ValueError where cells do not fill it."""
    if cell < 2 or patch[0] % cell or patch[1] % cell:
        raise ValueError(f"cells of {cell} pixels do not fill patches of {patch[0]}x{patch[1]} pixels")
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
    equal parts of half a turn, in its own cell of `cell` x `cell` pixels. No interpolation between bins or cells, no
    blocks, no window; each cell's histogram has unit length.
    """
    (ph, pw), (B, C, H, W) = patch, images_BCHW.shape
    length_BCHW, bin_BCHW = oriented_gradients(images_BCHW, bins)

    def cells(values_BCHW: Tensor) -> Tensor:
        """[M, C, cell rows, cell columns, pixels of a cell]"""
        split = values_BCHW.view(B, C, H // ph, ph // cell, cell, W // pw, pw // cell, cell)
        return split.permute(0, 2, 5, 1, 3, 6, 4, 7).flatten(1, 2)[mask_BN].flatten(4)

    length, which = cells(length_BCHW), cells(bin_BCHW)
    # One sum a bin: adding into bins by index would come out differently from run to run on a GPU.
    histogram = torch.stack([torch.where(which == index, length, 0).sum(dim=-1) for index in range(bins)], dim=2)
    return F.normalize(histogram, dim=2, eps=1e-12).flatten(1)


def oriented_gradients(
    images_BCHW: Float[Tensor, "B C H W"], bins: int
) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B C H W"]]:
    """Length of the Sobel gradient at each pixel, and which of `bins` equal parts of half a turn it points to.

    The direction is measured from the vertical axis. Borders are reflected, so the horizontal gradient is nothing on
    the outer columns and the vertical one on the outer rows; differences are taken before sums, because there the bin
    hangs on the gradient being exactly zero, and rounding would send half of the pixels to the last bin.
    """
    padded = F.pad(images_BCHW, (1, 1, 1, 1), mode="reflect")
    left, middle, right = padded[..., :-2], padded[..., 1:-1], padded[..., 2:]
    across = left - right
    across_BCHW = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    along = left + 2 * middle + right
    down_BCHW = along[..., :-2, :] - along[..., 2:, :]
    angle_BCHW = torch.atan2(across_BCHW, down_BCHW) / math.pi * bins
    return torch.hypot(across_BCHW, down_BCHW), angle_BCHW.floor().long() % bins
