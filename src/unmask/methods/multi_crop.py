"""Multi-crop: two or more large crops of an image and several small ones (SwAV's idea, as DINO, iBOT and MSN use it).

Shape legend: B samples, V crops of one kind (view-major: all samples of the first crop, then all of the second), C
channels, H x W pixels of a large crop, h x w of a small (local) one, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch, CropConfig
from unmask.methods.base import MethodConfig, check_size
from unmask.methods.siamese import image_feature
from unmask.models.encoder import Encoder
from unmask.models.vit import VitEncoder
from unmask.views import Views, generators, independent_view


@dataclass(frozen=True)
class MultiCropViews(Views):
    """Large crops in `online` and `target`, and small crops for the online network alone (None where there are none).

    `more`: further large crops for the online network, where a method takes more than one.
    """

    local: Float[Tensor, "V B C h w"] | None = None
    more: Float[Tensor, "M B C H W"] | None = None


@dataclass(frozen=True, kw_only=True)
class MultiCropConfig(MethodConfig):
    """What methods share that also look at small crops."""

    local_crops: Annotated[int, Doc("Number of small crops of an image; 0: none. [DINO: 8; iBOT, MSN: 10]")] = 8
    local_side: Annotated[
        float,
        Doc("Side of a small crop by that of a large one, rounded to whole patches. [96 of 224 pixels]"),
    ] = 96 / 224
    local_crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a small crop covers. [DINO]")] = (
        0.05,
        0.4,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_crops < 0:
            raise ValueError(f"the number of local crops must be 0 or more, got {self.local_crops}")
        if not 0 < self.local_side <= 1:
            raise ValueError(f"the side of local crops must lie in (0, 1] of the image's, got {self.local_side}")
        low, high = self.local_crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"local crop scale must be a range within (0, 1], got {low} to {high}")


def check_local_crops(encoder: Encoder, config: MultiCropConfig) -> None:
    """Refuse small crops where the encoder's positions cannot follow another size of image."""
    if config.local_crops and isinstance(encoder, VitEncoder) and not isinstance(encoder.vit, VisionTransformer):
        raise ValueError(
            f"encoder {config.encoder.name!r} with position {config.encoder.position!r} cannot see crops of two sizes; "
            "set local_crops to 0, or take a vit_* encoder with learned positions"
        )


def local_size(encoder: Encoder, config: MultiCropConfig) -> tuple[int, int]:
    """Height and width of a small crop, in pixels: whole patches, at least one."""
    height, width = (
        max(1, math.floor(patches * config.local_side + 0.5)) * pixels
        for patches, pixels in zip(encoder.grid, encoder.patch, strict=True)
    )
    return height, width


def multi_crops(encoder: Encoder, config: MultiCropConfig, *, count: int = 2) -> tuple[CropConfig, ...]:
    """`count` large crops of each image, of the encoder's size, and the small ones."""
    height, width = encoder.image_size
    large = CropConfig(height=height, width=width, count=count, scale=config.crop_scale)
    if not config.local_crops:
        return (large,)
    height, width = local_size(encoder, config)
    small = CropConfig(height=height, width=width, count=config.local_crops, scale=config.local_crop_scale)
    return large, small


def multi_crop_views(
    batch: Batch,
    encoder: Encoder,
    config: MultiCropConfig,
    *,
    colours: tuple[ColourConfig, ...],
    local_colour: ColourConfig,
) -> tuple[list[Tensor], Tensor | None]:
    """The large crops, one [B, C, H, W] for each of `colours`, and the small ones [V, B, C, h, w]; each flipped and
    coloured on its own."""
    counts = tuple(group.shape[1] for group in batch.crops)
    expected = tuple(crop.count for crop in multi_crops(encoder, config, count=len(colours)))
    if counts != expected:
        small = f" and {config.local_crops} small ones" if config.local_crops else ""
        raise ValueError(
            f"this method takes {len(colours)} crops of each image, large{small}; got groups of {list(counts)}"
        )
    check_size(batch.crops[0], encoder)
    host, _ = generators(batch.seed, batch.crops[0].device)

    def view(crops_BCHW: Tensor, colour: ColourConfig) -> Tensor:
        return independent_view(crops_BCHW, colour=colour, mean=config.mean, std=config.std, generator=host)

    large = [view(crop, colour) for crop, colour in zip(batch.crops[0].unbind(dim=1), colours, strict=True)]
    if not config.local_crops:
        return large, None
    (height, width), (h, w) = local_size(encoder, config), batch.crops[1].shape[-2:]
    if (height, width) != (h, w):
        raise ValueError(f"this method was built for small crops of {height}x{width} pixels, got {h}x{w}")
    local_VBChw = batch.crops[1].transpose(0, 1)
    return large, view(local_VBChw.flatten(0, 1), local_colour).unflatten(0, local_VBChw.shape[:2])


def crop_features(
    encoder: Encoder, large: list[Tensor], local_VBChw: Float[Tensor, "V B C h w"] | None
) -> Float[Tensor, "_ D"]:
    """One feature a crop, of the large crops and then the small ones, view-major, by one pass for each size."""
    features = [image_feature(encoder, torch.cat(large))]
    if local_VBChw is not None:
        features.append(image_feature(encoder, local_VBChw.flatten(0, 1)))
    return torch.cat(features)
