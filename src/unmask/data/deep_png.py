"""PNG files of 16 bits and several channels, of which Pillow keeps 8 bits only: read by imagecodecs (libpng)."""

from __future__ import annotations

import struct
from typing import Any

from numpy.typing import NDArray

from unmask.data.decode_errors import check_size, decode_errors, quiet
from unmask.data.stored import StoredPixels, as_stored, without_alpha

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS, _GREY_AND_ALPHA, _COLOURS_AND_ALPHA = 2, 4, 6  # [PNG, IHDR]


def is_deep_png(data: bytes) -> bool:
    """Whether it is a PNG of 16 bits with more than one channel, by its header."""
    if len(data) < 33 or not data.startswith(PNG_SIGNATURE) or data[12:16] != b"IHDR" or data[24] != 16:
        return False
    return data[25] in (_COLOURS, _GREY_AND_ALPHA, _COLOURS_AND_ALPHA)


def read_deep_png(data: bytes) -> StoredPixels:
    """The pixels of such a PNG, without alpha (laid on white). Raises DecodeError."""
    import imagecodecs

    with decode_errors(), quiet("imagecodecs"):
        width, height = struct.unpack_from(">II", data, 16)
        check_size(height, width, 8)
        found: NDArray[Any] = imagecodecs.png_decode(data)
        values_HWC = as_stored(found)
        if data[25] != _COLOURS:
            values_HWC = without_alpha(values_HWC)
    return StoredPixels(values_HWC, colours=data[25] != _GREY_AND_ALPHA)
