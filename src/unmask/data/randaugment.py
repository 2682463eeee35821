"""timm's RandAugment on crops, drawn from a generator of ours.

Shape legend: C channels, H x W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from timm.data.auto_augment import color, contrast, desaturate, posterize, rand_augment_transform
from torch import Tensor

from unmask.data.seeded import seeded

# timm passes over what it cannot read ("rand-mild"), and would train with other settings than those asked for.
_POLICY = re.compile(r"rand(-(m\d+|n\d+|mmax\d+|inc[01]|(mstd|p)\d+(\.\d+)?|t(weights|3aw|3a)))*")

# Grey pictures and grey levels, one a channel. What is in them is not said: a checker of types that looks at an item of
# a list, as the tests have one, picks it with the random numbers that timm is to draw.
_Planes = list[Any]
_Levels = tuple[Any, ...]


class RandAugment:
    """RandAugment as timm's `rand_augment_transform` reads `policy` (for example "rand-m9-mstd0.5-inc1"), for crops of
    any number of channels.

    Colour operations leave a grey crop grey. Of other numbers of channels than 1 and 3 each is a grey picture of its
    own that meets the same operations, turned and shifted as the others are; what looks at all channels (contrast,
    colour, desaturation) goes away from or towards the mean over them.

    `fill` is the colour (0 to 255, by channel) of what a shear or rotation leaves empty: timm takes the data's mean.
    ValueError where timm cannot read the policy.
    """

    def __init__(self, policy: str, fill: tuple[int, ...]) -> None:
        if _POLICY.fullmatch(policy) is None:
            raise ValueError(f"timm knows no RandAugment policy {policy!r}; an example is rand-m9-mstd0.5-inc1")
        self._planes = len(fill) not in (1, 3)
        colour = fill * 3 if len(fill) == 1 else fill
        # Bicubic, as BEiT's and MAE's code has it; timm's own default takes bilinear and bicubic in turn.
        self._transform = rand_augment_transform(
            policy, {"img_mean": colour, "interpolation": Image.Resampling.BICUBIC}
        )
        for operation in self._transform.ops:
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize
            if self._planes:
                operation.aug_fn = _TOGETHER.get(operation.aug_fn) or partial(_one_by_one, operation.aug_fn)

    def __call__(self, image_CHW: UInt8[Tensor, "C H W"], generator: np.random.Generator, /) -> UInt8[Tensor, "C H W"]:
        """The changed crop."""
        if self._planes:
            return self._by_planes(image_CHW, generator)
        # timm's colour operations want RGB; a grey picture stays grey under all of them.
        rgb_3HW = image_CHW.expand(3, -1, -1)
        image = Image.fromarray(np.ascontiguousarray(rgb_3HW.permute(1, 2, 0).numpy()))
        with seeded(int(generator.integers(2**63))):
            changed = self._transform(image)
        pixels_3HW = torch.from_numpy(np.array(changed)).permute(2, 0, 1)
        return pixels_3HW[: len(image_CHW)].contiguous()

    def _by_planes(self, image_CHW: UInt8[Tensor, "C H W"], generator: np.random.Generator) -> UInt8[Tensor, "C H W"]:
        planes = [Image.fromarray(np.ascontiguousarray(plane_HW.numpy())) for plane_HW in image_CHW]
        with seeded(int(generator.integers(2**63))):
            changed = self._transform(planes)
        return torch.from_numpy(np.stack([np.array(plane) for plane in changed]))


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """timm's posterize; no bits at all is black, as Pillow had it before version 13 refused it. The strongest level of
    an increasing policy asks for that."""
    return posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def _one_by_one(
    change: Callable[..., Image.Image],
    planes: _Planes,
    *arguments: Any,
    fillcolor: _Levels,
    **more: Any,
) -> _Planes:
    """timm's operation on each of an image's channels, with that channel's colour of what is left empty."""
    return [change(plane, *arguments, fillcolor=fill, **more) for plane, fill in zip(planes, fillcolor, strict=True)]


def _blended(others: _Planes, planes: _Planes, factor: float) -> _Planes:
    """The channels moved away from, or towards, others, as Pillow's ImageEnhance does it."""
    return [Image.blend(other, plane, factor) for other, plane in zip(others, planes, strict=True)]


def _grey(planes: _Planes) -> Image.Image:
    """The mean over the channels."""
    mean_HW = np.stack([np.asarray(plane) for plane in planes]).mean(axis=0, dtype=np.float32)
    return Image.fromarray((mean_HW + 0.5).astype(np.uint8))


def _contrast(planes: _Planes, factor: float, **_: object) -> _Planes:
    """As timm's: around the mean of the grey image."""
    mean = int(np.asarray(_grey(planes)).mean() + 0.5)
    return _blended([Image.new("L", planes[0].size, mean)] * len(planes), planes, factor)


def _colour(planes: _Planes, factor: float, **_: object) -> _Planes:
    """As timm's: away from or towards the grey image."""
    return _blended([_grey(planes)] * len(planes), planes, factor)


def _desaturate(planes: _Planes, factor: float, **_: object) -> _Planes:
    """As timm's: by this share of the way to the grey image."""
    return _colour(planes, min(1.0, max(0.0, 1.0 - factor)))


_TOGETHER = {contrast: _contrast, color: _colour, desaturate: _desaturate}
"""Operations of timm's that look at all channels at once, and the same for any number of them."""
