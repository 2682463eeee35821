"""Pixels by what surrounds them: the mean and deviation of the window around each pixel.

Shape legend: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def window_statistics(
    images_BCHW: Float[Tensor, "B C H W"], window: int
) -> tuple[Float[Tensor, "B 1 H W"], Float[Tensor, "B 1 H W"]]:
    """Mean and standard deviation of all values, of all channels, in the `window` x `window` pixels around each pixel.

    An even window reaches one pixel further up and left than down and right. At the border it holds what there is of
    the image. The variance is biased, with 1e-6 added.
    """
    before, after = window // 2, (window - 1) // 2
    padding = (before, after, before, after)
    # First and second moments of a pixel's channels, and a count, all summed over the window at once.
    ones = torch.ones_like(images_BCHW[:, :1])
    moments = torch.cat(
        [images_BCHW.mean(dim=1, keepdim=True), images_BCHW.square().mean(dim=1, keepdim=True), ones], dim=1
    )
    sums = F.avg_pool2d(F.pad(moments, padding), window, stride=1)
    first, second, count = sums.unbind(dim=1)
    mean = first / count
    variance = (second / count - mean.square()).clamp_(min=0)
    return mean[:, None], (variance + 1e-6).sqrt()[:, None]
