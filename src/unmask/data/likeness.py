"""How alike two images look: a hash of their coarse shapes, and a small picture that settles what the hash suspects.

The hash is the perceptual one of 64 bits: signs of the lowest frequencies of a cosine transform. [Zauner 2010]
Shape legend: N images, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from scipy.fft import dctn

_SIDE = 32  # of the picture that is transformed
_FREQUENCIES = 8  # kept in each direction
THUMB = 8
"""Side of the small picture."""
_BITS = 6
"""So many of the 64 bits may differ: files saved again, in another size or quality, differ in 0 to 4 or so."""
_LEVELS = 5.0
"""So many of 255 levels the small pictures may differ, as the root of the mean square."""
_CONTRAST = 4.0
"""Images whose small picture deviates less from its own mean, in levels, have no shape to compare."""


@dataclass(frozen=True)
class Likeness:
    """What is kept of an image to find others that look the same; `hash` is None for images of one colour."""

    hash: int | None
    thumb_HWC: UInt8[np.ndarray, "8 8 C"]


def likeness(pixels_HWC: UInt8[np.ndarray, "H W C"]) -> Likeness:
    """The likeness of an image of any size and number of channels."""
    pixels_1CHW = torch.from_numpy(pixels_HWC.astype(np.float32)).permute(2, 0, 1)[None]
    thumb_HWC = F.adaptive_avg_pool2d(pixels_1CHW, THUMB)[0].permute(1, 2, 0).numpy()
    small_HW = F.adaptive_avg_pool2d(pixels_1CHW.mean(dim=1, keepdim=True), _SIDE)[0, 0].numpy()
    rounded_HWC: UInt8[np.ndarray, "8 8 C"] = thumb_HWC.round().astype(np.uint8)
    if small_HW.std() < _CONTRAST:
        return Likeness(None, rounded_HWC)
    low = dctn(small_HW.astype(np.float64), norm="ortho")[:_FREQUENCIES, :_FREQUENCIES].ravel()
    bits = low > np.median(low[1:])  # the first is the brightness, which says nothing about shapes
    return Likeness(int.from_bytes(np.packbits(bits).tobytes(), "big"), rounded_HWC)


def look_alike(likenesses: Sequence[Likeness]) -> list[list[int]]:
    """Groups of positions whose images look nearly the same, each of two or more, by their first member.

    Every image is compared with the first of each group before it, never along a chain.
    """
    groups: list[list[int]] = []
    by_channels: dict[int, list[int]] = {}
    for place, found in enumerate(likenesses):
        if found.hash is not None:
            by_channels.setdefault(found.thumb_HWC.shape[2], []).append(place)
    for places in by_channels.values():
        groups += _groups(np.array(places), likenesses)
    return sorted(groups)


def _groups(places_N: Int64[np.ndarray, " N"], likenesses: Sequence[Likeness]) -> list[list[int]]:
    groups = []
    hashes_N = np.array([likenesses[place].hash for place in places_N], dtype=np.uint64)
    thumbs_NHWC = np.stack([likenesses[place].thumb_HWC for place in places_N])
    while len(places_N):
        suspects_K = np.flatnonzero(np.bitwise_count(hashes_N ^ hashes_N[0]) <= _BITS)
        if len(suspects_K) > 1:
            differences_KHWC = thumbs_NHWC[suspects_K].astype(np.float32) - thumbs_NHWC[0]
            alike_K = suspects_K[np.sqrt((differences_KHWC**2).mean(axis=(1, 2, 3))) <= _LEVELS]
            if len(alike_K) > 1:
                groups.append(places_N[alike_K].tolist())
                left_N = np.ones(len(places_N), dtype=np.bool_)
                left_N[alike_K] = False
                places_N, hashes_N, thumbs_NHWC = places_N[left_N], hashes_N[left_N], thumbs_NHWC[left_N]
                continue
        places_N, hashes_N, thumbs_NHWC = places_N[1:], hashes_N[1:], thumbs_NHWC[1:]
    return groups
