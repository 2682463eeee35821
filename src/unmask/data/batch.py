"""What travels from the data workers to the device: uint8 crops and where they came from.

Shape legend: B samples, V crops of one image, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from typing_extensions import Doc

_TYPES = {torch.uint8: np.uint8, torch.float32: np.float32, torch.float64: np.float64}


def unwritten(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A tensor for a batch, with whatever its memory holds.

    On a CPU NumPy takes the memory, because it asks Linux for large pages: writing to fresh small ones costs several
    times as much as what is written.
    """
    if torch.device(device).type != "cpu" or dtype not in _TYPES:
        return torch.empty(*shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(tuple(shape), dtype=_TYPES[dtype]))


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """One group of random resized crops cut from a decoded image, all of one size."""

    height: Annotated[int, Doc("Height of the crop after resizing, in pixels.")] = 224
    width: Annotated[int, Doc("Width of the crop after resizing, in pixels.")] = 224
    count: Annotated[int, Doc("How many independent crops of one image this group holds.")] = 1
    scale: Annotated[tuple[float, float], Doc("Range of the cropped share of the image's area.")] = (0.2, 1.0)
    ratio: Annotated[tuple[float, float], Doc("Range of the aspect ratio (width / height) before resizing.")] = (
        3 / 4,
        4 / 3,
    )


@dataclass(frozen=True)
class Batch:
    """One batch as a method receives it.

    `crops` holds one uint8 tensor for each CropConfig of the method; most methods have one group.
    `boxes` tells for every crop where it lies in its image: top, left, height, width, image height, image width
    (pixels of the original image). `indices` are positions in the data source. `seed` makes everything that is drawn
    from here on (flips, shifts, colours, masks) a function of the batch alone; None draws from torch's global state.
    `labels` are class indices and `texts` captions, where the source has them: only supervised branches look at them.
    """

    crops: tuple[UInt8[Tensor, "B _ C _ _"], ...]
    boxes: tuple[Float[Tensor, "B _ 6"], ...]
    indices: Int64[Tensor, " B"]
    seed: int | None = None
    labels: Int64[Tensor, " B"] | None = None
    texts: tuple[str, ...] | None = None

    @property
    def size(self) -> int:
        """Number of samples B."""
        return len(self.indices)

    @classmethod
    def of(cls, images_BCHW: UInt8[Tensor, "B C H W"], *, seed: int | None = None) -> Batch:
        """A batch from plain uint8 images, already cropped: one crop group with one crop a sample."""
        if images_BCHW.dtype != torch.uint8 or images_BCHW.ndim != 4:
            raise ValueError(
                f"images must be uint8 of shape [B, C, H, W], got {images_BCHW.dtype} of {tuple(images_BCHW.shape)}"
            )
        B, _, H, W = images_BCHW.shape
        box_6 = torch.tensor([0, 0, H, W, H, W], dtype=torch.float32)
        return cls(
            crops=(images_BCHW[:, None],),
            boxes=(box_6.expand(B, 1, 6),),
            indices=torch.arange(B),
            seed=seed,
        )

    def to(self, device: torch.device) -> Batch:
        """The same batch with crops and labels on `device`; copies overlap with computation where memory is pinned."""
        return replace(
            self,
            crops=tuple(crop.to(device, non_blocking=True) for crop in self.crops),
            labels=None if self.labels is None else self.labels.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        return replace(
            self,
            crops=tuple(crop.pin_memory() for crop in self.crops),
            labels=None if self.labels is None else self.labels.pin_memory(),
        )
