"""Pixels as a file stores them, of any type of number and any number of channels, and how they become 8 bits.

Shape legend: C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from typing_extensions import Doc

from unmask.data.decode_errors import DecodeError, check_size

_MOST_NAMED = 3
_MOST_IN_FRONT = 32
"""More channels than these are found only where height and width are equal, or behind them."""


@dataclass(frozen=True, kw_only=True)
class PixelRange:
    """The values of image files that become 0 and 255; between them linear, beyond them clipped.

    One value for all channels, or one for each. What is no number, and what a file marks as not measured, becomes 0.
    Images of 8 bits are not changed.
    """

    low: Annotated[tuple[float, ...], Doc("Values that become 0: one for each channel, or one for all.")]
    high: Annotated[tuple[float, ...], Doc("Values that become 255, each above its low one.")]

    def __post_init__(self) -> None:
        if not self.low or len(self.low) != len(self.high):
            counts = f"{len(self.low)} and {len(self.high)}"
            raise ValueError(f"a range of pixel values needs as many low values as high ones, got {counts}")
        for low, high in zip(self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"a range of pixel values must go up, not from {low:g} to {high:g}")

    def __str__(self) -> str:
        if len(self.low) == 1:
            return f"{self.low[0]:.6g} to {self.high[0]:.6g}"
        if len(self.low) > _MOST_NAMED:
            return f"{min(self.low):.6g} to {max(self.high):.6g}, by channel,"
        return ", ".join(f"{low:.6g} to {high:.6g}" for low, high in zip(self.low, self.high, strict=True))


@dataclass(frozen=True)
class StoredPixels:
    """An upright image as its file stores it: [H, W, C], of any type of whole or real numbers.

    `nodata` is the value by which the file marks pixels that nobody has measured, None where it names none. `colours`:
    the first three channels are red, green and blue, whatever else there is.
    """

    values_HWC: NDArray[Any]
    nodata: float | None = None
    colours: bool = False

    def measured(self) -> NDArray[np.bool_]:
        """True [H, W, C] where a value is a measurement: finite, and not the file's mark for none."""
        found: NDArray[np.bool_] = np.isfinite(self.values_HWC)
        return found if self.nodata is None else found & ~_equal(self.values_HWC, self.nodata)

    def eight_bit(self, pixel_range: PixelRange | None = None) -> UInt8[np.ndarray, "H W C"]:
        """The pixels in 8 bits: linear in the range and clipped; what was not measured becomes 0.

        Without a range numbers of 8 and 16 bits have the scale of their type, wider whole numbers that of 16 bits, and
        real ones that from 0 to 1; DecodeError where there is any outside.
        """
        values_HWC = self.values_HWC
        if values_HWC.dtype == np.uint8:
            return values_HWC
        low, high = _scale(self) if pixel_range is None else (pixel_range.low, pixel_range.high)
        if len(low) not in (1, values_HWC.shape[2]):
            raise DecodeError(f"it has {values_HWC.shape[2]} channels, the range of pixel values is for {len(low)}")
        if values_HWC.dtype.itemsize == 2 and values_HWC.dtype.kind in "ui":
            return self._by_table(low, high)
        return _scaled(values_HWC, self.measured(), np.array(low), np.array(high))

    def _by_table(self, low: Sequence[float], high: Sequence[float]) -> UInt8[np.ndarray, "H W C"]:
        """The same for whole numbers of 16 bits, by looking each up: no real numbers as large as the image."""
        kind = self.values_HWC.dtype.newbyteorder("=")
        # A negative number as an index without a sign lies behind all others.
        levels_V11 = np.arange(1 << 16).astype(np.uint16).view(kind)[:, None, None]
        measured = StoredPixels(levels_V11, self.nodata).measured()
        indices_HWC = np.ascontiguousarray(self.values_HWC, dtype=kind).view(np.uint16)
        found_HWC = np.empty(indices_HWC.shape, dtype=np.uint8)
        for channel in range(indices_HWC.shape[2]):
            ends = np.array(low[channel % len(low)]), np.array(high[channel % len(high)])
            table_V = _scaled(levels_V11, measured, *ends).ravel()
            np.take(table_V, indices_HWC[:, :, channel], out=found_HWC[:, :, channel])
        return found_HWC


def _scaled(
    values_HWC: NDArray[Any], measured_HWC: NDArray[np.bool_], low: NDArray[Any], high: NDArray[Any]
) -> UInt8[np.ndarray, "H W C"]:
    exact = np.float64 if values_HWC.dtype.itemsize > 2 and values_HWC.dtype != np.float32 else np.float32
    with np.errstate(all="ignore"):
        scaled_HWC = (values_HWC.astype(exact) - low.astype(exact)) * (255 / (high - low)).astype(exact)
        np.clip(scaled_HWC, 0, 255, out=scaled_HWC)
        # Half a level up and cut off, which is what whole numbers of 16 bits have always become: (value + 128) // 257.
        scaled_HWC += 0.5
        return np.where(measured_HWC, scaled_HWC, 0).astype(np.uint8)


