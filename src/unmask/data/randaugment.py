"""timm's RandAugment on crops, drawn from a generator of ours.

Shape legend: C channels, H x W pixels.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from timm.data.auto_augment import posterize, rand_augment_transform
from torch import Tensor

from unmask.data.seeded import seeded

# timm passes over what it cannot read ("rand-mild"), and would train with other settings than those asked for.
_POLICY = re.compile(r"rand(-(m\d+|n\d+|mmax\d+|inc[01]|(mstd|p)\d+(\.\d+)?|t(weights|3aw|3a)))*")


class RandAugment:
    """RandAugment as timm's `rand_augment_transform` reads `policy` (for example "rand-m9-mstd0.5-inc1"), for crops of
    1 or 3 channels; colour operations leave a grey crop grey.

    `fill` is the colour (0 to 255, by channel) of what a shear or rotation leaves empty: timm takes the data's mean.
    ValueError where timm cannot read the policy.
    """

    def __init__(self, policy: str, fill: tuple[int, ...]) -> None:
        if _POLICY.fullmatch(policy) is None:
            raise ValueError(f"timm knows no RandAugment policy {policy!r}; an example is rand-m9-mstd0.5-inc1")
        colour = fill if len(fill) == 3 else fill * 3
        # Bicubic, as BEiT's and MAE's code has it; timm's own default takes bilinear and bicubic in turn.
        self._transform = rand_augment_transform(
            policy, {"img_mean": colour, "interpolation": Image.Resampling.BICUBIC}
        )
        for operation in self._transform.ops:
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize

    def __call__(self, image_CHW: UInt8[Tensor, "C H W"], generator: np.random.Generator, /) -> UInt8[Tensor, "C H W"]:
        """The changed crop."""
        # timm's colour operations want RGB; a grey picture stays grey under all of them.
        rgb_3HW = image_CHW.expand(3, -1, -1)
        image = Image.fromarray(np.ascontiguousarray(rgb_3HW.permute(1, 2, 0).numpy()))
        with seeded(int(generator.integers(2**63))):
            changed = self._transform(image)
        pixels_3HW = torch.from_numpy(np.array(changed)).permute(2, 0, 1)
        return pixels_3HW[: len(image_CHW)].contiguous()


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """timm's posterize; no bits at all is black, as Pillow had it before version 13 refused it. The strongest level of
    an increasing policy asks for that."""
    return posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)
