"""Where crops lie in an image, and their pixels.

A box is (top, left, height, width) in pixels of the original, upright image.
Shape legend: V crops, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from unmask.data.batch import CropConfig
from unmask.data.decode import OpenImage, PixelMemory

Box = tuple[int, int, int, int]

_TRIES = 10
_MASK_64 = (1 << 64) - 1


class Stream(IntEnum):
    """What a sample's random numbers are for; each has a stream of its own."""

    CROP = 0
    REPLACEMENT = 1
    ORDER = 2
    CAPTION = 3
    RETOUCH = 4


def sample_generator(seed: int, epoch: int, index: int, stream: Stream) -> np.random.Generator:
    """The generator of one sample in one epoch: the same in any worker, rank and restart.

    Philox needs no mixing of its key, and parts of the counter that drawing never reaches keep the streams
    apart.
    """
    return np.random.Generator(np.random.Philox(cast(Any, _Key(seed, epoch)), counter=(0, 0, index, stream)))


class _Key(ISeedSequence):
    """The key of a Philox generator. Given by the argument `key`, NumPy would ask the system for entropy first."""

    def __init__(self, seed: int, epoch: int) -> None:
        self._key = np.array([seed & _MASK_64, epoch], dtype=np.uint64)

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint32) -> NDArray[np.uint64]:
        assert n_words == 2
        return self._key


def random_box(generator: np.random.Generator, height: int, width: int, crop: CropConfig) -> Box:
    """A random box of an image of this size, distributed as in torchvision's RandomResizedCrop.

    Area uniform in `crop.scale`, logarithm of the aspect ratio uniform in `crop.ratio`; a box that does not
    fit is drawn again, ten times, then the largest central box of an allowed ratio is taken.
    """
    low, high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    for _ in range(_TRIES):
        area = height * width * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * generator.random())
        ratio = math.exp(low + (high - low) * generator.random())
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(generator.integers(height - box_height + 1))
            left = int(generator.integers(width - box_width + 1))
            return top, left, box_height, box_width
    box_height, box_width = height, width
    if width / height < crop.ratio[0]:
        box_height = min(height, round(width / crop.ratio[0]))
    elif width / height > crop.ratio[1]:
        box_width = min(width, round(height * crop.ratio[1]))
    # A very long image of one pixel's width still has a box.
    box_height, box_width = max(box_height, 1), max(box_width, 1)
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def crop_image(
    opened: OpenImage,
    crops: Sequence[CropConfig],
    generator: np.random.Generator,
    *,
    channels: int,
    memory: PixelMemory | None = None,
) -> tuple[tuple[UInt8[Tensor, "_ C _ _"], ...], tuple[Float[Tensor, "_ 6"], ...]]:
    """All random crops of all groups, cut from one decoding, with their boxes as `Batch.boxes` has them.

    `memory` is for the image, not for the crops. Raises DecodeError when the pixels cannot be decoded.
    """
    boxes = [[random_box(generator, opened.height, opened.width, crop) for _ in range(crop.count)] for crop in crops]
    pixels = _cut(opened, crops, boxes, channels, memory or PixelMemory())
    placed = tuple(
        torch.from_numpy(np.array([(*box, opened.height, opened.width) for box in group], dtype=np.float32))
        for group in boxes
    )
    return pixels, placed


def center_crop(
    opened: OpenImage,
    height: int,
    width: int,
    *,
    channels: int,
    crop_ratio: float | None = None,
    memory: PixelMemory | None = None,
) -> UInt8[Tensor, "C H W"]:
    """The usual evaluation crop: the middle of the image, `crop_ratio` of it as far as the shape allows.

    That is a resize of the shorter side to 1 / `crop_ratio` of the crop's and a central crop, as one cut and one
    resize; its place is within a pixel of torchvision's. None is 224 / 256, and 1 for crops up to 64 pixels, which
    lose no margin. `memory` is for the image, not for the crop. Raises DecodeError.
    """
    if crop_ratio is None:
        crop_ratio = 1.0 if max(height, width) <= 64 else 224 / 256
    margin = math.ceil(round(height / crop_ratio, 6)) / height
    scale = min(opened.height / height, opened.width / width) / margin
    box_height, box_width = max(round(height * scale), 1), max(round(width * scale), 1)
    box = (opened.height - box_height) // 2, (opened.width - box_width) // 2, box_height, box_width
    crop = CropConfig(height=height, width=width)
    return _cut(opened, (crop,), [[box]], channels, memory or PixelMemory())[0][0]


def _cut(
    opened: OpenImage, crops: Sequence[CropConfig], boxes: list[list[Box]], channels: int, memory: PixelMemory
) -> tuple[UInt8[Tensor, "_ C _ _"], ...]:
    """The pixels of the boxes of all groups, from one decoding of no more than they need."""
    with memory.lent(opened.bytes_needed(channels)) as pixel_memory:
        decoded = opened.decode(
            min_size=_needed_size(opened, crops, boxes),
            channels=channels,
            last_row=max(box[0] + box[2] for group in boxes for box in group),
            memory=pixel_memory,
        )
        return tuple(
            torch.stack([decoded.resized(box, crop.height, crop.width) for box in group])
            for crop, group in zip(crops, boxes, strict=True)
        )


def _needed_size(opened: OpenImage, crops: Sequence[CropConfig], boxes: list[list[Box]]) -> tuple[int, int]:
    """Decoded size (height, width) at which every box still has at least the pixels of its crop."""
    shares = [
        (crop.height / box[2], crop.width / box[3]) for crop, group in zip(crops, boxes, strict=True) for box in group
    ]
    down, across = max(share[0] for share in shares), max(share[1] for share in shares)
    return math.ceil(down * opened.height), math.ceil(across * opened.width)
