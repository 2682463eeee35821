"""Which stored values become black and which white, where images have more than 8 bits: one range for a whole run.

8-bit images need none and are left as they are. Shape legend: C channels, P pixels, H x W pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unmask.data.crop import Stream, sample_generator
from unmask.data.decode import DecodeError, open_image
from unmask.data.source import Source
from unmask.data.stored import PixelRange as PixelRange
from unmask.data.stored import StoredPixels, rounded

_PIXELS = 10_000
"""Of each image so many are looked at, in an even grid: more change the ends of a range by less than noise does."""
_TAIL = 0.1
"""Per cent of the values at either end that a range leaves out."""

S = TypeVar("S", bound=Source)


def in_range(source: S, pixel_range: PixelRange | None) -> S:
    """The same images, read in this range; None leaves the source as it is."""
    if pixel_range is None:
        return source
    ranged = copy.copy(source)
    ranged.pixel_range = pixel_range
    return ranged


def measured_range(source: Source, *, channels: int, sample: int = 100, seed: int = 0) -> PixelRange | None:
    """The range of the data: per channel from the value below which 0.1 % of its pixels are to that of 99.9 %.

    Of up to `sample` images that fit an encoder of `channels`; all of them count the same. None where images have
    8 bits, also where only some do: then wide ones have the scale of their type. Images that cannot be read do not
    count, nor does what is no number or marked as not measured.
    """
    found: list[tuple[NDArray[Any], NDArray[np.bool_]]] = []
    for stored in _looked_at(source, sample, seed):
        if stored is None:
            return None
        if stored.values_HWC.shape[2] == channels or {stored.values_HWC.shape[2], channels} == {1, 3}:
            found.append(_grid(stored))
    if not found:
        return None
    if len({values_PC.shape[1] for values_PC, _ in found}) > 1:
        # Grey and colour images together have one range, as they become one another.
        found = [(values_PC.reshape(-1, 1), measured_PC.reshape(-1, 1)) for values_PC, measured_PC in found]
    ends = [
        _ends(np.concatenate([values_PC[measured_PC[:, c], c] for values_PC, measured_PC in found]))
        for c in range(found[0][0].shape[1])
    ]
    return PixelRange(low=tuple(low for low, _ in ends), high=tuple(high for _, high in ends))


def has_wide_images(source: Source, *, sample: int = 100, seed: int = 0) -> bool:
    """Whether any of `sample` images has more than 8 bits."""
    return any(stored is not None for stored in _looked_at(source, sample, seed))


def _looked_at(source: Source, count: int, seed: int) -> Iterator[StoredPixels | None]:
    """The pixels of `count` random images as they are stored, None for those of 8 bits; not those that are damaged."""
    order = sample_generator(seed, 0, 0, Stream.ORDER).permutation(len(source))
    for index in np.sort(order[:count]).tolist():
        try:
            content = open_image(source.read(index)).content
        except (OSError, DecodeError):
            continue
        wide = isinstance(content, StoredPixels) and content.values_HWC.dtype != np.uint8
        yield content if wide and isinstance(content, StoredPixels) else None


def _grid(stored: StoredPixels) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Some of an image's pixels [P, C], and where they are measurements."""
    height, width, channels = stored.values_HWC.shape
    step = max(1, math.isqrt(height * width // _PIXELS))
    kept = StoredPixels(np.ascontiguousarray(stored.values_HWC[::step, ::step]), stored.nodata)
    return kept.values_HWC.reshape(-1, channels), kept.measured().reshape(-1, channels)


def _ends(values_P: NDArray[Any]) -> tuple[float, float]:
    """The range of one channel; any one where nothing was measured, or everywhere the same."""
    if not values_P.size:
        return 0.0, 1.0
    low, high = (rounded(float(end)) for end in np.percentile(values_P.astype(np.float64), (_TAIL, 100 - _TAIL)))
    return (low, high) if low < high else (low, low + 1)
