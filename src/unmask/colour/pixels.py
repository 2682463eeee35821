"""Loops over pixels, compiled for the processor: bytes to values, colour changes, normalisation.

Numba compiles them at their first use and keeps the result beside this file or, where that cannot be written, in the
user's cache directory. An image stays in the processor's cache from its first operation to its last, and no operation
takes memory for more than a plane; a tensor library goes over memory for every sum and product.

The loops change some rows of one image at a time: float32, [C, H, W], contiguous. `groups.py` has the same operations
in torch, and `plan.py` says which values they take. Loops that read several channels write to rows of their own first:
a compiler that cannot rule out that what is written overlaps with what is read gives up its vector instructions.

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
    SATURATION,
    SIGMAS,
    SOLARISE,
    TURNED_HUE,
    ColourPlan,
)
from unmask.data.batch import unwritten

_Values = npt.NDArray[np.float32]
_Bytes = npt.NDArray[np.uint8]
_Integers = npt.NDArray[np.int64]
_Loop = TypeVar("_Loop", bound=Callable[..., Any])

_RED, _GREEN, _BLUE = (np.float32(weight) for weight in GREY_WEIGHTS)
_ZERO, _ONE, _BYTE = np.float32(0), np.float32(1), np.float32(255)
_BAND = 8  # rows that are changed at once: three channels of 224 columns stay in the fastest cache
_PIECE = 2**18  # pixels: smaller work is not worth a thread of its own


def change_pixels_(images_BCHW: Float[Tensor, "B C H W"], plan: ColourPlan) -> None:
    """All steps of the plan, on float32 images on the CPU, contiguous, in place."""
    operations, values, radii = (of.numpy() for of in _steps(plan))
    images = images_BCHW.numpy()
    nothing = np.zeros((len(images), 0, 0, 0), np.uint8)
    flips, corners = np.zeros(len(images), np.bool_), np.zeros((len(images), 2), np.int64)
    unused = np.zeros(0, np.float32)

    def work(on: slice) -> None:
        _make(nothing[on], flips[on], corners[on], operations[on], values[on], radii, unused, unused, images[on])

    _in_threads(images_BCHW, work)


def views_of_bytes(
    crops_BCHW: UInt8[Tensor, "B C _ _"],
    flip_B: Bool[Tensor, " B"],
    corner_B2: Int64[Tensor, "B 2"],
    plan: ColourPlan,
    mean_C: Float[Tensor, " C"],
    factor_C: Float[Tensor, " C"],
    *,
    height: int,
    width: int,
) -> Float[Tensor, "B C {height} {width}"]:
    """Windows of crops on the CPU, the crop mirrored where flagged, coloured and normalised.

    `corner_B2` holds the windows' top left corners (row, column) in the mirrored crops; that they lie inside is the
    caller's promise. Normalised is (value - mean) · factor.
    """
    views_BCHW: Tensor = _views(
        crops_BCHW.contiguous(),
        flip_B,
        corner_B2.contiguous(),
        *_steps(plan),
        mean_C.contiguous(),
        factor_C.contiguous(),
        height,
        width,
    )
    return views_BCHW


@torch.library.custom_op(
    "unmask::views",
    mutates_args=(),
    schema="(Tensor crops, Tensor flips, Tensor corners, Tensor operations, Tensor values, Tensor radii, Tensor mean, "
    "Tensor factor, int height, int width) -> Tensor",
)
def _views(
    crops: Tensor,
    flips: Tensor,
    corners: Tensor,
    operations: Tensor,
    values: Tensor,
    radii: Tensor,
    mean: Tensor,
    factor: Tensor,
    height: int,
    width: int,
) -> Tensor:
    """An operation of torch's, so that whoever watches what follows from what sees it."""
    views_BCHW = unwritten((*crops.shape[:2], height, width), torch.float32)
    images, parts = views_BCHW.numpy(), [part.numpy() for part in (crops, flips, corners, operations, values)]
    shared: Any = [part.numpy() for part in (radii, mean, factor)]

    def work(on: slice) -> None:
        arguments: Any = [*(part[on] for part in parts), *shared, images[on]]
        _make(*arguments)

    _in_threads(views_BCHW, work)
    return views_BCHW


def _steps(plan: ColourPlan) -> tuple[Tensor, Tensor, Tensor]:
    """Operations, values and blur radii as the loops read them."""
    return plan.operation_BS.contiguous(), plan.value_BS.float().contiguous(), plan.radius_S


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
    return _by_numba(loop, fastmath=True)


