"""Medical images in DICOM files, by pydicom: what the pixels measure, whichever way they are stored.

Shape legend: C channels, H x W pixels.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.decode_errors import DecodeError, check_size, decode_errors, quiet
from unmask.data.stored import StoredPixels, as_stored
from unmask.extras import require

_PREAMBLE = 128
_PREFIX = b"DICM"  # behind the preamble [DICOM PS3.10, 7.1]
_GREY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"


def is_dicom(data: bytes) -> bool:
    """Whether a file begins as a DICOM file does."""
    return data[_PREAMBLE : _PREAMBLE + len(_PREFIX)] == _PREFIX


def read_dicom(data: bytes) -> StoredPixels:
    """The pixels of the one image in a DICOM file: grey [H, W, 1] or colours [H, W, 3].

    Grey is in the units that the file's slope and intercept lead to (Hounsfield units for CT), and inverted where small
    values are bright. Raises DecodeError, also where pydicom is missing.
    """
    try:
        pydicom: Any = require("medical", "DICOM files need")
        pixels: Any = require("medical", "DICOM files need", "pydicom.pixels")
    except ValueError as error:
        raise DecodeError(str(error)) from error
    with decode_errors(), quiet("pydicom"):
        dataset = pydicom.dcmread(io.BytesIO(data))
        if "PixelData" not in dataset and "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
            raise DecodeError("it is a DICOM file without an image")
        frames = int(dataset.get("NumberOfFrames") or 1)
        if frames > 1:
            raise DecodeError(f"it holds {frames} frames: save each as an image of its own")
        samples, kind = int(dataset.SamplesPerPixel), str(dataset.PhotometricInterpretation)
        check_size(int(dataset.Rows), int(dataset.Columns), samples * int(dataset.BitsAllocated) // 8)
        array: NDArray[Any] = pixels.pixel_array(dataset)
        if kind in _GREY:
            return StoredPixels(as_stored(_grey(dataset, array, pixels)))
        if kind == _PALETTE:
            array = pixels.apply_color_lut(array, dataset)
        return StoredPixels(as_stored(array), colours=True)


def _grey(dataset: Any, array: NDArray[Any], pixels: Any) -> NDArray[Any]:
    """What the stored values stand for. Whole numbers of 16 bits stay such where slope and intercept let them."""
    values = pixels.apply_modality_lut(array, dataset)
    whole = np.rint(values)
    limits = np.iinfo(np.int16)
    if values.dtype.kind == "f" and (values == whole).all() and limits.min <= whole.min() and whole.max() <= limits.max:
        values = whole.astype(np.int16)
    if dataset.PhotometricInterpretation != "MONOCHROME1":
        return values
    if values.dtype.kind == "u":
        return np.array((1 << int(dataset.BitsStored)) - 1, dtype=values.dtype) - values
    # Signed numbers have one more below 0 than above.
    return -1 - values if values.dtype.kind == "i" else -values
