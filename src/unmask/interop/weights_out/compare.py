"""Whether an exported encoder still computes what ours does: the same real images through both.

Shape legend: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from unmask.data.loader import EvalLoader
from unmask.data.pixel_range import PixelRange, in_range
from unmask.data.sources import Source, open_source
from unmask.errors import Failure
from unmask.models.encoder import Encoder
from unmask.models.pretrained import PretrainedEncoder
from unmask.views import normalise, to_float

BUILTIN = "builtin:emoji"
OF_FILES = (1, 3)
"""Channels that an image file can be read with."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far features of an export are from ours."""

    what: str
    """Which features, of which images."""
    absolute: float
    """Of the two features that are farthest apart."""
    relative: float
    """That, by the largest feature."""


def real_images(
    encoder: Encoder, data: str | None, count: int, pixel_range: PixelRange | None = None
) -> UInt8[Tensor, "B C H W"]:
    """At most `count` images from all over `data` (None: built-in ones), cut to the encoder's size.

    Built-in images are cut to any number of channels, which then are red, green and blue in turn. ValueError where no
    image can be read.
    """
    source = _builtin() if data is None else in_range(open_source(data), pixel_range)
    places = np.unique(np.linspace(0, len(source) - 1, count).astype(np.int64))
    height, width = encoder.image_size
    channels = encoder.config.channels
    read = channels if data is not None or channels in OF_FILES else 3
    loader = EvalLoader(
        source.subset(places), height=height, width=width, channels=read, batch_size=len(places), workers=0
    )
    images_BCHW = torch.cat([images for images, _ in loader])
    return images_BCHW[:, torch.arange(channels) % read]


@cache
def _builtin() -> Source:
    """Opened once, as several exports often follow each other."""
    return open_source(BUILTIN)


@torch.no_grad()
def normalised(pretrained: PretrainedEncoder, images_BCHW: UInt8[Tensor, "B C H W"]) -> Tensor:
    """What the encoder takes."""
    return normalise(to_float(images_BCHW), pretrained.mean, pretrained.std)


@torch.no_grad()
def tokens_of(pretrained: PretrainedEncoder, images_BCHW: UInt8[Tensor, "B C H W"]) -> Tensor:
    """Our own tokens [B, L, D] of these images."""
    tokens: Tensor = pretrained.encoder(normalised(pretrained, images_BCHW))
    return tokens


def difference(what: str, theirs: Tensor, ours: Tensor) -> Difference:
    """Compare features. Failure where their shapes differ or one is not finite."""
    if theirs.shape != ours.shape:
        raise Failure(f"{what}: the export gives features of shape {tuple(theirs.shape)}, ours are {tuple(ours.shape)}")
    if not torch.isfinite(ours).all():
        raise Failure(f"{what}: the encoder's features are not finite, so there is nothing to compare or to export")
    if not torch.isfinite(theirs).all():
        raise Failure(f"{what}: the export gives features that are not finite")
    absolute = float((theirs - ours).abs().max())
    return Difference(what=what, absolute=absolute, relative=absolute / max(float(ours.abs().max()), 1e-30))


def check(differences: list[Difference], tolerance: float) -> None:
    """Failure for the first difference above `tolerance` (relative)."""
    for found in differences:
        if not found.relative <= tolerance:
            raise Failure(
                f"the export is refused: {found.what} differ by {found.absolute:.3g}, which is {found.relative:.3g} of "
                f"the largest, and --tolerance is {tolerance:g}"
            )
