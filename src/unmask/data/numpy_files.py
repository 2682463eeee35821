"""Images in NumPy's files: one image in a `.npy` file, or all images in one `.npy` or `.npz` file.

Nothing is unpickled. Shape legend: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from unmask.data.decode_errors import MAX_BYTES, DecodeError, decode_errors
from unmask.data.stored import StoredPixels, as_stored, channels_last

_MAGIC = b"\x93NUMPY"


def is_npy(data: bytes) -> bool:
    """Whether a file begins as a `.npy` file does."""
    return data.startswith(_MAGIC)


def read_npy(data: bytes) -> StoredPixels:
    """The one image of a `.npy` file: [H, W], [H, W, C] or [C, H, W], see `channel_axis`. Raises DecodeError."""
    with decode_errors():
        file = io.BytesIO(data)
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, kind = read_header(file)
        if kind.hasobject or kind.itemsize * math.prod(shape) > min(MAX_BYTES, len(data)):
            raise DecodeError("it is no array of numbers, or has not all of them")
        values = np.frombuffer(data, kind, count=math.prod(shape), offset=file.tell())
        array: NDArray[Any] = values.reshape(shape, order="F" if by_columns else "C")
        return StoredPixels(as_stored(channels_last(array)))
