"""Features of several augmented views of each image: what measures without labels compare.

Shape legend: N images, V views of each, C channels, H x W pixels, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from typing_extensions import Doc

from unmask.data.batch import CropConfig
from unmask.data.loader import CropLoader
from unmask.data.sources import Source
from unmask.data.statistics import first_readable
from unmask.evaluation.classifier import evenly
from unmask.evaluation.features import FeatureExtractor
from unmask.views import generators, random_flip

VIEWS_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Which images are looked at, and how their views differ: random resized crops, flipped at random, no colour."""

    images: Annotated[int, Doc("At most so many images, spread evenly over the data.")] = 1000
    views: Annotated[int, Doc("Augmented views of each image.")] = 8
    crop_scale: Annotated[
        tuple[float, float], Doc("Range of the share of the image's area that a view covers. [usual in pre-training]")
    ] = (0.2, 1.0)
    flip: Annotated[float, Doc("Probability of a horizontal flip. [.5]")] = 0.5

    def __post_init__(self) -> None:
        if self.images < 2 or self.views < 2:
            raise ValueError(
                f"measures without labels compare at least two views of at least two images, got {self.views} of "
                f"{self.images}"
            )
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop scale must be a range within (0, 1], got {low} to {high}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must lie in [0, 1], got {self.flip}")


def view_features(
    extractor: FeatureExtractor,
    source: Source,
    config: ViewConfig,
    *,
    height: int,
    width: int,
    channels: int,
    seed: int,
    workers: int,
) -> Float[Tensor, "N V D"]:
    """Features of the views of at most `config.images` readable images, the same views for the same seed.

    An image that cannot be read is left out. Raises ValueError where none of the first thousand can be.
    """
    first_readable(source, channels=channels)
    chosen = source.subset(evenly(len(source), config.images).numpy())
    crop = CropConfig(height=height, width=width, count=config.views, scale=config.crop_scale)
    # One image a step: an epoch then has every image once, whatever their number.
    loader = CropLoader(
        chosen,
        (crop,),
        batch_size=1,
        total_steps=len(chosen),
        seed=seed,
        workers=workers,
        channels=channels,
        max_bad_share=1.0,
    )
    found = []
    views = _distinct_views(loader, config)
    with torch.no_grad():
        while group := list(islice(views, max(1, VIEWS_AT_ONCE // config.views))):
            found.append(extractor(torch.cat(group)).unflatten(0, (len(group), config.views)))
    return torch.cat(found)


def _distinct_views(loader: CropLoader, config: ViewConfig) -> Iterator[UInt8[Tensor, "V C H W"]]:
    """The flipped views of each image. The loader lets another image stand in for a bad one; that one counts once."""
    seen: set[int] = set()
    for batch in loader:
        index = int(batch.indices)
        if index not in seen:
            seen.add(index)
            host, _ = generators(batch.seed, "cpu")
            yield random_flip(batch.crops[0][0], host, config.flip)