def _compiled_exactly(loop: _Loop) -> _Loop:
    """Compiled to what is written: torch's own operations give the same bits.

    Numba hands a caller's fastmath down to what it calls, so callers of such loops must be compiled this way, too.
    """
    return _by_numba(loop, fastmath=False)


def _by_numba(loop: _Loop, *, fastmath: bool) -> _Loop:
    try:
        return cast(_Loop, njit(cache=True, nogil=True, fastmath=fastmath)(loop))
    except RuntimeError:  # neither this folder nor the user's can be written: compile in every process
        return cast(_Loop, njit(nogil=True, fastmath=fastmath)(loop))


@_compiled_exactly
def _load(crop: _Bytes, flip: bool, top: int, left: int, image: _Values, start: int, stop: int) -> None:
    """A window of a crop's bytes, mirrored with its crop if `flip`, as values in [0, 1]."""
    channels, _, columns = image.shape
    first = crop.shape[2] - left - columns if flip else left
    end = np.uint64(columns - 1)
    for c in range(channels):
        for y in range(start, stop):
            source, row = crop[c, top + y, first : first + columns], image[c, y]
            if flip:
                for x in range(columns):
                    row[x] = np.float32(source[end - np.uint64(x)]) / _BYTE
            else:
                for x in range(columns):
                    row[x] = np.float32(source[x]) / _BYTE


@_compiled_exactly
def _normalise(image: _Values, start: int, stop: int, mean: _Values, factor: _Values) -> None:
    channels, _, columns = image.shape
    for c in range(channels):
        shift, by = mean[c], factor[c]
        for y in range(start, stop):
            row = image[c, y]
            for x in range(columns):
                row[x] = (row[x] - shift) * by


@_compiled
def _grey_mean(image: _Values) -> float:
    """The mean of the grey image: the grey value of the channels' means."""
    channels = image.shape[0]
    grey = 0.0
    for c in range(channels):
        plane = image[c].reshape(-1)
        total = _ZERO
        for i in range(len(plane)):
            total += plane[i]
        grey += float(total) * (GREY_WEIGHTS[c] if channels == 3 else 1.0 / channels) / len(plane)
    return grey


@_compiled
def _line(image: _Values, start: int, stop: int, factor: np.float32, shift: np.float32) -> None:
    """Brightness and contrast: value times factor plus shift."""
    channels, _, columns = image.shape
    for c in range(channels):
        for y in range(start, stop):
            row = image[c, y]
            for x in range(columns):
                row[x] = min(max(row[x] * factor + shift, _ZERO), _ONE)


@_compiled
def _saturation(image: _Values, start: int, stop: int, factor: np.float32) -> None:
    """Moved away from, or towards, grey; a factor of 0 leaves grey alone."""
    columns = image.shape[2]
    grey = np.empty(columns, np.float32)
    for y in range(start, stop):
        red, green, blue = image[0, y], image[1, y], image[2, y]
        for x in range(columns):
            grey[x] = (_ONE - factor) * (_RED * red[x] + _GREEN * green[x] + _BLUE * blue[x])
        for c in range(3):
            row = image[c, y]
            for x in range(columns):
                row[x] = min(max(row[x] * factor + grey[x], _ZERO), _ONE)


@_compiled
def _saturation_without_colour(image: _Values, start: int, stop: int, factor: np.float32) -> None:
    """`_saturation` for other numbers of channels than three, whose grey is their mean."""
    channels, _, columns = image.shape
    share = (_ONE - factor) / np.float32(channels)
    grey = np.empty(columns, np.float32)
    for y in range(start, stop):
        grey[:] = 0
        for c in range(channels):
            row = image[c, y]
            for x in range(columns):
                grey[x] += share * row[x]
        for c in range(channels):
            row = image[c, y]
            for x in range(columns):
                row[x] = min(max(row[x] * factor + grey[x], _ZERO), _ONE)


