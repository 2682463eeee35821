"""Reconstruction of hidden patches.

Shape legend: B samples, C channels, H x W pixels, N patches (row-major), K = p*p*C values of a patch in the order
(row, column, channel), which is MAE's.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor


def patchify(images_BCHW: Float[Tensor, "B C H W"], patch: tuple[int, int]) -> Float[Tensor, "B N K"]:
    """Cut images into non-overlapping patches of `patch` (height, width) pixels; H and W must be multiples of it."""
    B, C, H, W = images_BCHW.shape
    ph, pw = patch
    grid = images_BCHW.reshape(B, C, H // ph, ph, W // pw, pw)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, ph * pw * C)


def unpatchify(
    patches_BNK: Float[Tensor, "B N K"], patch: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "B C H W"]:
    """The inverse of `patchify` for a grid of `grid` (rows, columns) patches."""
    B = patches_BNK.shape[0]
    ph, pw = patch
    cells = patches_BNK.reshape(B, grid[0], grid[1], ph, pw, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, grid[0] * ph, grid[1] * pw)


def patch_statistics(
    patches: Float[Tensor, "*lead K"],
) -> tuple[Float[Tensor, "*lead 1"], Float[Tensor, "*lead 1"]]:
    """Mean and standard deviation of each patch over all its values: unbiased variance + 1e-6 (MAE's authors)."""
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def normalise_patches(patches: Float[Tensor, "*lead K"]) -> Float[Tensor, "*lead K"]:
    """Each patch to zero mean and unit deviation ("norm-pix": MAE section 4, with the authors' unbiased variance)."""
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation


def channel_statistics(
    patches: Float[Tensor, "*lead K"], channels: int
) -> tuple[Float[Tensor, "*lead K"], Float[Tensor, "*lead K"]]:
    """Mean and standard deviation of each channel of each patch, for each of its values: biased variance + 1e-5
    (BootMAE's authors)."""
    pixels = patches.unflatten(-1, (-1, channels))
    mean = pixels.mean(dim=-2, keepdim=True).expand_as(pixels).flatten(-2)
    variance = pixels.var(dim=-2, keepdim=True, correction=0).expand_as(pixels).flatten(-2)
    return mean, (variance + 1e-5).sqrt()


def mean_squared_error(prediction: Float[Tensor, "*lead K"], target: Float[Tensor, "*lead K"]) -> Float[Tensor, ""]:
    """Mean over all given patches of the mean squared error of a patch. Give it the hidden patches only."""
    return (prediction - target).pow(2).mean(dim=-1).mean()


def absolute_error_per_pixel(
    prediction: Float[Tensor, "M K"], target: Float[Tensor, "M K"], channels: int
) -> Float[Tensor, ""]:
    """Sum of |prediction - target| over M hidden patches, by the count of hidden pixels, by channels. Hidden ones only.

    SimMIM's authors count hidden pixels, not values, and then divide by the channels; the whole batch is summed before
    dividing, so a sample with more hidden patches weighs more. They add 1e-5 to the count in float32, where it
    vanishes beside any count above 256; here too.
    """
    pixels = float(np.float32(prediction.numel() / channels) + np.float32(1e-5))
    return (prediction - target).abs().sum() / pixels / channels
