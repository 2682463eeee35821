"""From float tensors to encoded pictures: enlarge, outline, heat, encode.

Shape legend: C channels, H x W pixels of the image; N patches in a grid of rows x columns.
"""

from __future__ import annotations

import io
import math

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from unmask.report.false_colour import FalseColour

Grid = tuple[int, int]
Colour = tuple[int, int, int]
Picture = UInt8[np.ndarray, "_ _ 3"]

# Shown at most this large: a cell of the page is never wider than half of it, which leaves sharpness for
# dense screens.
SHOWN_AT_MOST = 320
# Smaller images are enlarged by a whole factor, so that their pixels stay square and visible.
SHOWN_AT_LEAST = 192


def to_picture(image_CHW: Float[Tensor, "C H W"]) -> Picture:
    """Values in [0, 1] as RGB bytes, of one channel (grey) or three; of others as `FalseColour` shows them alone."""
    if len(image_CHW) not in (1, 3):
        image_CHW = FalseColour.of([image_CHW])(image_CHW)
    rgb_3HW = image_CHW.detach().float().cpu().nan_to_num(0.0).clamp(0, 1).expand(3, -1, -1)
    return (rgb_3HW * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def enlarged(picture: Picture) -> Picture:
    """The picture at the size it is shown: small ones by a whole factor, large ones reduced."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest > SHOWN_AT_MOST:
        ratio = SHOWN_AT_MOST / longest
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    factor = math.ceil(SHOWN_AT_LEAST / longest)
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def outlined(picture: Picture, patch: int, grid: Grid, colour: Colour) -> Picture:
    """A frame around one patch (not over it), with dark edges so that it shows on any ground."""
    height, width = picture.shape[:2]
    rows, columns = grid
    row, column = divmod(patch, columns)
    left, right = round(column * width / columns), round((column + 1) * width / columns) - 1
    top, bottom = round(row * height / rows), round((row + 1) * height / rows) - 1
    line = max(3, round(max(height, width) / 60))
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for reach, paint in ((line + 1, (16, 16, 16)), (line, colour)):
        # At the border of the image the frame moves inwards, else a border patch would show half a frame.
        box = (
            max(left - reach, 0),
            max(top - reach, 0),
            min(right + reach, width - 1),
            min(bottom + reach, height - 1),
        )
        draw.rectangle(box, outline=paint, width=reach if paint != colour else line)
    return np.asarray(image)


def heat(picture: Picture, values_N: Float[Tensor, " N"], grid: Grid) -> Picture:
    """The picture in dim grey under one colour a patch, from 0 (dark) to the largest value (bright)."""
    height, width = picture.shape[:2]
    values = values_N.detach().float().cpu().nan_to_num(0.0).clamp(min=0).reshape(grid).numpy()
    share = values / max(float(values.max()), 1e-30)
    cool_to_hot = matplotlib.colormaps["inferno"](share)[..., :3]
    colour = Image.fromarray((cool_to_hot * 255).round().astype(np.uint8))
    colour_hw3 = np.asarray(colour.resize((width, height), Image.Resampling.NEAREST)).astype(np.float32)
    grey_hw1 = picture.astype(np.float32).mean(axis=2, keepdims=True)
    mixed: Picture = (0.72 * colour_hw3 + 0.28 * grey_hw1).round().astype(np.uint8)
    return mixed


def encoded(picture: Picture, *, exact: bool) -> bytes:
    """PNG where every pixel must stay (drawn or enlarged pictures), else WebP at a tenth of the size."""
    buffer = io.BytesIO()
    if exact:
        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    else:
        Image.fromarray(picture).save(buffer, "WEBP", quality=88, method=4)
    return buffer.getvalue()


def shown(image_CHW: Float[Tensor, "C H W"]) -> bytes:
    """One image as the page shows it."""
    picture = to_picture(image_CHW)
    return encoded(enlarged(picture), exact=max(picture.shape[:2]) < SHOWN_AT_LEAST)
