"""What to know of a source before training: that it can be read, its sizes, mean and deviation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unmask.data.crop import Stream, sample_generator
from unmask.data.dataset import BadFile
from unmask.data.decode import DecodeError, decode, read_size
from unmask.data.sources import Source

_ENOUGH_PIXELS = (224, 224)  # a larger JPEG is decoded at a reduced scale, as it will be for training
_SMALLEST_STD = 1 / 255  # images of one colour must not divide by zero


def first_readable(source: Source, *, channels: int = 3, tries: int = 1000) -> int:
    """The position of the first image that can be decoded, of all or of `tries` spread over the source.

    Raises ValueError when there is none.
    """
    count = min(tries, len(source))
    reason = "it is empty"
    for index in np.linspace(0, len(source) - 1, count).astype(np.int64).tolist():
        try:
            decode(source.read(index), min_size=(1, 1), channels=channels)
        except (OSError, DecodeError) as error:
            bad = BadFile.of(source, index, error)
            reason = f"for example {bad.path}: {bad.reason}"
        else:
            return int(index)
    raise ValueError(f"no readable image in {source.name}, {reason}")


def median_size(source: Source, *, sample: int = 200, seed: int = 0) -> tuple[int, int]:
    """Median (height, width) of up to `sample` images, from their headers.

    Raises ValueError when none can be read.
    """
    sizes = []
    for index in _sampled(source, sample, seed):
        try:
            sizes.append(read_size(source.read(index)))
        except (OSError, DecodeError):
            continue
    if not sizes:
        raise ValueError(f"no readable image in {source.name}")
    height, width = np.median(np.array(sizes), axis=0)
    return int(height), int(width)


def mean_and_std(
    source: Source, *, channels: int, sample: int = 1000, seed: int = 0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the pixels of up to `sample` images, in [0, 1].

    Every image counts the same, whatever its size. Raises ValueError when none can be read.
    """
    means: list[NDArray[np.float64]] = []
    squares: list[NDArray[np.float64]] = []
    levels = np.arange(256) / 255
    for index in _sampled(source, sample, seed):
        try:
            pixels_HWC = decode(source.read(index), min_size=_ENOUGH_PIXELS, channels=channels).pixels_HWC
        except (OSError, DecodeError):
            continue
        # A histogram is exact, and quicker than converting every pixel to a float.
        shares = [np.bincount(pixels_HWC[:, :, c].ravel(), minlength=256) for c in range(channels)]
        share_CL = np.array(shares) / (pixels_HWC.shape[0] * pixels_HWC.shape[1])
        means.append(share_CL @ levels)
        squares.append(share_CL @ levels**2)
    if not means:
        raise ValueError(f"no readable image in {source.name}")
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, 0))
    return tuple(mean.tolist()), tuple(np.maximum(std, _SMALLEST_STD).tolist())


def _sampled(source: Source, count: int, seed: int) -> list[int]:
    """Sorted positions of `count` random images, or of all when there are no more."""
    order = sample_generator(seed, 0, 0, Stream.ORDER).permutation(len(source))
    positions: list[int] = np.sort(order[:count]).tolist()
    return positions
