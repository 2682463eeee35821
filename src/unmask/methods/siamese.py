"""What methods share that compare two whole views of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.colour.plan import ColourConfig
from unmask.models.encoder import Encoder
from unmask.views import Views

# BYOL's two views, which MoCo v3 took over: the first always blurred, the second rarely blurred but solarised.
BYOL_FIRST = ColourConfig(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter_p=0.8, grey_p=0.2, blur_p=1.0)
BYOL_SECOND = ColourConfig(
    brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter_p=0.8, grey_p=0.2, blur_p=0.1, solarise_p=0.2
)


def image_feature(encoder: Encoder, images_BCHW: Tensor) -> Tensor:
    """One feature [B, D] an image: the class token after the final norm, or the mean where there is none."""
    return encoder.pool(encoder(images_BCHW), "class" if encoder.has_class_token else "mean")


@torch.no_grad()
def copy_statistics_(target: torch.nn.Module, online: torch.nn.Module) -> None:
    """Copy the buffers (running statistics of batch norm) of `online` to its copy `target`."""
    for ours, theirs in zip(target.buffers(), online.buffers(), strict=True):
        ours.copy_(theirs)


def second_view(views: Views) -> Tensor:
    """The second view of views that must have one."""
    if views.target is None:
        raise ValueError("this method needs two views of each image")
    return views.target
