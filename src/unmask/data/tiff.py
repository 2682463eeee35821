"""TIFF files that Pillow reads not at all or only in part: wide numbers, many channels, channels in pages.

tifffile reads them, with the codecs of imagecodecs: tiles and strips, bands one after the other or side by side, LZW,
Deflate, Zstandard, JPEG, predictors. What each axis of a file means is tifffile's word, from OME-XML, ImageJ's notes,
the shape that tifffile itself writes, or the pages. Usual files of 8 bits stay Pillow's.
Shape legend: C channels, H x W pixels.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, TiffImagePlugin

from unmask.data.decode_errors import DecodeError, check_size, decode_errors, quiet
from unmask.data.stored import StoredPixels, as_stored, channel_axis, upright, without_alpha

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The latter two are BigTIFF's."""
_WORDS_OF_PAGES = ("<OME", "ImageJ=", '{"shape"')
"""By these an image description tells what the pages are: OME-TIFF, ImageJ, tifffile."""
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _LINEAR_RAW = 0, 1, 2, 34892  # [TIFF 6.0 and DNG, tag 262]
_ALPHAS = (1, 2)  # associated and not [TIFF 6.0, tag 338]
_NODATA = 42113
"""The value of pixels that nobody has measured, in words [GDAL, GTiff driver]."""
_CHANNELS = "CSQI"
"""Axes that count as channels: channels, samples of a pixel, axes without a name, pages without a name."""
_STACKS = {"Z": "slices of a stack", "T": "moments of a film"}


def is_tiff(data: bytes) -> bool:
    """Whether a file begins as a TIFF does."""
    return data[:4] in _MAGIC


def is_unusual(data: bytes) -> bool:
    """Whether a TIFF has more bits, more channels or other pages than Pillow gives, by the tags of its first page.

    Not where they cannot be read: what is wrong with a damaged file is then Pillow's to say.
    """
    big = data[2:3] == b"+"
    try:
        with decode_errors():
            tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if big else 8])
            file = io.BytesIO(data)
            file.seek(tags.next)
            tags.load(file)
            bits = max(map(int, tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))))
            form = max(map(int, tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))))
            samples = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
            colours = int(tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, _BLACK_IS_ZERO))
            extra = tuple(tags.get(TiffImagePlugin.EXTRASAMPLES, ()))
            words = str(tags.get(TiffImagePlugin.IMAGEDESCRIPTION, ""))
    except DecodeError:
        return False
    if colours not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _LINEAR_RAW):
        return False
    usual = samples in ((3, 4) if colours == _RGB else (1, 2)) and 0 not in extra
    return bits > 8 or form != 1 or not usual or (tags.next != 0 and any(word in words for word in _WORDS_OF_PAGES))


def read_tiff(data: bytes) -> StoredPixels:
    """The pixels of the first image in a TIFF. Raises DecodeError."""
    # Imported here: it takes longer than reading some images, and most data has none of these files.
    import tifffile

    with decode_errors(), quiet("tifffile"), quiet("imagecodecs"), tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        page: Any = series.keyframe
        height, width, *others = order = _order(series.axes, series.shape)
        samples = math.prod(series.shape[axis] for axis in others)
        check_size(series.shape[height], series.shape[width], samples * series.dtype.itemsize)
        array: NDArray[Any] = series.asarray(maxworkers=1)
        values_HWC = as_stored(array.transpose(order).reshape(array.shape[height], array.shape[width], samples))
        if page.photometric == _WHITE_IS_ZERO and values_HWC.dtype.kind == "u":
            values_HWC = np.iinfo(values_HWC.dtype).max - values_HWC
        if page.extrasamples and page.extrasamples[-1] in _ALPHAS and page.samplesperpixel == samples in (2, 4):
            values_HWC = without_alpha(values_HWC)
        orientation = page.tags.valueof(ExifTags.Base.Orientation)
        return StoredPixels(
            upright(values_HWC, orientation),
            page.nodata if _NODATA in page.tags else None,
            colours=page.photometric == _RGB and page.samplesperpixel == samples,
        )


def _order(axes: str, shape: tuple[int, ...]) -> list[int]:
    """The axes of a series in the order height, width, channels. DecodeError where some are no channels."""
    kept = [axis for axis, length in enumerate(shape) if length > 1 or axes[axis] in "YX"]
    names = "".join(axes[axis] for axis in kept)
    stacks = [what for name, what in _STACKS.items() if name in names]
    if stacks:
        raise DecodeError(f"it holds {stacks[0]} (axes {axes} of {shape}): save each as an image of its own")
    if names == "QYX" and channel_axis([shape[axis] for axis in kept]) == 2:
        # Written as one array of [H, W, C], of which nobody has said that the last axis is that of the channels.
        return kept
    others = [axis for axis in kept if axes[axis] in _CHANNELS]
    if names.count("Y") != 1 or names.count("X") != 1 or len(others) != len(kept) - 2:
        raise DecodeError(f"it is no image, but has the axes {axes} of {shape}")
    if len(others) > 1:
        raise DecodeError(f"more than one of its axes could be that of the channels: {axes} of {shape}")
    return [axes.index("Y"), axes.index("X"), *others]
