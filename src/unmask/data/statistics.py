"""What to know of a source before training: that it can be read, its sizes, mean and deviation."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, UInt8

from unmask.data.crop import Stream, sample_generator
from unmask.data.dataset import BadFile
from unmask.data.decode import DecodeError, OpenImage, read_size
from unmask.data.sources import Source

ENOUGH_PIXELS = (224, 224)
"""A larger JPEG is decoded at a reduced scale, as it will be for training."""
LEVELS = 256
_SMALLEST_STD = 1 / 255  # images of one colour must not divide by zero


def first_readable(source: Source, *, channels: int = 3, tries: int = 1000) -> int:
    """The position of the first image that can be decoded, of all or of `tries` spread over the source.

    Raises ValueError when there is none.
    """
    count = min(tries, len(source))
    reason = "it is empty"
    for index in np.linspace(0, len(source) - 1, count).astype(np.int64).tolist():
        try:
            source.open(index).decode(min_size=(1, 1), channels=channels)
        except (OSError, DecodeError) as error:
            bad = BadFile.of(source, index, error)
            reason = f"for example {bad.path}: {bad.reason}"
        else:
            return int(index)
    raise ValueError(f"no readable image in {source.name}, {reason}")


def first_opened(source: Source, *, tries: int = 1000) -> OpenImage:
    """The first image that can be opened, of all or of `tries` spread over the source.

    Raises ValueError when there is none.
    """
    for index in np.linspace(0, len(source) - 1, min(tries, len(source))).astype(np.int64).tolist():
        try:
            return source.open(index)
        except (OSError, DecodeError) as error:
            bad = BadFile.of(source, index, error)
            reason = f"for example {bad.path}: {bad.reason}"
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
    total_CL, count = np.zeros((channels, LEVELS)), 0
    for index in _sampled(source, sample, seed):
        try:
            pixels_HWC = source.open(index).decode(min_size=ENOUGH_PIXELS, channels=channels).pixels_HWC
        except (OSError, DecodeError):
            continue
        total_CL += level_shares(pixels_HWC)
        count += 1
    if not count:
        raise ValueError(f"no readable image in {source.name}")
    return moments(total_CL / count)


def level_shares(pixels_HWC: UInt8[np.ndarray, "H W C"]) -> Float64[np.ndarray, "C 256"]:
    """How large a share of an image's pixels has each of the 256 levels, by channel."""
    # A histogram is exact, and quicker than converting every pixel to a float.
    counts = [np.bincount(pixels_HWC[:, :, c].ravel(), minlength=LEVELS) for c in range(pixels_HWC.shape[2])]
    shares_CL: Float64[np.ndarray, "C 256"] = np.array(counts) / (pixels_HWC.shape[0] * pixels_HWC.shape[1])
    return shares_CL


def moments(shares_CL: Float64[np.ndarray, "C 256"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in [0, 1], of pixels that have these shares of the levels."""
    levels = np.arange(LEVELS) / (LEVELS - 1)
    mean = shares_CL @ levels
    std = np.sqrt(np.maximum(shares_CL @ levels**2 - mean**2, 0))
    return tuple(mean.tolist()), tuple(np.maximum(std, _SMALLEST_STD).tolist())


def _sampled(source: Source, count: int, seed: int) -> list[int]:
    """Sorted positions of `count` random images, or of all when there are no more."""
    order = sample_generator(seed, 0, 0, Stream.ORDER).permutation(len(source))
    positions: list[int] = np.sort(order[:count]).tolist()
    return positions
