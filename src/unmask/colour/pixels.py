"""Loops over pixels, compiled for the processor: bytes to values, colour changes, normalisation.

Numba compiles them at their first use and keeps the result beside this file or, where that cannot be written, in the
user's cache directory. An image stays in the processor's cache from its first operation to its last, and no operation
takes memory for more than a plane; a tensor library goes over memory for every sum and product.

The loops change one image at a time: float32, [C, H, W], contiguous. `groups.py` has the same operations in torch, and
`plan.py` says which values they take. Loops that read several channels write to rows of their own first: a compiler
that cannot rule out that what is written overlaps with what is read gives up its vector instructions.

Shape legend: B samples, C channels, H x W pixels, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numba import njit
from torch import Tensor

from unmask.colour.plan import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GREY,
    GREY_WEIGHTS,
    NONE,
    SATURATION,
    SIGMAS,
    SOLARISE,
    TURNED_HUE,
    ColourPlan,
)

_Values = npt.NDArray[np.float32]
_Bytes = npt.NDArray[np.uint8]
_Integers = npt.NDArray[np.int64]
_Loop = TypeVar("_Loop", bound=Callable[..., Any])

_RED, _GREEN, _BLUE = (np.float32(weight) for weight in GREY_WEIGHTS)
_ZERO, _ONE, _BYTE = np.float32(0), np.float32(1), np.float32(255)
_PIECE = 2**18  # pixels: smaller work is not worth a thread of its own


def change_pixels_(images_BCHW: Float[Tensor, "B C H W"], plan: ColourPlan) -> None:
    """All steps of the plan, on float32 images on the CPU, contiguous, in place."""
    images, (operations, values, radii) = images_BCHW.numpy(), _steps(plan)
    _in_threads(images_BCHW, lambda part: _change_images(images[part], operations[part], values[part], radii))


def views_of_bytes(
    crops_BCHW: UInt8[Tensor, "B C _ _"],
    flip_B: Bool[Tensor, " B"],
    corner_B2: Int64[Tensor, "B 2"],
    plan: ColourPlan,
    mean: Float[Tensor, " C"],
    factor: Float[Tensor, " C"],
    views_BCHW: Float[Tensor, "B C H W"],
) -> None:
    """Windows of crops on the CPU, the crop mirrored where flagged, coloured and normalised, into `views_BCHW`.

    `corner_B2` holds the windows' top left corners (row, column) in the mirrored crops; that they lie inside is the
    caller's promise. Normalised is (value - mean) · factor.
    """
    crops, flips, corners = crops_BCHW.contiguous().numpy(), flip_B.numpy(), corner_B2.contiguous().numpy()
    (operations, values, radii), views = _steps(plan), views_BCHW.numpy()
    means, factors = mean.contiguous().numpy(), factor.contiguous().numpy()

    def work(on: slice) -> None:
        _views(crops[on], flips[on], corners[on], operations[on], values[on], radii, means, factors, views[on])

    _in_threads(views_BCHW, work)


def _steps(plan: ColourPlan) -> tuple[_Integers, _Values, _Integers]:
    return plan.operation_BS.contiguous().numpy(), plan.value_BS.float().contiguous().numpy(), plan.radius_S.numpy()


def _in_threads(images_BCHW: Tensor, work: Callable[[slice], None]) -> None:
    """Do the work on all samples, by as many threads as torch would use; nobody's result depends on their number."""
    batch = len(images_BCHW)
    threads = max(1, min(torch.get_num_threads(), batch, images_BCHW.numel() // _PIECE))
    if threads == 1:
        work(slice(0, batch))
        return
    edges = [batch * thread // threads for thread in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, map(slice, edges[:-1], edges[1:])))


def _compiled(loop: _Loop) -> _Loop:
    """Compiled, with sums in any order and without care for infinities."""
    return cast(_Loop, njit(cache=True, nogil=True, fastmath=True)(loop))


def _compiled_exactly(loop: _Loop) -> _Loop:
    """Compiled to what is written: torch's own operations give the same bits.

    Numba hands a caller's fastmath down to what it calls, so callers of such loops must be compiled this way, too.
    """
    return cast(_Loop, njit(cache=True, nogil=True)(loop))


@_compiled_exactly
def _load(crop: _Bytes, flip: bool, top: int, left: int, mean: _Values, factor: _Values, image: _Values) -> None:
    """A window of a crop's bytes, mirrored with its crop if `flip`, as normalised values."""
    last = crop.shape[2] - 1 - left
    channels, rows, columns = image.shape
    for c in range(channels):
        shift, by = mean[c], factor[c]
        for y in range(rows):
            source, row = crop[c, top + y], image[c, y]
            if flip:
                for x in range(columns):
                    row[x] = (np.float32(source[last - x]) / _BYTE - shift) * by
            else:
                for x in range(columns):
                    row[x] = (np.float32(source[left + x]) / _BYTE - shift) * by


@_compiled_exactly
def _normalise(image: _Values, mean: _Values, factor: _Values) -> None:
    for c in range(image.shape[0]):
        plane, shift, by = image[c].reshape(-1), mean[c], factor[c]
        for i in range(len(plane)):
            plane[i] = (plane[i] - shift) * by


@_compiled
def _brightness(image: _Values, factor: np.float32) -> None:
    values = image.reshape(-1)
    for i in range(len(values)):
        values[i] = min(values[i] * factor, _ONE)


@_compiled
def _contrast(image: _Values, factor: np.float32) -> None:
    """Moved away from, or towards, the mean of the grey image: the grey value of the channels' means."""
    channels = image.shape[0]
    grey = 0.0
    for c in range(channels):
        plane = image[c].reshape(-1)
        total = _ZERO
        for i in range(len(plane)):
            total += plane[i]
        grey += float(total) * (GREY_WEIGHTS[c] if channels == 3 else 1.0 / channels) / len(plane)
    shift = np.float32(grey) * (_ONE - factor)
    values = image.reshape(-1)
    for i in range(len(values)):
        values[i] = min(max(values[i] * factor + shift, _ZERO), _ONE)


@_compiled
def _saturation(image: _Values, factor: np.float32) -> None:
    """Moved away from, or towards, grey; a factor of 0 leaves grey alone."""
    rows, columns = image.shape[1:]
    grey = np.empty(columns, np.float32)
    for y in range(rows):
        red, green, blue = image[0, y], image[1, y], image[2, y]
        for x in range(columns):
            grey[x] = (_ONE - factor) * (_RED * red[x] + _GREEN * green[x] + _BLUE * blue[x])
        for c in range(3):
            row = image[c, y]
            for x in range(columns):
                row[x] = min(max(row[x] * factor + grey[x], _ZERO), _ONE)


@_compiled
def _hue(image: _Values, rest: np.float32, sixths: int, down: bool) -> None:
    """`groups._hue_` tells how: three channels in a circle, which turns the other way round for `down`."""
    rows, columns = image.shape[1:]
    turned = np.empty((3, columns), np.float32)
    shift = (sixths + 3 * (sixths % 2)) // 2
    mirror = _ONE if sixths % 2 else _ZERO
    sign = _ONE - 2 * mirror
    for y in range(rows):
        first, second, third = image[0, y], image[1, y], image[2, y]
        if down:
            first, third = third, first
        for x in range(columns):
            a, b, c = first[x], second[x], third[x]
            high, low = max(max(a, b), c), min(min(a, b), c)
            move = (high - low) * rest
            lower, upper = low + move, high - move
            from_b = a + min(max(b, lower), upper) - b
            from_c = b + min(max(c, lower), upper) - c
            from_a = c + min(max(a, lower), upper) - a
            both = mirror * (high + low)
            turned[0, x] = both + sign * min(max(from_b, low), high)
            turned[1, x] = both + sign * min(max(from_c, low), high)
            turned[2, x] = both + sign * min(max(from_a, low), high)
        for c in range(3):
            image[((2 - c if down else c) + shift) % 3, y] = turned[c]


@_compiled
def _gaussian(sigma: np.float32, reach: int) -> _Values:
    """Normalised weights at 0 .. reach pixels; those on the other side are the same."""
    weights = np.empty(reach + 1, np.float32)
    total = 0.0
    for k in range(reach + 1):
        weight = math.exp(-0.5 * (k / sigma) ** 2)
        weights[k] = weight
        total += weight if k == 0 else 2 * weight
    return weights / np.float32(total)


@_compiled
def _blur(image: _Values, sigma: np.float32, radius: int) -> None:
    """Gaussian blur, across and then down; edges are mirrored, and the kernel is cut off at the size of tiny images."""
    channels, rows, columns = image.shape
    radius = min(radius, math.ceil(SIGMAS * sigma))
    reach, reach_down = min(radius, columns - 1), min(radius, rows - 1)
    across, down = _gaussian(sigma, reach), _gaussian(sigma, reach_down)
    padded = np.empty(columns + 2 * reach, np.float32)
    plane = np.empty((rows + 2 * reach_down, columns), np.float32)
    total = np.empty(columns, np.float32)
    for c in range(channels):
        for y in range(rows):
            row, blurred = image[c, y], plane[reach_down + y]
            padded[reach : reach + columns] = row
            for k in range(1, reach + 1):
                padded[reach - k] = row[k]
                padded[reach + columns - 1 + k] = row[columns - 1 - k]
            for x in range(columns):
                blurred[x] = across[0] * row[x]
            for k in range(1, reach + 1):
                weight, before, after = across[k], padded[reach - k :], padded[reach + k :]
                for x in range(columns):
                    blurred[x] += weight * (before[x] + after[x])
        for k in range(1, reach_down + 1):
            plane[reach_down - k] = plane[reach_down + k]
            plane[reach_down + rows - 1 + k] = plane[reach_down + rows - 1 - k]
        for y in range(rows):
            middle = plane[reach_down + y]
            for x in range(columns):
                total[x] = down[0] * middle[x]
            for k in range(1, reach_down + 1):
                weight, above, below = down[k], plane[reach_down + y - k], plane[reach_down + y + k]
                for x in range(columns):
                    total[x] += weight * (above[x] + below[x])
            image[c, y] = total


@_compiled
def _solarise(image: _Values, threshold: np.float32) -> None:
    values = image.reshape(-1)
    for i in range(len(values)):
        values[i] = _ONE - values[i] if values[i] >= threshold else values[i]


@_compiled_exactly
def _change(image: _Values, operations: _Integers, values: _Values, radii: _Integers) -> None:
    """All steps of one image."""
    for operation, value, radius in zip(operations, values, radii):  # noqa: B905 (numba knows no strict)
        if operation == BRIGHTNESS:
            _brightness(image, value)
        elif operation == CONTRAST:
            _contrast(image, value)
        elif operation == SATURATION:
            _saturation(image, value)
        elif operation == GREY:
            _saturation(image, _ZERO)
        elif operation == BLUR:
            _blur(image, value, radius)
        elif operation == SOLARISE:
            _solarise(image, value)
        elif operation >= TURNED_HUE:
            _hue(image, value, (operation - TURNED_HUE) // 2, (operation - TURNED_HUE) % 2 == 1)


@_compiled_exactly
def _change_images(images: _Values, operations: _Integers, values: _Values, radii: _Integers) -> None:
    for b in range(len(images)):
        _change(images[b], operations[b], values[b], radii)


@_compiled_exactly
def _views(
    crops: _Bytes,
    flips: npt.NDArray[np.bool_],
    corners: _Integers,
    operations: _Integers,
    values: _Values,
    radii: _Integers,
    mean: _Values,
    factor: _Values,
    views: _Values,
) -> None:
    as_it_is, by_one = np.zeros_like(mean), np.ones_like(factor)
    for b in range(len(views)):
        top, left = corners[b, 0], corners[b, 1]
        if (operations[b] == NONE).all():
            _load(crops[b], flips[b], top, left, mean, factor, views[b])
        else:
            _load(crops[b], flips[b], top, left, as_it_is, by_one, views[b])
            _change(views[b], operations[b], values[b], radii)
            _normalise(views[b], mean, factor)
