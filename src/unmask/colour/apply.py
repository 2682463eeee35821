"""Colour changes of a batch, by the way that suits its device."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.colour.groups import change_in_groups
from unmask.colour.plan import ColourParameters, ColourPlan
from unmask.data.batch import unwritten


def apply_colour(images_BCHW: Float[Tensor, "B C H W"], parameters: ColourParameters) -> Float[Tensor, "B C H W"]:
    """The images, values in [0, 1], with each sample's colour changes; the input is left as it is.

    Returns the input itself when there is nothing to do. Hue needs three channels and is skipped otherwise.
    """
    plan = ColourPlan.of(parameters, channels=images_BCHW.shape[1])
    if plan.idle or images_BCHW.device.type != "cpu" or images_BCHW.dtype != torch.float32:
        return change_in_groups(images_BCHW, plan)
    from unmask.colour.pixels import change_pixels_  # numba takes most of a second

    output_BCHW = unwritten(images_BCHW.shape, images_BCHW.dtype).copy_(images_BCHW)
    change_pixels_(output_BCHW, plan)
    return output_BCHW