@_compiled
def _hue(image: _Values, start: int, stop: int, rest: np.float32, sixths: int, down: bool) -> None:
    """`groups._hue_` tells how: three channels in a circle, which turns the other way round for `down`."""
    columns = image.shape[2]
    turned, low, high = np.empty((3, columns), np.float32), np.empty(columns, np.float32), np.empty(columns, np.float32)
    shift = (sixths + 3 * (sixths % 2)) // 2
    mirror = _ONE if sixths % 2 else _ZERO
    sign = _ONE - 2 * mirror
    for y in range(start, stop):
        red, green, blue = image[0, y], image[1, y], image[2, y]
        for x in range(columns):
            low[x] = min(min(red[x], green[x]), blue[x])
            high[x] = max(max(red[x], green[x]), blue[x])
        for c in range(3):
            moved, by, out = image[c, y], image[(c + 2) % 3 if down else (c + 1) % 3, y], turned[c]
            for x in range(columns):
                least, most = low[x], high[x]
                step = (most - least) * rest
                value = moved[x] + min(max(by[x], least + step), most - step) - by[x]
                out[x] = mirror * (most + least) + sign * min(max(value, least), most)
        for c in range(3):
            _copy(turned[c], image[(c + shift) % 3, y])


@_compiled
def _copy(source: _Values, target: _Values) -> None:
    """Numba's own assignment of arrays looks for overlaps, and takes four times as long."""
    for i in range(len(target)):
        target[i] = source[i]


@_compiled
def _solarise(image: _Values, start: int, stop: int, threshold: np.float32) -> None:
    channels, _, columns = image.shape
    for c in range(channels):
        for y in range(start, stop):
            row = image[c, y]
            for x in range(columns):
                row[x] = abs(row[x] - (_ONE if row[x] >= threshold else _ZERO))


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
    for c in range(channels):
        for y in range(rows):
            row, blurred = image[c, y], plane[reach_down + y]
            _copy(row, padded[reach : reach + columns])
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
            _copy(plane[reach_down + k], plane[reach_down - k])
            _copy(plane[reach_down + rows - 1 - k], plane[reach_down + rows - 1 + k])
        for y in range(rows):
            middle, row = plane[reach_down + y], image[c, y]
            for x in range(columns):
                row[x] = down[0] * middle[x]
            for k in range(1, reach_down + 1):
                weight, above, below = down[k], plane[reach_down + y - k], plane[reach_down + y + k]
                for x in range(columns):
                    row[x] += weight * (above[x] + below[x])


@_compiled_exactly
def _change(image: _Values, start: int, stop: int, operation: int, value: np.float32, shift: np.float32) -> None:
    """One operation that looks at no neighbours."""
    if operation in (BRIGHTNESS, CONTRAST):
        _line(image, start, stop, value, shift)
    elif operation in (SATURATION, GREY):
        factor = value if operation == SATURATION else _ZERO
        if image.shape[0] == 3:
            _saturation(image, start, stop, factor)
        else:
            _saturation_without_colour(image, start, stop, factor)
    elif operation == SOLARISE:
        _solarise(image, start, stop, value)
    elif operation >= TURNED_HUE:
        _hue(image, start, stop, value, (operation - TURNED_HUE) // 2, (operation - TURNED_HUE) % 2 == 1)


@_compiled_exactly
def _make(
    crops: _Bytes,
    flips: npt.NDArray[np.bool_],
    corners: _Integers,
    operations: _Integers,
    values: _Values,
    radii: _Integers,
    mean: _Values,
    factor: _Values,
    images: _Values,
) -> None:
    """Images from their crops, where these have pixels, and otherwise in place; normalised where there is a mean.

    Steps between which nobody must know the whole image are taken band by band, so that what is read was just written.
    """
    steps = operations.shape[1]
    shifts = np.zeros(steps, np.float32)
    for b in range(len(images)):
        image, todo, fresh = images[b], 0, crops.shape[1] > 0
        shifts[:] = 0
        for step in range(steps + 1):
            ends = step == steps
            if not ends and operations[b, step] != CONTRAST and operations[b, step] != BLUR:
                continue
            if fresh or todo < step or (ends and len(mean) > 0):
                for start in range(0, image.shape[1], _BAND):
                    stop = min(start + _BAND, image.shape[1])
                    if fresh:
                        _load(crops[b], flips[b], corners[b, 0], corners[b, 1], image, start, stop)
                    for now in range(todo, step):
                        _change(image, start, stop, operations[b, now], values[b, now], shifts[now])
                    if ends and len(mean) > 0:
                        _normalise(image, start, stop, mean, factor)
            fresh, todo = False, step
            if ends:
                break
            if operations[b, step] == BLUR:
                _blur(image, values[b, step], radii[step])
                todo = step + 1
            else:  # contrast is carried out with the steps after it
                shifts[step] = np.float32(_grey_mean(image)) * (_ONE - values[b, step])