def _scale(stored: StoredPixels) -> tuple[tuple[float], tuple[float]]:
    """What is black and what is white where nobody says it. DecodeError where that cannot be known."""
    kind = stored.values_HWC.dtype
    if kind.kind in "ui" and kind.itemsize <= 2:
        limits = np.iinfo(kind)
        return (limits.min,), (limits.max,)
    measured = stored.values_HWC[stored.measured()]
    lowest, highest = (float(measured.min()), float(measured.max())) if measured.size else (0.0, 0.0)
    usual = 65535 if kind.kind in "ui" else 1
    if lowest < 0 or highest > usual:
        what = f"whole numbers of {8 * kind.itemsize} bits" if kind.kind in "ui" else "floating-point numbers"
        raise DecodeError(
            f"its pixels are {what} from {lowest:.6g} to {highest:.6g}, and nothing says which of them are black and "
            "white (unmask pretrain --pixel-range does)"
        )
    return (0,), (usual,)


def _equal(values: NDArray[Any], nodata: float) -> NDArray[np.bool_]:
    kind = values.dtype
    if kind.kind in "ui":
        limits = np.iinfo(kind)
        if not (np.isfinite(nodata) and nodata == int(nodata) and limits.min <= nodata <= limits.max):
            return np.zeros(values.shape, dtype=np.bool_)
    with np.errstate(all="ignore"):
        found: NDArray[np.bool_] = values == kind.type(nodata)
    return found


def as_stored(array: NDArray[Any]) -> NDArray[Any]:
    """An array as the pixels of an image, [H, W, C]: bare grey gets its axis of channels, true becomes white.

    The axis of channels of [H, W, C] stays the last one: where it may be the first one, see `channels_last`.
    Raises DecodeError for arrays of other shapes and of what are no numbers.
    """
    if array.ndim not in (2, 3) or not array.size or not (array.dtype == np.bool_ or array.dtype.kind in "uif"):
        raise DecodeError(
            f"an array must hold numbers in the shape [H, W, C] or [H, W], not {array.dtype} of {array.shape}"
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    array_HWC = array[:, :, None] if array.ndim == 2 else array
    height, width, channels = array_HWC.shape
    check_size(height, width, channels * array_HWC.dtype.itemsize)
    return array_HWC


def channel_axis(shape: Sequence[int]) -> int:
    """Which axis of an image of three is that of the channels: 0 for [C, H, W], 2 for [H, W, C].

    Of two equal neighbours and another one, the neighbours are height and width. Of three different numbers the smaller
    one of the first and the last is that of the channels, where it is at most 32. DecodeError where both are equal.
    """
    first, middle, last = shape
    if first == middle != last:
        return 2
    if first != middle == last:
        return 0
    if first == last or min(first, last) > _MOST_IN_FRONT:
        raise DecodeError(
            f"its shape {tuple(shape)} does not tell which axis is that of the channels: save it as [H, W, C], with a "
            f"last axis that is the shortest, of at most {_MOST_IN_FRONT}"
        )
    return 0 if first < last else 2


def channels_last(array: NDArray[Any]) -> NDArray[Any]:
    """An image as [H, W, C], whichever of both usual orders it has; [H, W] passes as it is. Raises DecodeError."""
    if array.ndim == 3 and channel_axis(array.shape) == 0:
        return array.transpose(1, 2, 0)
    return array


def without_alpha(values_HWC: NDArray[Any]) -> NDArray[Any]:
    """Grey or colours of which the last channel is alpha, laid on white; real numbers, of which none is white, bare."""
    if values_HWC.dtype.kind == "f":
        return values_HWC[:, :, :-1]
    white = np.iinfo(values_HWC.dtype).max
    alpha_HW1 = values_HWC[:, :, -1:].astype(np.float64) / white
    laid_HWC = values_HWC[:, :, :-1] * alpha_HW1 + white * (1 - alpha_HW1)
    return np.rint(laid_HWC).astype(values_HWC.dtype)


def upright(values_HWC: NDArray[Any], orientation: object) -> NDArray[Any]:
    """The image turned back from an EXIF orientation of 2 to 8; all else turns nothing. [EXIF 2.32, tag 0x0112]"""
    if orientation in (5, 6, 7, 8):
        values_HWC = values_HWC.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values_HWC = values_HWC[::-1]
    if orientation in (2, 3, 6, 7):
        values_HWC = values_HWC[:, ::-1]
    return values_HWC


def rounded(value: float) -> float:
    """To six digits, as a range is measured and shown."""
    return float(f"{value:.6g}")
